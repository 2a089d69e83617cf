"""The command line: thin, prints domain values."""
