"""What do the objects in a cluster hold? One module per kind; the CRDs are generated from these models."""
