"""The running job on a real API server: what is made, what is left alone, and what a cut pass leaves behind."""

import asyncio
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import ApiUnavailable
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.objects import read_job
from amdahl_loop.adapters.kube.probe import Probe, pack_probe, place_probe
from amdahl_loop.adapters.kube.transport import Answer, Request, UnreachableError
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from amdahl_probe.metrics import Metrics
from cluster_builders import KINDS, Scene, inventory, play, spec, stamp
from kube_builders import Died, cut_at, install_crds
from pod_builders import make_template
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

GPU = make_template(resources={"limits": {"nvidia.com/gpu": "4"}})


@pytest.fixture(scope="module", autouse=True)
def definitions(api_server: Cluster) -> None:
    """Our kinds are served."""
    install_crds(api_server)


def with_knobs(job: TrainingJob, **values: Any) -> TrainingJob:
    """The job with other values in force."""
    return job.with_knobs(Knobs.model_validate(job.spec.knobs.model_dump(exclude_none=True) | values))


def test_a_job_is_brought_about_and_then_left_alone(api_server: Cluster, api_namespace: str) -> None:
    """Four objects with derived names, owned by the TrainingJob but for the probe; after that a pass only reads."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec(replicas=2))
        state = await scene.settle(job)
        assert state.note.reason is Reason.STARTING
        assert await inventory(scene) == {
            "ConfigMap": [scene.probe.name, "pydocs-knobs"],
            "Service": ["pydocs-ranks"],
            "Job": ["pydocs-r0"],
        }
        for kind, name in ((Kind.CONFIG_MAP, "pydocs-knobs"), (Kind.SERVICE, "pydocs-ranks"), (Kind.JOB, "pydocs-r0")):
            (owner,) = (await scene.objects(kind))[name]["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["uid"], owner["controller"]) == ("TrainingJob", job.metadata.uid, True)
        probe = (await scene.objects(Kind.CONFIG_MAP))[scene.probe.name]
        assert probe["immutable"] is True
        assert "ownerReferences" not in probe["metadata"]
        await scene.play_pods("pydocs-r0")
        scene.transport.requests.clear()
        assert (await scene.settle(job)).note.reason is Reason.AS_DECLARED
        assert scene.transport.writes == []
        assert len(scene.transport.requests) <= 2

    play(api_server, api_namespace, scenario)


def test_managed_fields_and_audit_show_our_name(api_server: Cluster, api_namespace: str) -> None:
    """Whoever asks who wrote a field reads `amdahl-loop`."""

    async def scenario(scene: Scene) -> None:
        await scene.settle(await scene.create_job(spec=spec()))
        for kind in KINDS:
            for item in (await scene.objects(kind)).values():
                assert {entry["manager"] for entry in item["metadata"]["managedFields"]} == {"amdahl-loop"}

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize("before", [True, False], ids=["before the write", "after the write"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_death_at_any_write_changes_nothing(
    api_server: Cluster, api_namespace: str, number: int, before: bool
) -> None:
    """The next operator ends with the same objects, each of them once."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec(replicas=2))
        scene.transport.fault = cut_at(number, before)
        with pytest.raises(Died):
            await scene.settle(job)
        scene.transport.fault = None
        await scene.settle(job)
        assert await inventory(scene) == {
            "ConfigMap": [scene.probe.name, "pydocs-knobs"],
            "Service": ["pydocs-ranks"],
            "Job": ["pydocs-r0"],
        }

    play(api_server, api_namespace, scenario)


