"""Blocks and observations on a real API server: one Job a block whatever happens, and nothing of anybody else's touched."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from amdahl_loop.adapters.kube.experiments import render
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.runner import KubeRunner, Memory
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Observation
from amdahl_loop.domain.phases import Breakdown, account
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Absent, Finished, Running, RunRequest, Unplaced, block_request, observation_request
from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import BlockReport, parse_block_summary
from amdahl_loop.domain.tuning import ProfileName
from amdahl_probe.metrics import Metrics
from builders import make_window
from cluster_builders import PRIORITY_CLASS, Scene, play, stamp
from judge_builders import make_plan
from kube_builders import install_crds, lose_answers, refuse
from pod_builders import make_template
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

OBSERVATION = "pydocs-ffffffff-o0"
RICH = make_template(
    {
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
        "serviceAccountName": "default",
        "initContainers": [{"name": "fetch", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]
                }
            }
        },
    },
    env=[{"name": "PYTHONPATH", "value": "/app"}, {"name": "N", "value": "$(AMDAHL_GPUS_PER_REPLICA)"}],
    volumeMounts=[{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/checkpoints"}],
    resources={"limits": {"nvidia.com/gpu": "4", "memory": "8Gi", "cpu": "3"}},
    livenessProbe={"tcpSocket": {"port": 80}},
)


@pytest.fixture(scope="module", autouse=True)
def definitions(api_server: Cluster) -> None:
    """Our kinds are served, and trials have their priority class."""
    install_crds(api_server)
    api_server.admin.kubectl("apply", "-f", "-", stdin=PRIORITY_CLASS)


@dataclass
class Trial:
    """A job, its experiment's plan, and the operator's runner for it."""

    scene: Scene
    job: TrainingJob
    plan: Plan
    memory: Memory
    reserved: list[tuple[str, str, float]]
    is_due: bool = True
    """Whether the ledger has no record of the block yet."""

    @property
    def runner(self) -> KubeRunner:
        """As a fresh pass sees it."""

        async def reserve(experiment: str, run: str, device_s: float) -> bool:
            self.reserved.append((experiment, run, device_s))
            return self.is_due

        return KubeRunner(
            self.scene.client,
            self.job,
            self.scene.probe,
            self.memory,
            reserve=reserve,
            clock=lambda: self.scene.now_s,
            fetch=self.scene.fetch,
            plan_hashes={self.plan.name: self.plan.hash},
        )

    def request(self, index: int = 0) -> RunRequest:
        """The run of a planned block."""
        return block_request(self.plan, self.plan.blocks[index], startup_s=3.0, step_s=0.1)

    async def submit(self, index: int = 0) -> str:
        """Submit a block; its run."""
        await self.runner.submit(self.job, self.request(index))
        return self.request(index).run

    async def jobs(self) -> list[str]:
        """Jobs of the namespace."""
        return sorted(await self.scene.objects(Kind.JOB))


async def begin(scene: Scene, **spec: Any) -> Trial:
    """A job and its experiment's plan on the server."""
    fields = {"template": make_template(), "knobs": {"dataloaderWorkers": 0}, **spec}
    job = await scene.create_job(spec=fields)
    plan = make_plan(name="pydocs-0123456789", job="pydocs", job_uid=job.metadata.uid)
    made = await scene.client.create(Kind.EXPERIMENT, scene.namespace, render(plan, scene.namespace))
    assert isinstance(made, dict), made
    return Trial(scene, job, plan, Memory(), [])


def summary(run: str) -> str:
    """What a supervisor leaves of a good block."""
    text = render_block_summary(BlockReport(run=run, state="done", windows=(make_window(),)))
    assert text is not None
    return text


def ended(exit_code: int, message: str, now_s: float) -> dict[str, Any]:
    """A container that has ended."""
    times = {"startedAt": stamp(now_s - 60), "finishedAt": stamp(now_s)}
    reason = "Completed" if exit_code == 0 else "Error"
    return {"terminated": {"exitCode": exit_code, "reason": reason, "message": message, **times}}


