"""Fixtures of the tests that need a real API server, alone or with its controllers, and no node."""

from pass_builders import passes
from testbed.fixtures import api_namespace, api_server, control_plane

__all__ = ["api_namespace", "api_server", "control_plane", "passes"]