def test_two_operators_make_one_job(api_server: Cluster, api_namespace: str) -> None:
    """Passes side by side meet each other's objects and adopt them."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec(replicas=2))
        for _ in range(4):
            await asyncio.gather(*(scene.running(job).ensure() for _ in range(4)))
        assert (await inventory(scene))["Job"] == ["pydocs-r0"]
        assert (await scene.settle(job)).note.reason is Reason.STARTING

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize(
    ("kind", "name", "more"),
    [
        (Kind.CONFIG_MAP, "pydocs-knobs", {"data": {"mine": "1"}}),
        (Kind.SERVICE, "pydocs-ranks", {"spec": {"clusterIP": "None"}}),
        (
            Kind.JOB,
            "pydocs-r0",
            {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}},
        ),
    ],
)
def test_a_squatter_is_named_and_left_alone(
    api_server: Cluster, api_namespace: str, kind: Kind, name: str, more: dict[str, Any]
) -> None:
    """Somebody else's object under a name that the job needs stands as it is; the job says so."""

    async def scenario(scene: Scene) -> None:
        await scene.client.create(kind, scene.namespace, {"metadata": {"name": name}, **more})
        before = (await scene.objects(kind))[name]["metadata"]["resourceVersion"]
        state = await scene.settle(await scene.create_job(spec=spec()))
        assert state.note.reason is Reason.SQUATTED
        assert name in state.note.sentence
        assert (await scene.objects(kind))[name]["metadata"]["resourceVersion"] == before

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize("has_pods", [True, False])
def test_a_job_whose_labels_were_stripped_gets_them_back(
    api_server: Cluster, api_namespace: str, has_pods: bool
) -> None:
    """It names its owner, so it is ours: neither waited for, nor doubled, nor asked for again and again."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec())
        await scene.settle(job)
        if has_pods:
            await scene.play_pods("pydocs-r0")
        before = (await scene.objects(Kind.JOB))["pydocs-r0"]["metadata"]
        gone = dict.fromkeys(before["labels"]) | {"mine": "stays"}
        await scene.client.patch(Kind.JOB, scene.namespace, "pydocs-r0", {"metadata": {"labels": gone}})
        scene.transport.requests.clear()
        state = await scene.settle(job)
        after = (await scene.objects(Kind.JOB))["pydocs-r0"]["metadata"]
        assert after["uid"] == before["uid"]
        ours = {name: text for name, text in before["labels"].items() if name.startswith("amdahl-loop.io/")}
        assert after["labels"] == ours | {"mine": "stays"}
        assert state.note.reason is (Reason.AS_DECLARED if has_pods else Reason.STARTING)
        assert len(scene.transport.writes) == (1 if has_pods else 3), "Service and Job are there; then the labels"

    play(api_server, api_namespace, scenario)


def test_foreign_code_under_the_probes_name_is_never_mounted(api_server: Cluster, api_namespace: str) -> None:
    """The job runs on, without the probe."""

    async def scenario(scene: Scene) -> None:
        body = {"metadata": {"name": scene.probe.name}, "binaryData": {"probe.zip": "ZXZpbA=="}}
        await scene.client.create(Kind.CONFIG_MAP, scene.namespace, body)
        await scene.settle(await scene.create_job(spec=spec()))
        pod = (await scene.objects(Kind.JOB))["pydocs-r0"]["spec"]["template"]["spec"]
        assert [volume["name"] for volume in pod["volumes"]] == ["amdahl-knobs"]
        assert "PYTHONPATH" not in [item["name"] for item in pod["containers"][0]["env"]]

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        pytest.param(make_template({"restartPolicyy": "Never"}), "restartPolicyy", id="a field that is misspelt"),
        pytest.param(
            make_template(resources={"limits": {"cpu": "1", "memory": ".5Gi"}, "requests": {"cpu": "2"}}),
            "must be less than or equal to",
            id="a request above its limit",
        ),
        pytest.param(make_template({"volumes": [{"name": "v", "bogus": {}}]}), "bogus", id="a volume of no kind"),
        pytest.param(
            make_template(volumeMounts=[{"name": "nobody", "mountPath": "/x"}]), "nobody", id="no such volume"
        ),
        pytest.param(make_template(imagePullPolicy="Sometimes"), "Sometimes", id="a word that is not offered"),
    ],
)
def test_the_servers_own_words_reach_the_owner(
    api_server: Cluster, api_namespace: str, template: dict[str, Any], said: str
) -> None:
    """A template that the server refuses stalls the job with the server's message; no Job is left."""

    async def scenario(scene: Scene) -> None:
        state = await scene.settle(await scene.create_job(spec=spec(template=template)))
        assert state.note.reason is Reason.REFUSED_BY_SERVER
        assert said in state.note.sentence
        assert await scene.objects(Kind.JOB) == {}

    play(api_server, api_namespace, scenario)