def test_a_block_is_one_job_that_the_server_takes(api_server: Cluster, api_namespace: str) -> None:
    """A rich template under strict validation; owned, labelled and annotated as agreed; the budget reserved before it."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(
            scene,
            template=RICH,
            knobs={"dataloaderWorkers": 0, "gpusPerReplica": 4},
            tuning={"trial": {"scratchPaths": ["/checkpoints"]}},
            replicas=2,
        )
        assert await trial.runner.find("pydocs-0123456789-p0") == Absent()
        run = await trial.submit()
        assert await trial.runner.find(run) == Running()
        (item,) = (await scene.objects(Kind.JOB)).values()
        metadata = item["metadata"]
        assert metadata["name"] == run
        assert metadata["labels"]["amdahl-loop.io/experiment"] == trial.plan.name
        assert metadata["labels"]["amdahl-loop.io/stage"] == "proof"
        assert metadata["annotations"]["amdahl-loop.io/plan-hash"] == trial.plan.hash
        assert metadata["ownerReferences"][0]["uid"] == trial.job.metadata.uid
        assert trial.reserved == [(trial.plan.name, run, trial.request().reserved_device_s(2))]

    play(api_server, api_namespace, scenario)


def test_a_block_on_record_is_not_started_again(api_server: Cluster, api_namespace: str) -> None:
    """Another operator has run it since this pass read the ledger: no Job is made, and nothing is said of the block."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene)
        trial.is_due = False
        assert await trial.runner.find(await trial.submit()) == Absent()
        assert await trial.jobs() == []

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda: lose_answers("POST", times=1), id="answer lost"),
        pytest.param(lambda: lose_answers("POST", times=2), id="two answers lost"),
        pytest.param(lambda: refuse(503, "POST", times=2), id="unavailable"),
        pytest.param(lambda: refuse(429, "GET", times=2), id="too many requests"),
        pytest.param(lambda: refuse(500, "POST", times=2, reason="InternalError"), id="internal error"),
    ],
)
def test_faults_of_the_server_make_no_second_block(api_server: Cluster, api_namespace: str, fault: Any) -> None:
    """The name was known before: what was created without an answer is adopted."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene)
        scene.transport.fault = fault()
        run = await trial.submit()
        scene.transport.fault = None
        await trial.submit()
        assert await trial.jobs() == [run]
        assert await trial.runner.find(run) == Running()

    play(api_server, api_namespace, scenario)


def test_operators_side_by_side_make_one_block(api_server: Cluster, api_namespace: str) -> None:
    """Eight of them at once."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene)
        await asyncio.gather(*(trial.submit() for _ in range(8)))
        assert await trial.jobs() == [trial.request().run]
        assert trial.memory.refusals == {}

    play(api_server, api_namespace, scenario)


async def squat(trial: Trial, **metadata: Any) -> None:
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
    body = {"metadata": {"name": trial.request().run, **metadata}, "spec": {"template": {"spec": pod}}}
    made = await trial.scene.client.create(Kind.JOB, trial.scene.namespace, body)
    assert isinstance(made, dict), made


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({}, id="a stranger"),
        pytest.param(
            {
                "labels": {"amdahl-loop.io/experiment": "pydocs-0123456789"},
                "annotations": {
                    "amdahl-loop.io/run": "pydocs-0123456789-p0",
                    "amdahl-loop.io/plan-hash": "0000000000000000",
                },
            },
            id="another plan's",
        ),
    ],
)
def test_a_squatter_is_named_never_stopped(api_server: Cluster, api_namespace: str, metadata: dict[str, Any]) -> None:
    """Neither found as ours, nor adopted, nor deleted; it costs nothing."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene)
        await squat(trial, **metadata)
        for _ in range(2):
            run = await trial.submit()
            state = await trial.runner.find(run)
            assert isinstance(state, Finished)
            assert state.failure.startswith("squatted")
            assert state.held_device_s == 0
        await trial.runner.stop(run)
        assert await trial.runner.sweep(()) == ()
        assert await trial.jobs() == [run]

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        pytest.param(
            {"template": make_template(env=[{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}])},
            "rejected: No trial is started", id="a Secret, and no word of the owner's",
        ),
        pytest.param(
            {"template": make_template({"hostNetwork": True})}, "rejected: No trial is started", id="the node's network"
        ),
        pytest.param(
            {"template": make_template({"volumes": [{"name": "v", "vsphereVolume": {"volumePath": "x"}}]})},
            "rejected: No trial is started: spec.template.spec.volumes[v]", id="a volume that cannot be closed",
        ),
        pytest.param(
            {"template": make_template({"volumes": [{"name": "amdahl-run", "emptyDir": {}}]})},
            "rejected: spec.template.spec.volumes amdahl-run", id="a name of ours",
        ),
    ],
)  # fmt: skip
def test_what_may_not_run_is_rejected_with_a_reason(
    api_server: Cluster, api_namespace: str, spec: dict[str, Any], word: str
) -> None:
    """Nothing is created, nothing reserved; the reason is there when the block is looked for, until it is recorded."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene, **spec)
        run = await trial.submit()
        state = await trial.runner.find(run)
        assert isinstance(state, Finished)
        assert state.is_taken
        assert state.failure.startswith(word)
        assert await trial.jobs() == []
        loss = await trial.runner.stop(run)
        assert loss is not None
        assert loss.held_device_s == 0
        assert await trial.runner.find(run) == Absent()

    play(api_server, api_namespace, scenario)


