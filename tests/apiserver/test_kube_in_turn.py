"""Job and trial in turn on a real API server: the job goes only with its work saved, and always comes back."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from amdahl_loop.adapters.kube.experiments import render
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.runner import KubeRunner, Memory
from amdahl_loop.adapters.kube.running import RunningState
from amdahl_loop.adapters.kube.saves import SaveCounts
from amdahl_loop.adapters.kube.transport import Answer, Request
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Absent, Finished, Running, RunRequest, Unplaced, block_request
from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import BlockReport
from amdahl_probe.metrics import Metrics
from builders import make_window
from cluster_builders import PRIORITY_CLASS, Scene, play, stamp
from judge_builders import make_plan
from kube_builders import install_crds
from pod_builders import make_template
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

JOB = "pydocs-r0"
STARTUP_S = 5


@pytest.fixture(scope="module", autouse=True)
def definitions(api_server: Cluster) -> None:
    """Our kinds are served, and trials have their priority class."""
    install_crds(api_server)
    api_server.admin.kubectl("apply", "-f", "-", stdin=PRIORITY_CLASS)


class Died(Exception):  # noqa: N818 (an end, not an error)
    """The operator was killed here."""


@dataclass
class Turns:
    """One job whose trials run in turn with it; an operator that passes over it, and a node with room for one of them.

    `recorded` is the ledger: it outlives the operator, which `restart` robs of its memory.
    """

    scene: Scene
    job: TrainingJob
    plan: Plan
    memory: Memory = field(default_factory=Memory)
    recorded: list[Finished | Unplaced] = field(default_factory=list)
    charged_s: list[float] = field(default_factory=list)
    notes: list[Reason] = field(default_factory=list)

    @classmethod
    async def begin(cls, scene: Scene, **tuning: Any) -> "Turns":
        """The job runs, and the plan is on record."""
        gpus = make_template(resources={"limits": {"nvidia.com/gpu": "4"}})
        trial = {"trial": {"placement": "InTurn"}, **tuning}
        job = await scene.create_job(
            spec={"template": gpus, "knobs": {"dataloaderWorkers": 0, "gpusPerReplica": 4}, "tuning": trial}
        )
        plan = make_plan(name="pydocs-0123456789", job="pydocs", job_uid=job.metadata.uid)
        await scene.client.create(Kind.EXPERIMENT, scene.namespace, render(plan, scene.namespace))
        scene.metrics = Metrics({"rank": "0", "world": "1", "by": "probe"})
        scene.metrics.add_phases({"startup": STARTUP_S * 10**9})
        turns = cls(scene, job, plan)
        await scene.settle(job)
        await turns.play_cluster()
        return turns

    def restart(self) -> None:
        """Another operator: it knows what the server holds, and nothing else."""
        self.scene.transport.fault = None
        self.memory, self.scene.saves = Memory(), SaveCounts()

    @property
    def request(self) -> RunRequest:
        """The only block of this story."""
        return block_request(self.plan, self.plan.blocks[2], startup_s=3.0, step_s=0.1)

    @property
    def runner(self) -> KubeRunner:
        """As a fresh pass sees it."""

        async def reserve(*_: object) -> bool:
            """There is budget enough."""
            return True

        scene = self.scene
        return KubeRunner(
            scene.client, self.job, scene.probe, self.memory, reserve=reserve, clock=lambda: scene.now_s, fetch=scene.fetch
        )  # fmt: skip

    async def advance(self) -> RunningState:
        """One pass, in the loop's own order: keep the job running; then the block, until it is on record."""
        state = await self.scene.running(self.job).ensure()
        self.notes.append(state.note.reason)
        if state.acted:
            return state
        run = self.request.run
        if self.recorded:
            await self.runner.sweep([])
            return state
        found = await self.runner.find(run)
        if isinstance(found, Absent):
            await self.runner.submit(self.job, self.request)
        elif not isinstance(found, Running):
            self.recorded.append(found)
            loss = await self.runner.stop(run)
            self.charged_s.append(loss.held_device_s if loss else 0.0)
        return state

    async def play_cluster(self) -> None:
        """Controllers, a scheduler that heeds anti-affinity, and a kubelet that ends a block at once."""
        scene = self.scene
        jobs, pods = await scene.objects(Kind.JOB), await scene.objects(Kind.POD)
        orphans = [
            name for name, pod in pods.items() if _job_of(pod) not in {j["metadata"]["uid"] for j in jobs.values()}
        ]
        await scene.delete_pods(*orphans)
        held = {_job_of(pod) for name, pod in pods.items() if name not in orphans}
        assert len(held) <= 1, "the job and its trial shared a node"
        for name, job in jobs.items():
            if job["metadata"]["uid"] in held or held or orphans:
                continue
            (pod,) = await scene.play_pods(name)
            if name != JOB:
                await self._end(name, pod)
            return

    async def _end(self, name: str, pod: str) -> None:
        text = render_block_summary(BlockReport(run=self.request.run, state="done", windows=(make_window(),)))
        times = {"startedAt": stamp(self.scene.now_s), "finishedAt": stamp(self.scene.now_s + 60)}
        ended = {"exitCode": 0, "reason": "Completed", "message": text, **times}
        await self.scene.set_pod(pod, "Succeeded", {"terminated": ended})
        self.scene.now_s += 60
        now = stamp(self.scene.now_s)
        conditions = [
            {"type": kind, "status": "True", "lastTransitionTime": now} for kind in ("SuccessCriteriaMet", "Complete")
        ]
        counts = {"active": 0, "ready": 0, "succeeded": 1, "completedIndexes": "0", "completionTime": now}
        body = {"status": {**counts, "conditions": conditions}}
        done = await self.scene.client.patch_status(Kind.JOB, self.scene.namespace, name, body)
        assert isinstance(done, dict), done

    def save(self) -> None:
        """The program writes a checkpoint."""
        assert self.scene.metrics is not None
        self.scene.metrics.checkpoints += 1

    async def live(self, passes: int = 12) -> None:
        """Passes, with a cluster that does its part and a program that saves."""
        for _ in range(passes):
            await self.advance()
            await self.play_cluster()
            self.save()
            self.scene.now_s += 2

    async def jobs(self) -> list[str]:
        """Jobs of the namespace."""
        return sorted(await self.scene.objects(Kind.JOB))