def test_values_that_can_be_switched_touch_the_config_map_alone(api_server: Cluster, api_namespace: str) -> None:
    """Live: the file gets the next number and the Job stays the very same, with its pods."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec())
        await scene.settle(job, live=True)
        await scene.play_pods("pydocs-r0")
        uid = (await scene.objects(Kind.JOB))["pydocs-r0"]["metadata"]["uid"]
        scene.now_s += 100
        state = await scene.settle(with_knobs(job, dataloader_workers=4), live=True)
        values = (await scene.objects(Kind.CONFIG_MAP))["pydocs-knobs"]
        assert values["data"]["AMDAHL_DATALOADER_WORKERS"] == "4"
        assert values["data"]["knobs.json"] == '{"knobs": {"dataloaderWorkers": 4}, "seq": 2}'
        assert (await scene.objects(Kind.JOB))["pydocs-r0"]["metadata"]["uid"] == uid
        assert state.note.reason is Reason.AS_DECLARED

    play(api_server, api_namespace, scenario)


def counted(saves: int) -> Metrics:
    """Counters of a program that has written so many checkpoints."""
    metrics = Metrics({"rank": "0", "world": "1", "by": "probe"})
    metrics.checkpoints = saves
    return metrics


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({"dataloader_workers": 0}, {"dataloader_workers": 4}, id="S0 in a program that cannot switch"),
        pytest.param({"gpus_per_replica": 4}, {"gpus_per_replica": 2}, id="S1"),
    ],
)
def test_a_restart_waits_for_a_checkpoint_and_for_the_old_pods(
    api_server: Cluster, api_namespace: str, before: dict[str, int], after: dict[str, int]
) -> None:
    """Nothing is taken away before a checkpoint is written, and nothing is started beside what is still there."""

    async def scenario(scene: Scene) -> None:
        job = with_knobs(await scene.create_job(spec=spec(template=GPU, knobs={})), **before)
        await scene.settle(job)
        pods = await scene.play_pods("pydocs-r0")
        scene.now_s += 100
        wanted = with_knobs(job, **after)
        scene.metrics = counted(saves=3)
        state = await scene.settle(wanted)
        assert (state.note.reason, state.note.sentence) == (
            Reason.REPLACING,
            "The new values take effect after the next checkpoint.",
        )
        assert (await inventory(scene))["Job"] == ["pydocs-r0"]
        scene.metrics = counted(saves=4)
        state = await scene.settle(wanted)
        assert "Waiting for 1 pods" in state.note.sentence
        assert (await inventory(scene))["Job"] == []
        await scene.delete_pods(*pods)
        await scene.settle(wanted)
        (name,) = (await inventory(scene))["Job"]
        assert name == "pydocs-r1"
        container = (await scene.objects(Kind.JOB))[name]["spec"]["template"]["spec"]["containers"][0]
        gpus = str(after.get("gpus_per_replica", 4))
        assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("before", [True, False], ids=["before the write", "after the write"])
def test_a_death_while_a_revision_changes_leaves_one_job(
    api_server: Cluster, api_namespace: str, number: int, before: bool
) -> None:
    """The number of the next revision is written down before the old Job is taken away, so none is used twice."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec(template=GPU))
        await scene.settle(job)
        pods = await scene.play_pods("pydocs-r0")
        changed = job.spec.model_copy(update={"template": make_template_model("example/trainer:2")})
        wanted = job.model_copy(update={"spec": changed})
        scene.transport.fault = cut_at(number, before)
        for _ in range(2):
            try:
                await scene.settle(wanted)
                await scene.delete_pods(*pods)
            except Died:
                scene.transport.fault = None
        await scene.settle(wanted)
        await scene.delete_pods(*pods)
        await scene.settle(wanted)
        assert (await inventory(scene))["Job"] == ["pydocs-r1"]

    play(api_server, api_namespace, scenario)


