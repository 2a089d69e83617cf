"""Fixtures of the tests that run an image on real nodes."""

from testbed.fixtures import cluster

__all__ = ["cluster"]