def _job_of(pod: Object) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["uid"])


def test_a_job_makes_way_for_a_block_and_comes_back(api_server: Cluster, api_namespace: str) -> None:
    """No block before a checkpoint; then the job's Job goes, the block runs in its place, and the job is there again."""

    async def scenario(scene: Scene) -> None:
        turns = await Turns.begin(scene)
        run = turns.request.run
        for _ in range(3):
            await turns.advance()
            assert await turns.jobs() == [JOB]
        turns.save()
        await turns.advance()
        assert await turns.jobs() == [run, JOB]
        assert (await turns.advance()).note.reason is Reason.MAKING_WAY
        assert await turns.jobs() == [run]
        for _ in range(2):
            assert (await turns.advance()).note.reason is Reason.MAKING_WAY
        await turns.live()
        assert await turns.jobs() == [JOB]
        assert turns.notes[-1] is Reason.AS_DECLARED
        (state,) = turns.recorded
        assert isinstance(state, Finished)
        assert (state.failure, state.node) == ("", "node-a")
        block_s, away_s = 4 * 60, 4 * (60 + STARTUP_S)
        assert block_s + 4 * STARTUP_S <= away_s <= state.held_device_s <= away_s + 4 * 30

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_operator_killed_at_any_write_leaves_the_job_running(
    api_server: Cluster, api_namespace: str, number: int, before: bool
) -> None:
    """The next one ends with the same objects: one block on record, the job back, the two never side by side."""

    async def scenario(scene: Scene) -> None:
        turns = await Turns.begin(scene)
        scene.transport.fault = cut_at(number, before)
        with pytest.raises(Died):
            await turns.live(20)
        turns.restart()
        await turns.live()
        assert await turns.jobs() == [JOB]
        assert turns.notes[-1] is Reason.AS_DECLARED
        (state,) = turns.recorded
        assert isinstance(state, Finished)
        assert state.failure == ""

    play(api_server, api_namespace, scenario)