def make_template_model(image: str) -> Any:
    """A parsed template of this image."""
    from amdahl_loop.domain.template import PodTemplate

    return PodTemplate.model_validate(make_template(image=image))


def test_another_version_of_the_operator_replaces_no_job(api_server: Cluster, api_namespace: str) -> None:
    """A new probe reaches new Jobs only; an older one stays as long as a Job mounts it, and is swept when the next is placed."""

    async def scenario(scene: Scene) -> None:
        job, old = await scene.create_job(spec=spec()), scene.probe
        await scene.settle(job)
        await scene.play_pods("pydocs-r0")
        scene.probe = Probe(b"the next version's zip")
        scene.transport.requests.clear()
        await scene.settle(job)
        assert scene.transport.writes == []
        await place_probe(scene.client, scene.namespace, scene.probe)
        assert {old.name, scene.probe.name} <= (await scene.objects(Kind.CONFIG_MAP)).keys()
        running = (await scene.objects(Kind.JOB))["pydocs-r0"]["metadata"]
        assert await scene.client.delete(Kind.JOB, scene.namespace, "pydocs-r0", running["uid"]) is True
        third = Probe(b"the zip of the version after that")
        await place_probe(scene.client, scene.namespace, third)
        probes = {name for name in await scene.objects(Kind.CONFIG_MAP) if name.startswith("amdahl-probe-")}
        assert probes == {third.name}

    play(api_server, api_namespace, scenario)


def test_the_real_probe_fits_into_a_config_map(api_server: Cluster, api_namespace: str) -> None:
    """Packed twice it is the same object; placed twice it is made once."""

    async def scenario(scene: Scene) -> None:
        probe = pack_probe()
        assert probe == pack_probe()
        placed = [await place_probe(scene.client, scene.namespace, probe) for _ in range(2)]
        assert placed == [True, False]

    play(api_server, api_namespace, scenario)


def test_suspending_lets_the_pods_go_and_resuming_brings_them_back(api_server: Cluster, api_namespace: str) -> None:
    """Our own Job's `suspend`; a Job that a queue manages is deleted instead, since that field is the queue's."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec())
        await scene.settle(job)
        stopped = job.model_copy(update={"spec": job.spec.model_copy(update={"suspend": True})})
        assert (await scene.settle(stopped)).note.reason is Reason.SUSPENDED
        assert (await scene.objects(Kind.JOB))["pydocs-r0"]["spec"]["suspend"] is True
        await scene.settle(job)
        assert (await scene.objects(Kind.JOB))["pydocs-r0"]["spec"]["suspend"] is False
        queue = {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "q"}}}
        queued = await scene.create_job("queued", spec=spec(), **queue)
        await scene.settle(queued)
        stopped = queued.model_copy(update={"spec": queued.spec.model_copy(update={"suspend": True})})
        assert (await scene.settle(stopped)).note.reason is Reason.SUSPENDED
        assert "queued-r0" not in await scene.objects(Kind.JOB)
        await scene.settle(queued)
        assert "queued-r0" in await scene.objects(Kind.JOB)

    play(api_server, api_namespace, scenario)


def test_a_job_that_its_queue_holds_back_is_queued(api_server: Cluster, api_namespace: str) -> None:
    """The queue's `suspend` is never written."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec(), metadata={"labels": {"kueue.x-k8s.io/queue-name": "q"}})
        await scene.settle(job)
        await scene.client.patch(Kind.JOB, scene.namespace, "pydocs-r0", {"spec": {"suspend": True}})
        scene.transport.requests.clear()
        assert (await scene.settle(job)).note.reason is Reason.QUEUED
        assert scene.transport.writes == []

    play(api_server, api_namespace, scenario)