def test_what_the_server_refuses_is_tried_again(api_server: Cluster, api_namespace: str) -> None:
    """A field that it does not know: nothing is created, nothing was held, and the server's words are kept."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene, template=make_template({"restartPolicyy": "x"}))
        state = await trial.runner.find(await trial.submit())
        assert isinstance(state, Unplaced)
        assert state.why.startswith("rejected: ")
        assert "restartPolicyy" in state.why
        assert await trial.jobs() == []

    play(api_server, api_namespace, scenario)


def test_an_owner_who_vouches_gets_the_trial(api_server: Cluster, api_namespace: str) -> None:
    """`isolated: true` lets a template with a Secret through, still without account and token."""

    async def scenario(scene: Scene) -> None:
        secret = {"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
        trial = await begin(scene, template=make_template(env=[secret]), tuning={"trial": {"isolated": True}})
        assert await trial.runner.find(await trial.submit()) == Running()

    play(api_server, api_namespace, scenario)


def test_an_admission_policy_has_the_last_word(api_server: Cluster, api_namespace: str) -> None:
    """403: the policy's message is the reason."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene)
        forbidden = refuse(403, "POST", times=9, reason="Forbidden")

        async def only_jobs(request: Any, send: Any) -> Any:
            return await (forbidden(request, send) if request.path.endswith("/jobs") else send(request))

        scene.transport.fault = only_jobs
        state = await trial.runner.find(await trial.submit())
        assert state == Unplaced(why="rejected: injected 403")

    play(api_server, api_namespace, scenario)


def test_without_its_experiment_no_block_is_made(api_server: Cluster, api_namespace: str) -> None:
    """The plan comes before the first block; a plan that somebody deleted starts none."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene)
        item = (await scene.objects(Kind.EXPERIMENT))[trial.plan.name]
        await scene.client.delete(Kind.EXPERIMENT, scene.namespace, trial.plan.name, item["metadata"]["uid"])
        run = await trial.submit()
        assert await trial.runner.find(run) == Absent()
        assert await trial.jobs() == []

    play(api_server, api_namespace, scenario)


def test_a_finished_block_is_read_and_stopping_takes_it_away(api_server: Cluster, api_namespace: str) -> None:
    """The termination message through the server, word for word; what it held; then nothing of it is left."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene, template=make_template(resources={"limits": {"nvidia.com/gpu": "2"}}))
        run = await trial.submit()
        (pod,) = await scene.play_pods(run, node="node-b")
        begun_s, scene.now_s = scene.now_s, scene.now_s + 90
        assert await trial.runner.find(run) == Running()
        body = {"status": {"phase": "Succeeded", "containerStatuses": [container(0, summary(run), scene.now_s)]}}
        await scene.client.patch_status(Kind.POD, scene.namespace, pod, body)
        state = await trial.runner.find(run)
        assert isinstance(state, Finished)
        assert (state.summary, state.failure, state.node) == (summary(run), "", "node-b")
        assert state.held_device_s == 2 * 90
        assert state.started_at_s == begun_s + 30
        loss = await trial.runner.stop(run)
        assert loss is not None
        assert loss.held_device_s == 2 * 90
        assert await trial.jobs() == []
        assert await trial.runner.stop(run) is None

    play(api_server, api_namespace, scenario)


