"""Operators that know what a real server holds and nothing else, each on a way to it that can fail."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from amdahl_loop.adapters.kube.index import ExperimentIndex
from amdahl_loop.adapters.kube.ledger import KubeLedger
from amdahl_loop.adapters.kube.loading import load_index
from amdahl_loop.adapters.kube.transport import open_transport
from amdahl_loop.domain.ledger import JobMemory
from builders import FAMILY, FINGERPRINT
from kube_builders import FaultyTransport, impatient, see_job
from testbed.cluster import Cluster

Result = TypeVar("Result")

STARTED: list["Operator"] = []


def play(scenario: Coroutine[Any, Any, Result]) -> Result:
    """Run a scenario to its end; whatever becomes of it, no connection stays open."""

    async def run() -> Result:
        try:
            return await scenario
        finally:
            for operator in STARTED:
                await operator.transport.close()
            STARTED.clear()

    return asyncio.run(run())


class Operator:
    """One operator process: its connection, its index, and a clock that the test sets."""

    def __init__(self, transport: FaultyTransport, namespace: str) -> None:
        self.transport, self.namespace = transport, namespace
        self.client = impatient(transport)
        self.index = ExperimentIndex()
        self.now_s = 1000.0

    @classmethod
    async def start(cls, cluster: Cluster, namespace: str) -> "Operator":
        """Begin anew: nothing is known but what the server holds."""
        started = cls(FaultyTransport(await open_transport(cluster.admin.kubeconfig)), namespace)
        STARTED.append(started)
        started.index = await load_index(started.client, [namespace])
        return started

    async def ledger(self) -> KubeLedger:
        """The ledger of one pass."""
        return KubeLedger(self.client, self.index, await see_job(self.client, self.namespace), lambda: self.now_s)

    async def recall(self) -> JobMemory:
        """What a pass is told."""
        ledger = await self.ledger()
        return await ledger.recall(ledger.seen.uid, FINGERPRINT, FAMILY)
