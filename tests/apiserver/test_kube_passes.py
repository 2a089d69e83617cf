"""What does one pass of the operator do for a job, on a real API server with pods played by hand?"""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.transport import Answer, Request
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.policy import TuningPolicySpec
from amdahl_loop.domain.tuning import Mode
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from amdahl_loop.resting import RESYNC_IDLE_S
from judge_builders import Bench, make_plan
from kube_builders import see_job
from pass_builders import Passes, said
from pod_builders import make_template

NO_GAIN = Verdict(word=VerdictWord.NO_GAIN, sentence="Saves nothing.", effect=0.0, effect_se=0.01)
WON = Verdict(word=VerdictWord.WON, sentence="Saves 30 %.", effect=0.36, effect_se=0.01)


def test_a_job_that_has_lost_its_status_and_its_values_goes_on(passes: Callable[..., None]) -> None:
    """It looks as if it were new, but its pods are there: its revision stays, and nothing runs twice."""

    async def scenario(job: Passes) -> None:
        scene = job.scene
        await job.settle()
        await scene.play_pods("pydocs-r0")
        values = (await scene.objects(Kind.CONFIG_MAP))["pydocs-knobs"]["metadata"]
        await scene.client.delete(Kind.CONFIG_MAP, scene.namespace, "pydocs-knobs", values["uid"])
        seen = await see_job(scene.client, scene.namespace)
        bare = {"status": dict.fromkeys(seen.document["status"])}
        await scene.client.patch_status(Kind.TRAINING_JOB, scene.namespace, "pydocs", bare)
        before = (await scene.objects(Kind.JOB))["pydocs-r0"]["metadata"]["uid"]
        seen = await job.settle()
        assert seen.status.observed_generation == seen.generation
        assert {name: raw["metadata"]["uid"] for name, raw in (await scene.objects(Kind.JOB)).items()} == {
            "pydocs-r0": before
        }
        assert "pydocs-knobs" in await scene.objects(Kind.CONFIG_MAP)

    passes(scenario)


def test_what_a_policy_takes_away_is_said(passes: Callable[..., None]) -> None:
    """The owner reads whose word it is that experiments do not run."""

    async def scenario(job: Passes) -> None:
        job.operator.recollection.policies[job.scene.namespace] = {
            "night": TuningPolicySpec(paused=True, modes=(Mode.OBSERVE,))
        }
        seen = await job.settle()
        assert said(seen, "Experimenting")[:2] == ("False", "Paused")
        message = seen.document["status"]["message"]
        assert "TuningPolicy night: experiments are paused." in message
        assert "TuningPolicy night: mode Auto becomes Observe" in message

    passes(scenario)


