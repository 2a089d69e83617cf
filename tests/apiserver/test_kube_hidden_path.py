"""When does a job run on without the probe, because the probe hides a path that its image sets?"""

from typing import Any

import pytest

from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.template import PodTemplate
from cluster_builders import Scene, inventory, play, spec
from kube_builders import Died, cut_at, install_crds
from pod_builders import make_template
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def definitions(api_server: Cluster) -> None:
    """Our kinds are served."""
    install_crds(api_server)


async def die_early(scene: Scene, job_name: str, times: int) -> list[str]:
    """A Job whose program ends two seconds after each start, in a pod that is restarted in place."""
    pods = await scene.play_pods(job_name)
    for name in pods:
        await scene.restart_trainer(name, lasted_s=2, times=times)
    await scene.set_job(job_name, active=len(pods), ready=0)
    return pods


def with_template(job: TrainingJob, template: dict[str, Any]) -> TrainingJob:
    """The job after its owner has written another template."""
    changed = {"template": PodTemplate.model_validate(template)}
    return job.model_copy(update={"spec": job.spec.model_copy(update=changed)})


async def env_in(scene: Scene, job_name: str) -> dict[str, Any]:
    """Variables of a Job's trainer."""
    job = (await scene.objects(Kind.JOB))[job_name]
    return {item["name"]: item.get("value") for item in job["spec"]["template"]["spec"]["containers"][0]["env"]}


def test_a_program_that_ends_at_its_start_runs_without_the_probe(api_server: Cluster, api_namespace: str) -> None:
    """[P] Twice is enough: the next revision is the template's own pod, and stays so; a template that names the path gets the probe back."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec(template=make_template({"restartPolicy": "OnFailure"})))
        await scene.settle(job)
        pods = await die_early(scene, "pydocs-r0", times=1)
        assert (await scene.settle(job)).note.reason is Reason.STARTING
        await scene.restart_trainer(pods[0], lasted_s=2, times=2)
        assert "Waiting for 1 pods" in (await scene.settle(job)).note.sentence
        await scene.delete_pods(*pods)
        state = await scene.settle(job)
        assert state.is_unprobed
        assert (await inventory(scene))["Job"] == ["pydocs-r1"]
        assert "PYTHONPATH" not in await env_in(scene, "pydocs-r1")
        pod = (await scene.objects(Kind.JOB))["pydocs-r1"]["spec"]["template"]["spec"]
        assert [volume["name"] for volume in pod["volumes"]] == ["amdahl-knobs"]
        pods = await scene.play_pods("pydocs-r1")
        scene.transport.requests.clear()
        state = await scene.settle(job)
        assert (state.note.reason, state.is_unprobed) == (Reason.AS_DECLARED, True)
        assert scene.transport.writes == []
        named = with_template(job, make_template(env=[{"name": "PYTHONPATH", "value": "/image/lib"}]))
        await scene.settle(named)
        await scene.delete_pods(*pods)
        state = await scene.settle(named)
        assert not state.is_unprobed
        assert (await env_in(scene, "pydocs-r2"))["PYTHONPATH"] == "/amdahl/probe/probe.zip:/image/lib"

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("before", [True, False], ids=["before the write", "after the write"])
def test_a_death_while_the_probe_is_taken_out_changes_nothing(
    api_server: Cluster, api_namespace: str, number: int, before: bool
) -> None:
    """It is on record in the write that names the next revision: no operator starts that one with the probe again."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec(template=make_template({"restartPolicy": "OnFailure"})))
        await scene.settle(job)
        pods = await die_early(scene, "pydocs-r0", times=2)
        scene.transport.fault = cut_at(number, before)
        for _ in range(2):
            try:
                await scene.settle(job)
                await scene.delete_pods(*pods)
            except Died:
                scene.transport.fault = None
        await scene.settle(job)
        await scene.delete_pods(*pods)
        assert (await scene.settle(job)).is_unprobed
        assert (await inventory(scene))["Job"] == ["pydocs-r1"]
        assert "PYTHONPATH" not in await env_in(scene, "pydocs-r1")

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize(
    ("template", "measured"),
    [
        pytest.param(make_template(env=[{"name": "PYTHONPATH", "value": "/app"}]), False, id="the path is named"),
        pytest.param(make_template(), True, id="it was measured"),
    ],
)
def test_a_program_that_cannot_have_lost_its_path_keeps_the_probe(
    api_server: Cluster, api_namespace: str, template: dict[str, Any], measured: bool
) -> None:
    """It ends for reasons of its own, which its owner is told as ever."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec(template=template))
        await scene.settle(job)
        await die_early(scene, "pydocs-r0", times=4)
        scene.transport.requests.clear()
        state = await scene.running(job, measured=measured).ensure()
        assert scene.transport.writes == []
        assert "ended 4 times" in state.failing

    play(api_server, api_namespace, scenario)
