"""The custom resource definitions and their reference page, generated from the domain's models. No cluster is asked."""

from amdahl_loop.adapters.crds.files import FILES, Drift, find_drift, write_files

__all__ = ["FILES", "Drift", "find_drift", "write_files"]
