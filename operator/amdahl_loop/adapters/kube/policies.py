"""What do the TuningPolicies of a namespace say?"""

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.domain.api.wire import from_wire
from amdahl_loop.domain.policy import TuningPolicySpec

_log = logging.getLogger("amdahl_loop")

Policies = dict[str, dict[str, TuningPolicySpec]]
"""TuningPolicies by namespace and name."""


def read_policy(namespace: str, name: str, spec: Mapping[str, Any]) -> TuningPolicySpec:
    """A policy's spec. One that cannot be read pauses its namespace: an admin meant to limit something."""
    try:
        return from_wire(TuningPolicySpec, dict(spec))
    except ValidationError as error:
        _log.warning("TuningPolicy %s/%s cannot be read, so its namespace is paused: %s", namespace, name, error)
        return TuningPolicySpec(paused=True)


async def list_policies(client: KubeClient, namespace: str | None) -> Policies:
    """Every policy of a namespace, or (None) of all."""
    found: Policies = {}
    async for raw in client.list(Kind.TUNING_POLICY, namespace):
        metadata = raw["metadata"]
        where, name = metadata["namespace"], metadata["name"]
        found.setdefault(where, {})[name] = read_policy(where, name, raw.get("spec") or {})
    return found