def test_storage_that_one_pod_holds_alone_blocks_trials(passes: Callable[..., None]) -> None:
    """The claim's own word counts, and it is read before anything is spent."""
    template = make_template()
    template["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "corpus"}}]

    async def scenario(job: Passes) -> None:
        spec = {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Gi"}}}
        await job.scene.client.create(Kind.CLAIM, job.scene.namespace, {"metadata": {"name": "corpus"}, "spec": spec})
        status, reason, message = said(await job.settle(), "TrialsBlocked")
        assert (status, reason) == ("True", "ExclusiveStorage")
        assert "corpus, which is ReadWriteOncePod" in message

    passes(scenario, template=template)


def test_a_claim_that_was_not_there_is_asked_about_again(passes: Callable[..., None]) -> None:
    """One claim of two is made later: what was known of the other does not answer for it."""
    template = make_template()
    template["spec"]["volumes"] = [
        {"name": name, "persistentVolumeClaim": {"claimName": name}} for name in ("corpus", "late")
    ]

    async def make(job: Passes, name: str, mode: str) -> None:
        spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
        await job.scene.client.create(Kind.CLAIM, job.scene.namespace, {"metadata": {"name": name}, "spec": spec})

    async def scenario(job: Passes) -> None:
        await make(job, "corpus", "ReadOnlyMany")
        assert said(await job.settle(), "TrialsBlocked")[0] == "False"
        await make(job, "late", "ReadWriteOncePod")
        status, reason, message = said(await job.settle(), "TrialsBlocked")
        assert (status, reason) == ("True", "ExclusiveStorage")
        assert "late, which is ReadWriteOncePod" in message

    passes(scenario, template=template)


def test_a_crash_loop_that_is_not_ours_is_stalled(passes: Callable[..., None]) -> None:
    """No value of the loop's is in force: there is nothing to take back, and the owner is told."""

    async def scenario(job: Passes) -> None:
        await job.settle()
        await job.scene.set_job("pydocs-r0", active=0, ready=0, failed=3)
        status, reason, message = said(await job.settle(), "Stalled")
        assert (status, reason) == ("True", "CrashLooping")
        assert "failed 3 times" in message

    passes(scenario)


def test_a_program_that_the_probe_keeps_from_running_says_so(passes: Callable[..., None]) -> None:
    """Observed and TrialsBlocked name the variable and the way out, whole; the job runs on, and is not called stalled."""

    async def scenario(job: Passes) -> None:
        await job.settle()
        pods = await job.scene.play_pods("pydocs-r0")
        await job.scene.restart_trainer(pods[0], lasted_s=2, times=2)
        await job.scene.set_job("pydocs-r0", active=1, ready=0)
        await job.settle()
        await job.scene.delete_pods(*pods)
        await job.settle()
        await job.scene.play_pods("pydocs-r1")
        seen = await job.settle()
        for type_name, status in (("Observed", "False"), ("TrialsBlocked", "True")):
            assert said(seen, type_name)[:2] == (status, "ProbeRemoved")
            message = said(seen, type_name)[2]
            assert "spec.template.spec.containers[trainer].env names no PYTHONPATH" in message
            assert message.endswith("the probe is put before what the template says.")
        assert said(seen, "Ready")[:2] == ("True", "AsDeclared")
        assert said(seen, "Stalled")[0] == "False"

    passes(scenario, template=make_template({"restartPolicy": "OnFailure"}))


def test_a_crash_loop_under_a_proven_value_takes_it_back(passes: Callable[..., None]) -> None:
    """At once, without statistics; the spec follows."""

    async def scenario(job: Passes) -> None:
        await job.settle()
        await job.win("pydocs-e0", Knobs(dataloader_workers=0), Knobs(dataloader_workers=2))
        seen = await job.settle()
        assert seen.declared.knobs == Knobs(dataloader_workers=2)
        await job.scene.set_job("pydocs-r0", active=0, ready=0, failed=3)
        seen = await job.settle()
        assert seen.declared.knobs == Knobs(dataloader_workers=0)
        assert said(seen, "Tuned")[:2] == ("False", "RolledBack")
        assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "0"

    passes(scenario)


def test_a_verdict_that_was_written_by_hand_is_not_put_in_force(passes: Callable[..., None]) -> None:
    """Without the policies an administrator may write it: no block shows the win, so nothing is changed, and the job says so."""

    async def scenario(job: Passes) -> None:
        await job.settle()
        ledger = await job.ledger()
        plan = make_plan(name="pydocs-e0", job="pydocs", job_uid=ledger.seen.uid)
        before, after = Knobs(dataloader_workers=0), Knobs(dataloader_workers=2)
        await ledger.add_plan(plan.model_copy(update={"baseline": before, "variant": after}))
        await ledger.add_verdict("pydocs-e0", WON, job.scene.clock())
        seen = await job.settle()
        assert seen.declared.knobs == before
        assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "0"
        status, reason, message = said(seen, "Tuned")
        assert (status, reason) == ("False", "Unproven")
        assert "pydocs-e0 says that it has won" in message

    passes(scenario)


@pytest.mark.parametrize(
    ("verdict", "has_blocks", "knobs", "why"),
    [
        (None, False, {"dataloaderWorkers": 2}, "the experiment ended Inconclusive"),
        (NO_GAIN, False, {"dataloaderWorkers": 2}, "the experiment ended NoGain"),
        (WON, False, {"dataloaderWorkers": 2}, "its recorded blocks do not show it"),
        (WON, True, {"dataloaderWorkers": 9}, "are not those of the experiment"),
    ],
    ids=["open", "found nothing", "won by its word alone", "other values than the proven ones"],
)
def test_an_application_that_was_written_by_hand_is_not_in_force(
    passes: Callable[..., None], verdict: Verdict | None, has_blocks: bool, knobs: dict[str, int], why: str
) -> None:
    """Without the policies an administrator may write it. The job runs on as declared, and names what is not believed.

    The open experiment is cancelled by the same pass, since it is of other work than this job's.
    """

    async def scenario(job: Passes) -> None:
        await job.settle()
        before, after = Knobs(dataloader_workers=0), Knobs(dataloader_workers=2)
        plan = await job.plan("pydocs-e0", KnobName.DATALOADER_WORKERS, before, after)
        won = Bench(plan, gain=0.3).close()
        blocks = won.blocks if has_blocks else ()
        await job.record(won.model_copy(update={"blocks": blocks, "verdict": won.verdict if has_blocks else verdict}))
        await job.forge(plan, knobs=knobs)
        seen = await job.settle()
        status, reason, message = said(seen, "Tuned")
        if has_blocks:  # the true win is put in force beside it
            assert seen.declared.knobs == after
            assert (status, reason) == ("True", "ProvenValues")
        else:
            assert seen.declared.knobs == before
            assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "0"
            assert (status, reason) == ("False", "Unproven")
        assert "status.applications of Experiment pydocs-e0 holds an entry that is ignored" in message
        assert why in message

    passes(scenario)


def test_a_spec_that_cannot_be_used_is_looked_at_again_when_somebody_changes_it(passes: Callable[..., None]) -> None:
    """Nothing of the job can run, so nothing is measured: a long rest, and what is wrong is said."""
    template = make_template()
    template["spec"]["volumes"] = [{"name": "amdahl-probe", "emptyDir": {}}]

    async def scenario(job: Passes) -> None:
        assert await job.operator.advance(job.key) == RESYNC_IDLE_S
        seen = await see_job(job.scene.client, job.scene.namespace)
        assert said(seen, "Stalled")[:2] == ("True", "InvalidSpec")
        assert "amdahl-probe" in seen.document["status"]["message"]
        assert await job.operator.advance(job.key) == RESYNC_IDLE_S
        assert await job.scene.objects(Kind.JOB) == {}

    passes(scenario, template=template)


@pytest.mark.parametrize(
    ("pod", "trainer", "said_of_it"),
    [
        ({"volumes": {"data": {"emptyDir": {}}}}, {}, "spec.template.spec.volumes"),
        ({"volumes": ["data"]}, {}, "spec.template.spec.volumes.0"),
        ({"initContainers": "none"}, {}, "spec.template.spec.initContainers"),
        ({}, {"volumeMounts": {"data": "/data"}}, "spec.template.spec.containers.0.volumeMounts"),
        ({}, {"resources": {"limits": {"nvidia.com/gpu": "all"}}}, "resources.limits.nvidia.com/gpu: 'all'"),
        ({}, {"resources": {"requests": {"memory": "lots"}}}, "resources.requests.memory: 'lots'"),
    ],
)
def test_a_template_of_the_wrong_shape_is_said_once(
    passes: Callable[..., None], pod: dict[str, Any], trainer: dict[str, Any], said_of_it: str
) -> None:
    """The definition leaves these fields open, so the server takes them; nothing is made of them, and nothing is written again."""

    async def scenario(job: Passes) -> None:
        change = {"spec": {"template": make_template(pod, **trainer)}}
        assert isinstance(await job.scene.client.patch(Kind.TRAINING_JOB, job.scene.namespace, "pydocs", change), dict)
        assert await job.operator.advance(job.key) == RESYNC_IDLE_S
        seen = await see_job(job.scene.client, job.scene.namespace)
        status, reason, message = said(seen, "Stalled")
        assert (status, reason) == ("True", "InvalidSpec")
        assert said_of_it in message
        assert await job.operator.advance(job.key) == RESYNC_IDLE_S
        again = await see_job(job.scene.client, job.scene.namespace)
        assert again.resource_version == seen.resource_version
        assert await job.scene.objects(Kind.JOB) == {}

    passes(scenario)


@pytest.mark.parametrize("memory", ["16e9", "1Pi", "1E", ".5Gi", "+1", "1n", " 2Gi"])
def test_a_quantity_that_the_server_takes_runs(passes: Callable[..., None], memory: str) -> None:
    """However it is written."""

    async def scenario(job: Passes) -> None:
        seen = await job.settle()
        assert said(seen, "Stalled")[0] == "False"
        assert list(await job.scene.objects(Kind.JOB)) == ["pydocs-r0"]

    passes(scenario, template=make_template(resources={"limits": {"memory": memory}}))


def test_a_fault_of_ours_is_told_until_a_pass_goes_through(passes: Callable[..., None]) -> None:
    """Once, whatever the number of tries; the pass that goes through says how the job stands."""

    async def scenario(job: Passes) -> None:
        async def answer_nonsense(request: Request, send: Callable[[Request], Awaitable[Answer]]) -> Answer:
            answer = await send(request)
            return answer if "/trainingjobs/" in request.path else Answer(status=200, body={"items": [{}]})

        job.scene.transport.fault = answer_nonsense
        versions = set()
        for _ in range(3):
            with pytest.raises(KeyError):
                await job.operator.advance(job.key)
            seen = await see_job(job.scene.client, job.scene.namespace)
            versions.add(seen.resource_version)
            assert said(seen, "Stalled")[:2] == ("True", "OperatorFault")
            assert "KeyError" in said(seen, "Stalled")[2]
        assert len(versions) == 1
        job.scene.transport.fault = None
        seen = await job.settle()
        assert said(seen, "Stalled")[0] == "False"
        assert said(seen, "Ready")[1] == "Starting"

    passes(scenario)


def test_an_old_manifest_over_two_wins_never_runs_its_old_values(passes: Callable[..., None]) -> None:
    """The revert is on record before anything runs by the spec: pods are never started with values that nobody wants."""
    first, second = (
        Knobs(dataloader_workers=2, prefetch_factor=2),
        Knobs(dataloader_workers=2, prefetch_factor=4),
    )
    begun = {"dataloaderWorkers": 0, "prefetchFactor": 2}

    async def scenario(job: Passes) -> None:
        await job.settle()
        await job.win("pydocs-e0", Knobs(dataloader_workers=0, prefetch_factor=2), first)
        await job.settle()
        await job.win("pydocs-e1", first, second, KnobName.PREFETCH_FACTOR)
        seen = await job.settle()
        assert seen.declared.knobs == second
        await job.scene.client.apply(
            Kind.TRAINING_JOB, job.scene.namespace, "pydocs", {"spec": {"knobs": begun}}, force=True
        )
        written = []
        for _ in range(8):
            await job.operator.advance(job.key)
            written.append((await job.values())["AMDAHL_DATALOADER_WORKERS"])
        seen = await job.settle()
        assert set(written) == {"2"}
        assert seen.declared.knobs == Knobs.model_validate(begun)
        assert said(seen, "ApplyConflict")[:2] == ("True", "Reverted")
        assert said(seen, "Tuned")[:2] == ("True", "ProvenValues")

    passes(scenario, knobs=begun)


def test_in_mode_spec_a_value_that_may_not_be_written_does_not_run(passes: Callable[..., None]) -> None:
    """Spec or nothing: with a GitOps tool on the field the old value runs, is measured and reported."""
    declared = {"dataloaderWorkers": 0}

    async def scenario(job: Passes) -> None:
        body = {"spec": {"knobs": declared}, "metadata": {"name": "pydocs", "namespace": job.scene.namespace}}
        job.scene.cluster.admin.kubectl(
            "apply", "--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-f", "-",
            stdin={"apiVersion": "amdahl-loop.io/v1alpha1", "kind": "TrainingJob"} | body,
        )  # fmt: skip
        await job.settle()
        await job.win("pydocs-e0", Knobs(dataloader_workers=0), Knobs(dataloader_workers=2))
        seen = await job.settle()
        assert seen.declared.knobs == Knobs(dataloader_workers=0)
        assert (await job.values())["AMDAHL_DATALOADER_WORKERS"] == "0"
        assert said(seen, "ApplyConflict")[:2] == ("True", "ManagedByArgoCD")
        assert said(seen, "Tuned")[:2] == ("False", "WonUnapplied")
        (knob,) = seen.status.effective_knobs
        assert (knob.value, knob.source) == ("0", "Spec")

    passes(scenario, tuning={"mode": "Spec"})
