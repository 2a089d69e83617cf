"""Fixtures of the tests that need a real API server and nothing behind it."""

from testbed.fixtures import api_namespace, api_server

__all__ = ["api_namespace", "api_server"]
