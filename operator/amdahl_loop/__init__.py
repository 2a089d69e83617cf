"""Amdahl Loop: training jobs that optimise themselves, and prove it before they change anything."""

__version__ = "0.1.0"
