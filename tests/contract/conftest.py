"""Fixtures of the contracts that a real API server is held to as well."""

from testbed.fixtures import api_namespace, api_server

__all__ = ["api_namespace", "api_server"]
