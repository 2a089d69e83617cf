"""Stands in for the library of this name: the probe goes by the name of the module."""
