"""What does a running operator hear of closed experiments that others bring, take away or relabel?"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from amdahl_loop.adapters.kube.closed import follow_closed
from amdahl_loop.adapters.kube.closing import mark_closed
from amdahl_loop.adapters.kube.experiments import diff
from amdahl_loop.adapters.kube.index import ExperimentIndex, Key
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.loading import load_index
from amdahl_loop.adapters.kube.restore import build_piece, plan_restore, restore
from amdahl_loop.domain.api.experiment import ExperimentStatus
from amdahl_loop.domain.api.records import StoredExperiment
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.children import CLOSED_LABEL
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from cluster_builders import Scene, play
from judge_builders import make_plan
from kube_builders import install_crds
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

WON = Verdict(word=VerdictWord.WON, sentence="Saves 30 %.", effect=0.36, effect_se=0.01)


def make_stored(name: str) -> StoredExperiment:
    """A win of another cluster's."""
    return StoredExperiment(
        experiment=Experiment(plan=make_plan(name=name, job="train"), verdict=WON), closed_at_s=1_780_000_000.0
    )


@dataclass
class Ear:
    """A watch that runs, and what it has told."""

    scene: Scene
    index: ExperimentIndex
    told: list[tuple[Key, str]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def key(self, name: str) -> Key:
        """An experiment of the scene's namespace."""
        return Key(self.scene.namespace, name)

    def tell(self, key: Key, job: str) -> None:
        """News."""
        self.told.append((key, job))
        self.news.set()

    async def bring(self, *names: str) -> None:
        """An import."""
        pieces = await plan_restore(self.scene.client, self.scene.namespace, [make_stored(name) for name in names])
        await restore(self.scene.client, pieces)

    async def hear(self) -> None:
        """Wait for news."""
        await asyncio.wait_for(self.news.wait(), 60)
        self.news.clear()

    async def drop(self, name: str) -> None:
        """Delete an experiment by hand."""
        found = await self.scene.client.get(Kind.EXPERIMENT, self.scene.namespace, name)
        assert found is not None
        await self.scene.client.delete(Kind.EXPERIMENT, self.scene.namespace, name, found["metadata"]["uid"])


Scenario = Callable[[Ear], Coroutine[Any, Any, None]]


def listen(
    cluster: Cluster, namespace: str, scenario: Scenario, prepare: Callable[[Ear], None] = lambda _: None
) -> None:
    """Play a scenario beside an operator that has started with one closed experiment, `old-0`."""
    install_crds(cluster)

    async def go(scene: Scene) -> None:
        ear = Ear(scene, ExperimentIndex())
        await ear.bring("old-0")
        ear.index = await load_index(scene.client, [scene.namespace])
        prepare(ear)
        following = asyncio.create_task(follow_closed(scene.client, ear.index, scene.namespace, ear.tell, pause_s=0.0))
        try:
            await scenario(ear)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    play(cluster, namespace, go)


def test_an_import_is_remembered_while_the_operator_runs(api_server: Cluster, api_namespace: str) -> None:
    """With all that a pass would recall of it; its job is looked at."""

    async def scenario(ear: Ear) -> None:
        await ear.bring("new-0")
        await ear.hear()
        assert ear.told == [(ear.key("new-0"), "train")]
        recalled = ear.index.recall(ear.key("new-0"))
        assert isinstance(recalled, StoredExperiment)
        assert recalled.experiment.verdict == WON

    listen(api_server, api_namespace, scenario)


def test_one_that_is_deleted_is_forgotten(api_server: Cluster, api_namespace: str) -> None:
    """Its question may be asked again."""

    async def scenario(ear: Ear) -> None:
        await ear.drop("old-0")
        await ear.hear()
        assert ear.told == [(ear.key("old-0"), "train")]
        assert len(ear.index) == 0

    listen(api_server, api_namespace, scenario)


def test_one_that_loses_its_label_is_not_forgotten(api_server: Cluster, api_namespace: str) -> None:
    """It only looks deleted to those who select by label."""

    async def scenario(ear: Ear) -> None:
        body: Object = {"metadata": {"labels": {CLOSED_LABEL: "false"}}}
        await ear.scene.client.patch(Kind.EXPERIMENT, ear.scene.namespace, "old-0", body)
        await ear.hear()
        assert ear.index.is_closed(ear.key("old-0"))

    listen(api_server, api_namespace, scenario)


def test_what_the_operator_closes_itself_is_not_read_again(api_server: Cluster, api_namespace: str) -> None:
    """It knows the verdict before the mark is there."""

    async def scenario(ear: Ear) -> None:
        client, namespace = ear.scene.client, ear.scene.namespace
        piece = build_piece(make_stored("own"), namespace)
        made = await client.create(Kind.EXPERIMENT, namespace, piece.body)
        assert isinstance(made, dict)
        patch = diff(made, ExperimentStatus(), piece.status)
        closed = await client.patch_status(Kind.EXPERIMENT, namespace, "own", patch)
        assert isinstance(closed, dict)
        ear.index.learn(closed)
        asked = len(ear.scene.transport.requests)
        await mark_closed(client, closed)
        await ear.bring("new-0")
        await ear.hear()
        assert ear.told == [(ear.key("new-0"), "train")]
        methods = [request.method for request in ear.scene.transport.requests[asked:] if request.path.endswith("/own")]
        assert methods == ["PATCH"]

    listen(api_server, api_namespace, scenario)


def test_a_place_that_the_server_has_forgotten_is_made_up_for(api_server: Cluster, api_namespace: str) -> None:
    """What came and went meanwhile is found by a list of names, and the watch goes on from there."""

    def sleep(ear: Ear) -> None:
        ghost = build_piece(make_stored("ghost"), ear.scene.namespace)
        metadata = ghost.body["metadata"] | {"creationTimestamp": "2026-01-01T00:00:00Z"}
        ear.index.learn({**ghost.body, "metadata": metadata, "status": to_wire(ghost.status)})
        ear.index.forget(ear.key("old-0"))
        ear.index.listed[ear.scene.namespace] = "1"

    async def scenario(ear: Ear) -> None:
        while len(ear.told) < 2:
            await ear.hear()
        assert ear.told == [(ear.key("ghost"), "train"), (ear.key("old-0"), "train")]
        assert ear.index.is_closed(ear.key("old-0"))
        ear.news.clear()
        await ear.bring("new-0")
        await ear.hear()
        assert ear.index.is_closed(ear.key("new-0"))

    listen(api_server, api_namespace, scenario, prepare=sleep)
