"""What does a pass ask of the server, and when does it ask for nothing but the job itself?"""

from collections.abc import Callable
from dataclasses import replace

from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.loading import load_index
from amdahl_loop.recollection import JobKey, Recollection
from amdahl_loop.returning import find_left
from kube_builders import see_job
from pass_builders import Passes, said
from pod_builders import make_template


def test_a_new_job_takes_six_requests(passes: Callable[..., None]) -> None:
    """Read it, ask for pods of a namesake, make values, Service and Job, and say so; the probe is there already."""

    async def scenario(job: Passes) -> None:
        scene, another = job.scene, JobKey(job.scene.namespace, "another")
        await job.settle()
        await scene.create_job("another", spec={"template": make_template(), "knobs": {"dataloaderWorkers": 0}})
        scene.transport.requests.clear()
        assert await job.operator.advance(another)
        asked = [
            (request.method, request.path.split(f"/{scene.namespace}/")[1]) for request in scene.transport.requests
        ]
        assert asked == [
            ("GET", "trainingjobs/another"),
            ("GET", "pods"),
            ("POST", "configmaps"),
            ("POST", "services"),
            ("POST", "jobs"),
            ("PATCH", "trainingjobs/another/status"),
        ]

    passes(scenario)


def test_a_job_at_rest_takes_one_request(passes: Callable[..., None]) -> None:
    """It is read, and it is as it was left; somebody else's annotation makes no difference, and its owner's word does."""

    async def scenario(job: Passes) -> None:
        scene, names = job.scene, (job.scene.namespace, "pydocs")
        seen = await job.settle()
        assert said(seen, "Suspended")[0] == "True"
        only = [("GET", "trainingjobs/pydocs")]
        assert await job.requests() == only
        await scene.client.patch(Kind.TRAINING_JOB, *names, {"metadata": {"annotations": {"example.com/woken": "now"}}})
        assert await job.requests() == only
        job.operator.recollection.rests.hear(job.key)
        assert await job.requests() == [*only, ("GET", "jobs"), ("GET", "pods")]
        assert await job.requests() == only
        await scene.client.patch(Kind.TRAINING_JOB, *names, {"spec": {"suspend": False}})
        await job.settle()
        assert "pydocs-r0" in await scene.objects(Kind.JOB)

    passes(scenario, suspend=True)


def test_a_suspended_job_that_had_nothing_at_the_start_takes_two_requests(passes: Callable[..., None]) -> None:
    """The lists of the start answer for it; once it is resumed, and has a Job, they do not any more."""

    async def scenario(job: Passes) -> None:
        scene, known = job.scene, job.operator.recollection
        known.since_s = scene.clock() + 1.0
        await known.finished.load(scene.client, scene.namespace)
        await known.finished.load_pods(scene.client, scene.namespace)
        assert await job.requests() == [("GET", "trainingjobs/pydocs"), ("PATCH", "trainingjobs/pydocs/status")]
        for suspend in (False, True):
            change = {"spec": {"suspend": suspend}}
            await scene.client.patch(Kind.TRAINING_JOB, scene.namespace, "pydocs", change)
            seen = await job.settle()
        assert said(seen, "Suspended")[0] == "True"
        assert (await scene.objects(Kind.JOB))["pydocs-r0"]["spec"]["suspend"] is True

    passes(scenario, suspend=True)


def test_a_job_that_was_left_at_rest_needs_no_look_after_a_restart(passes: Callable[..., None]) -> None:
    """The next pass, some minutes later, only reads it; once its owner has resumed it, it is looked at."""

    async def scenario(job: Passes) -> None:
        scene, names = job.scene, (job.scene.namespace, "pydocs")
        shown = await job.settle()
        known = Recollection(since_s=scene.clock() + 1.0, index=await load_index(scene.client, [scene.namespace]))
        await known.finished.load(scene.client, scene.namespace)
        await known.finished.load_pods(scene.client, scene.namespace)
        left = find_left(shown, known, scene.clock())
        assert left is not None
        assert "Suspended" in left.told.holds
        known.rests.keep(job.key, left.rest)
        job.operator = replace(job.operator, recollection=known)
        assert await job.requests() == [("GET", "trainingjobs/pydocs")]
        await scene.client.patch(Kind.TRAINING_JOB, *names, {"spec": {"suspend": False}})
        assert find_left(await see_job(scene.client, scene.namespace), known, scene.clock()) is None

    passes(scenario, suspend=True)


def test_a_new_job_that_was_there_before_the_operator_takes_five_requests(passes: Callable[..., None]) -> None:
    """The lists of the start say that there is no pod of a namesake."""

    async def scenario(job: Passes) -> None:
        scene, known = job.scene, job.operator.recollection
        known.since_s = scene.clock() + 1.0
        await known.finished.load(scene.client, scene.namespace)
        await known.finished.load_pods(scene.client, scene.namespace)
        asked = await job.requests()
        assert [(method, what) for method, what in asked if not what.startswith("configmaps")] == [
            ("GET", "trainingjobs/pydocs"),
            ("POST", "services"),
            ("POST", "jobs"),
            ("PATCH", "trainingjobs/pydocs/status"),
        ]

    passes(scenario)