def container(exit_code: int, message: str, now_s: float) -> dict[str, Any]:
    """A trainer's status."""
    state = ended(exit_code, message, now_s)
    return {"name": "trainer", "state": state, "restartCount": 0, "ready": False, "image": "i", "imageID": ""}


def test_sweeping_stops_what_is_not_kept_and_nothing_else(api_server: Cluster, api_namespace: str) -> None:
    """Blocks of this job that nobody keeps, with what they held; not the running job, not another job's blocks."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene)
        await scene.settle(trial.job)
        kept, dropped = await trial.submit(0), await trial.submit(1)
        await scene.play_pods(dropped)
        scene.now_s += 40
        other = await scene.create_job("other", spec={"template": make_template(), "knobs": {}})
        stranger = Trial(scene, other, trial.plan, Memory(), [])
        assert await stranger.runner.sweep(()) == ()
        (loss,) = await trial.runner.sweep((kept,))
        assert (loss.run, loss.held_device_s) == (dropped, 40)
        assert await trial.jobs() == ["pydocs-0123456789-p0", "pydocs-r0"]

    play(api_server, api_namespace, scenario)


@pytest.mark.parametrize(
    ("modes", "pinned"),
    [
        pytest.param(["ReadWriteOnce"], ["node-a"], id="one node may attach it"),
        pytest.param(["ReadWriteMany"], None, id="every node may"),
        pytest.param(["ReadWriteOnce", "ReadWriteMany"], None, id="either way"),
        pytest.param(["ReadOnlyMany"], None, id="read by every node"),
    ],
)
def test_storage_decides_the_node(
    api_server: Cluster, api_namespace: str, modes: list[str], pinned: list[str] | None
) -> None:
    """A claim that one node holds ties the block to the job's node."""

    async def scenario(scene: Scene) -> None:
        claim = {"accessModes": modes, "resources": {"requests": {"storage": "1Gi"}}}
        await scene.client.create(Kind.CLAIM, scene.namespace, {"metadata": {"name": "data"}, "spec": claim})
        pod = {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}
        trial = await begin(scene, template=make_template(pod))
        await scene.settle(trial.job)
        await scene.play_pods("pydocs-r0", node="node-a")
        run = await trial.submit()
        affinity = (await scene.objects(Kind.JOB))[run]["spec"]["template"]["spec"]["affinity"].get("nodeAffinity")
        if pinned is None:
            assert affinity is None
        else:
            (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            assert term["matchFields"][0]["values"] == pinned

    play(api_server, api_namespace, scenario)


def test_storage_that_the_job_holds_alone_allows_no_trial(api_server: Cluster, api_namespace: str) -> None:
    """ReadWriteOncePod: nothing beside the job."""

    async def scenario(scene: Scene) -> None:
        claim = {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Gi"}}}
        await scene.client.create(Kind.CLAIM, scene.namespace, {"metadata": {"name": "data"}, "spec": claim})
        pod = {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}
        trial = await begin(scene, template=make_template(pod))
        state = await trial.runner.find(await trial.submit())
        assert isinstance(state, Finished)
        assert "ReadWriteOncePod" in state.failure

    play(api_server, api_namespace, scenario)


# --- observing the running job --------------------------------------------------------------------------------------------


class Program:
    """A training program's counters: so many steps of 100 ms, 60 ms of them waiting for data."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.metrics = Metrics({"rank": "0", "world": "2", "by": "probe"})
        self.metrics.add_phases({"startup": 5 * 10**9})
        scene.metrics = self.metrics

    def train(self, steps: int) -> None:
        """Some steps, and the time that they take."""
        for _ in range(steps):
            self.metrics.observe_step(100_000_000, 16)
            self.metrics.add_phases({"input": 60_000_000, "compute": 40_000_000})
            self.metrics.loader_batches += 1
            self.metrics.loader_batch_ns += 90_000_000
        self.scene.now_s += steps * 0.1


async def observe(scene: Scene, trial: Trial, program: Program) -> Finished:
    """Look until the observation is over."""
    request = observation_request(OBSERVATION, trial.job.spec.knobs, PROFILES[ProfileName.QUICK], seed=1)
    assert await trial.runner.find(OBSERVATION) == Absent()
    await trial.runner.submit(trial.job, request)
    for _ in range(100):
        state = await trial.runner.find(OBSERVATION)
        if isinstance(state, Finished):
            return state
        assert state == Running()
        program.train(50)
    raise AssertionError("the observation does not end")


def test_a_running_job_is_measured_by_its_counters(api_server: Cluster, api_namespace: str) -> None:
    """The difference of two scrapes is a report that the domain believes, and accounts for as it does on one machine."""

    async def scenario(scene: Scene) -> None:
        cpus = make_template(resources={"limits": {"cpu": "3"}})
        trial = await begin(scene, template=cpus, replicas=2)
        await scene.settle(trial.job)
        await scene.play_pods("pydocs-r0")
        state = await observe(scene, trial, Program(scene))
        assert (state.failure, state.node, state.held_device_s) == ("", "node-a", 0)
        report = parse_block_summary(state.summary, OBSERVATION)
        assert isinstance(report, BlockReport)
        observation = Observation(
            run=OBSERVATION,
            at_s=scene.now_s,
            fingerprint="f" * 16,
            job=trial.job,
            knobs=trial.job.spec.knobs,
            report=report,
            held_device_s=0,
        )
        seen = account(observation, 200.0, trial.job.spec.tuning.checkpoint)
        assert isinstance(seen, Breakdown)
        assert (seen.devices, seen.cpus, seen.startup_s) == (2, 3, 5.0)
        assert seen.shares_ppk[3:5] == (600, 400)
        assert seen.loader is not None
        assert (round(seen.step_s, 3), round(seen.samples_per_s), seen.loader.batch_s) == (0.1, 320, 0.09)
        loss = await trial.runner.stop(OBSERVATION)
        assert loss is not None
        assert await trial.runner.find(OBSERVATION) == Absent()

    play(api_server, api_namespace, scenario)


def test_other_values_than_those_in_force_are_not_measured(api_server: Cluster, api_namespace: str) -> None:
    """Pods that started before the values were set have others: nobody looks at them."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene)
        await scene.settle(trial.job)
        await scene.play_pods("pydocs-r0")
        program = Program(scene)
        scene.now_s += 100
        trial.job = trial.job.with_knobs(Knobs.model_validate({"dataloaderWorkers": 4}))
        await scene.settle(trial.job)
        request = observation_request(OBSERVATION, trial.job.spec.knobs, PROFILES[ProfileName.QUICK], seed=1)
        await trial.runner.submit(trial.job, request)
        for _ in range(5):
            program.train(200)
            assert await trial.runner.find(OBSERVATION) == Running()

    play(api_server, api_namespace, scenario)


def test_a_job_without_counters_is_given_up_with_a_reason(api_server: Cluster, api_namespace: str) -> None:
    """An image without Python serves nothing: after ten minutes of running pods the observation fails, the job runs on."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene)
        await scene.settle(trial.job)
        await scene.play_pods("pydocs-r0")
        request = observation_request(OBSERVATION, trial.job.spec.knobs, PROFILES[ProfileName.QUICK], seed=1)
        await trial.runner.submit(trial.job, request)
        assert await trial.runner.find(OBSERVATION) == Running()
        scene.now_s += 599
        assert await trial.runner.find(OBSERVATION) == Running()
        scene.now_s += 2
        state = await trial.runner.find(OBSERVATION)
        assert isinstance(state, Finished)
        assert state.failure == "no counters for 10 min: nobody answers"

    play(api_server, api_namespace, scenario)


def test_a_restart_begins_an_observation_anew(api_server: Cluster, api_namespace: str) -> None:
    """What was seen lives in memory; a new operator starts from nothing and loses nothing but time."""

    async def scenario(scene: Scene) -> None:
        trial = await begin(scene)
        await scene.settle(trial.job)
        await scene.play_pods("pydocs-r0")
        program = Program(scene)
        request = observation_request(OBSERVATION, trial.job.spec.knobs, PROFILES[ProfileName.QUICK], seed=1)
        await trial.runner.submit(trial.job, request)
        program.train(50)
        await trial.runner.find(OBSERVATION)
        trial.memory = Memory()
        assert (await observe(scene, trial, program)).failure == ""

    play(api_server, api_namespace, scenario)
