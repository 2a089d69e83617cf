"""What does a reliability test hold in its hands? A theatre with one API server, and in it scenes: a job, its operator, the relay between."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cluster_operator import training_job as training_job
from reliability.hands import Behaviour, Hands, Village, playing
from reliability.operators import Nursery, OperatorProcess
from reliability.relay import Relay, name_write, open_relay
from reliability.wire import Object, Wire, open_wire
from testbed.cluster import Cluster

TIMEOUT_S = 1200.0
"""A bound on hanging; a scene takes ten seconds on an idle core."""
POLL_S = 0.4
QUIET_S = 2.0
"""What has not changed for so long has come to rest."""
JOB = "waits"
APPLY = "application/apply-patch+yaml"
API = "/apis/amdahl-loop.io/v1alpha1"


@dataclass
class Scene:
    """One namespace: a job, what its pods do, the operator and the relay in front of it."""

    wire: Wire
    nursery: Nursery
    hands: Hands
    relay: Relay
    village: Village
    namespace: str
    kubeconfig: Path
    """The administrator's, past the relay."""
    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    processes: list[OperatorProcess] = field(default_factory=list)
    clock: Path | None = None
    """A file with the seconds by which the clocks of operators are wrong that are started from now on."""

    # --- the operator -------------------------------------------------------------------------------------------------

    @property
    def operator(self) -> OperatorProcess:
        """The operator that was started last."""
        return self.processes[-1]

    @property
    def log(self) -> str:
        """What all operators of this scene have said."""
        path = self.folder / "operator.log"
        return path.read_text() if path.exists() else ""

    def start(self, relay: Relay | None = None, **settings: str) -> OperatorProcess:
        """An operator behind this scene's relay, or another one."""
        port = (relay or self.relay).port
        kubeconfig = write_kubeconfig(self.folder / f"kubeconfig-{port}", f"http://127.0.0.1:{port}")
        own = {"KUBECONFIG": str(kubeconfig), "NAMESPACES": self.namespace}
        process = self.nursery.start({**own, **self.settings, **settings}, self.folder / "operator.log", self.clock)
        self.processes.append(process)
        return process

    def close(self) -> None:
        """End every operator."""
        for process in self.processes:
            process.close()

    # --- objects ------------------------------------------------------------------------------------------------------

    def path(self, plural: str, name: str = "", part: str = "") -> str:
        """Where objects of this namespace are."""
        root = {"jobs": "/apis/batch/v1", "trainingjobs": API, "experiments": API, "tuningpolicies": API}
        parts = [root.get(plural, "/api/v1"), "namespaces", self.namespace, plural, name, part]
        return "/".join(part for part in parts if part)

    async def apply(self, document: Object, manager: str = "kubectl-client-side-apply") -> Object:
        """Create or replace the fields of a TrainingJob, as somebody at a keyboard does."""
        path = f"{self.path('trainingjobs', document['metadata']['name'])}?fieldManager={manager}&force=true"
        content = json.dumps(document).encode()
        while (reply := await self.wire.send("PATCH", path, content, APPLY)).status == 429:
            await asyncio.sleep(POLL_S)  # the storage of a new definition is made ready
        assert reply.status in (200, 201), reply.content
        return reply.body

    async def job(self, name: str = JOB) -> Object:
        """The TrainingJob as it is."""
        found = await self.wire.get(self.path("trainingjobs", name))
        assert found is not None, f"no TrainingJob {name}"
        return found

    async def experiments(self) -> list[Object]:
        """Every Experiment, by name."""
        return await self.wire.items(self.path("experiments"))

    async def jobs(self) -> list[Object]:
        """Every Job of the cluster's own kind, by name."""
        return await self.wire.items(self.path("jobs"))

    async def names(self, plural: str) -> list[str]:
        """Names of the objects of a kind."""
        return sorted(item["metadata"]["name"] for item in await self.wire.items(self.path(plural)))

    async def wait(self, what: str, condition: Callable[[], Awaitable[bool]], timeout_s: float = TIMEOUT_S) -> None:
        """Until a condition holds; what the operator said, where it never does."""
        deadline_s = time.monotonic() + timeout_s
        while not await condition():
            assert not self.village.broken, self.village.broken
            if time.monotonic() > deadline_s:
                raise AssertionError(f"after {timeout_s:.0f} s still not: {what}\n{await self.describe()}")
            await asyncio.sleep(POLL_S)

    async def reach(self, write: str) -> None:
        """Until the operator has made a write of this name (`relay.name_write`)."""

        async def is_made() -> bool:
            return any(name_write(call) == write for call in self.relay.writes)

        await self.wait(f"write {write}", is_made)

    async def describe(self) -> str:
        """What a person wants to see of a scene that went wrong."""
        status = [item.get("status") for item in await self.wire.items(self.path("trainingjobs"))]
        calls = "\n".join(f"{call.number} {call.kind} -> {status}" for call, status in self.relay.outcomes[-40:])
        return f"{self.namespace}: {json.dumps(status, indent=1)}\n{calls}\n{self.log[-6000:]}"


def conditions_of(job: Object) -> dict[str, tuple[str, str]]:
    """Status and reason of each of a job's conditions."""
    found = (job.get("status") or {}).get("conditions") or ()
    return {c["type"]: (c["status"], c["reason"]) for c in found}


def write_kubeconfig(path: Path, server: str) -> Path:
    """A way to a server that asks nobody who he is."""
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "relay", "cluster": {"server": server}}],
                "users": [{"name": "operator", "user": {}}],
                "contexts": [{"name": "relay", "context": {"cluster": "relay", "user": "operator"}}],
                "current-context": "relay",
            }
        )
    )
    return path


@dataclass
class Theatre:
    """One API server with hands that play its controllers, and operators at the ready."""

    cluster: Cluster
    wire: Wire
    hands: Hands
    nursery: Nursery
    folder: Path

    @asynccontextmanager
    async def scene(self, behaviour: Behaviour, prefix: str = "rel", **settings: str) -> AsyncIterator[Scene]:
        """A namespace with a relay of its own; its operators end with it, and the namespace is asked to go."""
        namespace = self.cluster.create_namespace(prefix)
        folder = self.folder / namespace
        folder.mkdir()
        async with open_relay(self.wire) as relay:
            village = self.hands.settle(namespace, behaviour)
            scene = Scene(
                self.wire,
                self.nursery,
                self.hands,
                relay,
                village,
                namespace,
                self.cluster.admin.kubeconfig,
                folder,
                settings,
            )
            try:
                yield scene
            finally:
                scene.close()
        await self.wire.delete(f"/api/v1/namespaces/{namespace}")


@asynccontextmanager
async def setting(cluster: Cluster, nursery: Nursery, folder: Path) -> AsyncIterator[Theatre]:
    """A theatre for as long as the context lasts."""
    async with open_wire(cluster.admin.kubeconfig) as wire, playing(wire) as hands:
        yield Theatre(cluster, wire, hands, nursery, folder)
