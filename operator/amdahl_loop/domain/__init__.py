"""Pure decisions: values in, values out. No clock, network, files, logging, kopf or kubernetes."""