def cut_at(number: int, before: bool) -> Callable[[Request, Any], Any]:
    """A fault that kills the operator at a write: before it arrives, or when it is done."""
    seen = [0]

    async def fault(request: Request, send: Any) -> Answer:
        seen[0] += request.method != "GET" and "/pods" not in request.path and not request.path.endswith("/status")
        if request.method == "GET" or seen[0] != number:
            answer: Answer = await send(request)
            return answer
        if not before:
            await send(request)
        raise Died

    return fault


def test_a_job_that_saves_nothing_is_never_stopped(api_server: Cluster, api_namespace: str) -> None:
    """The wait is bounded by the work that its owner can lose, and ends in words; a restart of the operator begins anew."""

    async def scenario(scene: Scene) -> None:
        turns = await Turns.begin(scene, checkpoint={"maxLostWork": "10m"})
        for number in range(20):
            if number == 5:
                turns.restart()
            assert turns.recorded == [] or number > 15
            await turns.advance()
            scene.now_s += 50
        (state,) = turns.recorded
        assert state == Unplaced(
            why="no_checkpoint: the job wrote none in 10 min; save more often, or use placement Spare"
        )
        assert turns.charged_s == [0.0]
        assert await turns.jobs() == [JOB]
        assert Reason.MAKING_WAY not in turns.notes

    play(api_server, api_namespace, scenario)


def test_a_checkpoint_grows_old_while_no_operator_is_there(api_server: Cluster, api_namespace: str) -> None:
    """The block's Job was made, and then nobody was there to stop the job: it works on, and the block is tried again."""

    async def scenario(scene: Scene) -> None:
        turns = await Turns.begin(scene)
        await asyncio.sleep(1.1)  # the server dates in whole seconds, and the job is the older of the two
        await turns.advance()
        turns.save()
        await turns.advance()
        assert await turns.jobs() == [turns.request.run, JOB]
        turns.restart()
        scene.now_s += 600
        await turns.advance()
        assert isinstance(turns.recorded[0], Unplaced)
        assert turns.charged_s == [0.0]
        await turns.advance()
        assert await turns.jobs() == [JOB]
        assert Reason.MAKING_WAY not in turns.notes

    play(api_server, api_namespace, scenario)


def test_devices_that_somebody_else_took_cost_the_experiment(api_server: Cluster, api_namespace: str) -> None:
    """The job stood still for nothing: the block is given up soon, the job is back, and the time is charged."""

    async def scenario(scene: Scene) -> None:
        turns = await Turns.begin(scene)
        await turns.advance()
        turns.save()
        await turns.advance()
        await turns.advance()
        assert await turns.jobs() == [turns.request.run]
        await scene.delete_pods(*await scene.objects(Kind.POD))
        scene.now_s += 160
        await turns.advance()
        assert isinstance(turns.recorded[0], Unplaced)
        assert turns.recorded[0].why.startswith("unschedulable")
        (charged_s,) = turns.charged_s
        assert 4 * 160 <= charged_s <= 4 * (160 + STARTUP_S + 30)
        await turns.live(6)
        assert await turns.jobs() == [JOB]

    play(api_server, api_namespace, scenario)


def test_only_a_checkpoint_that_was_just_written_counts(api_server: Cluster, api_namespace: str) -> None:
    """Where nobody has asked for a while, what was saved meanwhile is old: the next save is waited for."""

    async def scenario(scene: Scene) -> None:
        turns = await Turns.begin(scene)
        await turns.advance()
        turns.save()
        scene.now_s += 300
        for _ in range(2):
            await turns.advance()
            assert await turns.jobs() == [JOB]
        turns.save()
        await turns.advance()
        assert await turns.jobs() == [turns.request.run, JOB]

    play(api_server, api_namespace, scenario)