def test_a_job_that_failed_for_good_says_why_and_starts_anew_with_other_values(
    api_server: Cluster, api_namespace: str
) -> None:
    """Failed: the words of the Job; values set after that deserve a start of their own."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec())
        await scene.settle(job)
        failed = {
            "type": "Failed",
            "status": "True",
            "reason": "BackoffLimitExceeded",
            "message": "Job has reached the specified backoff limit",
            "lastTransitionTime": stamp(scene.now_s),
        }
        target = failed | {"type": "FailureTarget"}
        await scene.set_job("pydocs-r0", failed=7, active=0, conditions=[target, failed])
        state = await scene.settle(job)
        assert state.note.reason is Reason.JOB_FAILED
        assert "backoff limit" in state.failing
        scene.now_s += 100
        await scene.settle(with_knobs(job, dataloader_workers=2))
        assert (await inventory(scene))["Job"] == ["pydocs-r1"]

    play(api_server, api_namespace, scenario)


def test_values_that_change_in_the_second_of_the_start_are_told_apart(api_server: Cluster, api_namespace: str) -> None:
    """Job, pod and change bear the same date: the numbers say that the pod may have the old values, and it is started anew."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec())
        await scene.settle(job)
        pods = await scene.play_pods("pydocs-r0")
        created = read_job((await scene.objects(Kind.JOB))["pydocs-r0"]).created_at_s
        scene.now_s = created
        wanted = with_knobs(job, dataloader_workers=2)
        scene.metrics = counted(saves=3)
        state = await scene.settle(wanted)
        assert state.note.sentence == "The new values take effect after the next checkpoint."
        scene.metrics = counted(saves=4)
        await scene.settle(wanted)
        await scene.delete_pods(*pods)
        await scene.settle(wanted)
        await scene.play_pods("pydocs-r1")
        assert (await scene.settle(wanted)).note.reason is Reason.AS_DECLARED
        values = (await scene.objects(Kind.CONFIG_MAP))["pydocs-knobs"]["metadata"]["annotations"]
        made = (await scene.objects(Kind.JOB))["pydocs-r1"]["metadata"]["annotations"]
        assert made["amdahl-loop.io/values"] == values["amdahl-loop.io/values"] == "2"

    play(api_server, api_namespace, scenario)


def test_a_job_of_the_same_name_is_another_job(api_server: Cluster, api_namespace: str) -> None:
    """Deleted and made again: what is left of the first one is not the second one's."""

    async def scenario(scene: Scene) -> None:
        first = await scene.create_job(spec=spec())
        await scene.settle(first)
        assert await scene.client.delete(Kind.TRAINING_JOB, scene.namespace, "pydocs", first.metadata.uid) is True
        second = await scene.create_job(spec=spec())
        state = await scene.settle(second)
        assert state.note.reason is Reason.SQUATTED

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize("name", ["n" * 63, "7" * 63, "9-lives"])
def test_long_names_and_digits_are_no_obstacle(api_server: Cluster, api_namespace: str, name: str) -> None:
    """Every child's name is one that the server takes, with room for host names of all ranks."""

    async def scenario(scene: Scene) -> None:
        state = await scene.settle(await scene.create_job(name, spec=spec(replicas=4096)))
        assert state.note.reason is Reason.STARTING

    play(api_server, api_namespace, scenario)


def test_a_server_that_is_away_is_the_queues_to_wait_for(api_server: Cluster, api_namespace: str) -> None:
    """Nothing is decided on what could not be read."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job(spec=spec())

        async def fault(_: Request, __: Any) -> Answer:
            raise UnreachableError("connection refused")

        scene.transport.fault = fault
        with pytest.raises(ApiUnavailable):
            await scene.settle(job)

    play(api_server, api_namespace, scenario)
