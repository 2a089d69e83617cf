"""Blocks and the running job on real kubelets, in an image that holds no package of ours: what pods say, and their ends."""

import asyncio
from typing import Any

import pytest

from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.outcomes import CONFIG_LIMIT_S
from amdahl_loop.domain.evidence import read_block
from amdahl_loop.domain.experiments import BlockRecord
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.runs import Finished, block_request, observation_request
from amdahl_loop.domain.telemetry import BlockReport, parse_block_summary
from amdahl_loop.domain.tuning import ProfileName
from cluster_builders import Scene, play
from pods_on_nodes import OBSERVATION, Loop, template, until
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow


def test_a_block_measures_both_arms_in_real_pods(cluster: Cluster, namespace: str) -> None:
    """Four windows in one restricted pod; the variant's are faster; nothing is left of it after it is stopped."""

    async def scenario(scene: Scene) -> None:
        loop = await Loop.begin(scene)
        spec = loop.plan.blocks[2]
        state, report = await loop.run_block(2)
        assert state.failure == "", state
        assert report is not None, state.summary
        record = BlockRecord(
            spec=spec,
            node=state.node,
            started_at_s=state.started_at_s,
            held_device_s=state.held_device_s,
            report=report,
        )
        seen = read_block(loop.plan, record)
        assert seen.is_measured, (seen.problem, state.summary)
        assert 0.2 < seen.effect < 0.6  # 60 ms against 40 ms a step: log 1.5 is 0.41
        assert state.node in cluster.node_names
        assert 4 < state.held_device_s < 200
        await loop.runner.stop(report.run)

        async def is_gone() -> bool:
            return not await scene.objects(Kind.POD)

        await until(is_gone)

    play(cluster, namespace, scenario)


def test_a_block_of_two_pods_is_one_report(cluster: Cluster, namespace: str) -> None:
    """Both pods run the same recorded schedule; devices and samples of both count, the slower one's time is judged."""

    async def scenario(scene: Scene) -> None:
        loop = await Loop.begin(scene, replicas=2)
        state, report = await loop.run_block(2)
        assert state.failure == "", state
        assert report is not None, state.summary
        assert [window.devices for window in report.windows] == [2, 2, 2, 2]
        assert all(window.samples == pytest.approx(2 * 8 * window.steps, rel=0.3) for window in report.windows)

    play(cluster, namespace, scenario)


def test_the_running_job_is_observed_by_its_counters(cluster: Cluster, namespace: str) -> None:
    """The pod is the user's own, the probe came by PYTHONPATH, and two scrapes of the pod's address are a report."""

    async def scenario(scene: Scene) -> None:
        loop = await Loop.begin(scene)

        async def is_running() -> bool:
            return (await loop.running.ensure()).note.reason is Reason.AS_DECLARED

        await until(is_running)
        request = observation_request(OBSERVATION, loop.job.spec.knobs, PROFILES[ProfileName.QUICK], seed=1)
        await loop.runner.submit(loop.job, request)

        async def is_over() -> Finished | None:
            state = await loop.runner.find(OBSERVATION)
            return state if isinstance(state, Finished) else None

        state = await until(is_over)
        report = parse_block_summary(state.summary, OBSERVATION)
        assert isinstance(report, BlockReport), state
        (window,) = report.windows
        assert 600 < window.phases_ppk[3] < 720  # 40 of 60 ms wait for data

    play(cluster, namespace, scenario)


def test_a_variant_that_eats_all_memory_loses(cluster: Cluster, namespace: str) -> None:
    """Whoever ends it, supervisor or kernel, the report says which arm it was, and the arm is at fault."""

    async def scenario(scene: Scene) -> None:
        loop = await Loop.begin(scene, after=7)
        state, report = await loop.run_block(2)
        assert report is not None, state
        record = BlockRecord(
            spec=loop.plan.blocks[2], started_at_s=0, held_device_s=0, report=report, failure=state.failure
        )
        seen = read_block(loop.plan, record)
        assert (seen.culprit, seen.fault) == ("B", "oom"), (state, seen)

    play(cluster, namespace, scenario)


@pytest.mark.parametrize(
    ("fields", "trial", "word"),
    [
        pytest.param({}, {"python": "python9"}, "no_python", id="no such interpreter"),
        pytest.param({"image": "amdahl-testbed/nothing:1"}, {}, "image_pull", id="no such image"),
        pytest.param(
            {"env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "nobody", "key": "k"}}}]}, {}, "config_error",
            id="no such ConfigMap",
        ),
        pytest.param({"workingDir": "/proc/nowhere"}, {}, "config_error", id="no such folder"),
    ],
)  # fmt: skip
def test_what_cannot_start_says_so(
    cluster: Cluster, namespace: str, fields: dict[str, Any], trial: dict[str, Any], word: str
) -> None:
    """Each in its own word, from what a real kubelet writes. How long that is borne is not waited for here."""

    async def scenario(scene: Scene) -> None:
        scene.ahead_s = CONFIG_LIMIT_S
        loop = await Loop.begin(scene, template=template(**fields), tuning={"trial": trial})
        state, _ = await loop.run_block(2)
        assert state.failure.startswith(word), state

    play(cluster, namespace, scenario)


def test_a_block_is_stopped_within_half_a_minute(cluster: Cluster, namespace: str) -> None:
    """The supervisor ends what it runs, whatever the user's own grace period."""

    async def scenario(scene: Scene) -> None:
        slow = template({"terminationGracePeriodSeconds": 3600})
        loop = await Loop.begin(scene, template=slow)
        request = block_request(loop.plan, loop.plan.blocks[2], startup_s=0.5, step_s=60.0)
        await loop.runner.submit(loop.job, request)

        async def is_running() -> bool:
            return any(pod["status"].get("phase") == "Running" for pod in (await scene.objects(Kind.POD)).values())

        await until(is_running)
        loss = await loop.runner.stop(request.run)
        assert loss is not None
        for _ in range(60):
            if not await scene.objects(Kind.POD):
                return
            await asyncio.sleep(0.5)
        raise AssertionError("the pod is still there after 30 s")

    play(cluster, namespace, scenario)
