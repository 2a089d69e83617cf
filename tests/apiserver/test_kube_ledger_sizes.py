"""Do the largest objects that can come about stay within their limits, and is an idle job never written to?"""

import asyncio
import json
from typing import Any

import pytest

from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.ledger import KubeLedger
from amdahl_loop.adapters.kube.loading import load_index
from amdahl_loop.adapters.kube.status import write_status
from amdahl_loop.adapters.kube.transport import open_transport
from amdahl_loop.domain.api.conditions import ConditionStatus, JobCondition, JobConditionType
from amdahl_loop.domain.api.experiment import MAX_APPLICATIONS, MAX_EXPERIMENT_BYTES, MAX_LOSSES
from amdahl_loop.domain.api.parts import MAX_SENTENCE
from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.api.training_job import (
    MAX_LAST_VERDICTS,
    MAX_STATUS_BYTES,
    BankReport,
    DiagnosisReport,
    EffectiveKnob,
    KnobSource,
    PhaseShares,
    TrainingJobStatus,
    VerdictReport,
)
from amdahl_loop.domain.blocks import BlockSpec, enumerate_blocks, holdout_block
from amdahl_loop.domain.conditions import Facts, Note
from amdahl_loop.domain.diagnosis import Bottleneck
from amdahl_loop.domain.experiments import BlockRecord, Loss, Plan
from amdahl_loop.domain.hypotheses import Change, Hypothesis, Source
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind, Observation
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.status import describe
from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import MAX_SUMMARY_BYTES, Arm, BlockReport, Phase
from amdahl_loop.domain.tuning import Objective, ProfileName
from amdahl_loop.domain.verdicts import Verdict, VerdictWord, Veto, VetoName, Vote
from builders import make_job
from judge_builders import make_constants, make_window
from kube_builders import FaultyTransport, create_job, impatient, install_crds, see_job
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

LONG = '\u20ac"\\' * 200
"""Text of which every character takes more than one byte in JSON."""
ALL_KNOBS = Knobs(
    dataloader_workers=256,
    prefetch_factor=256,
    pin_memory=False,
    persistent_workers=False,
    checkpoint_every_steps=10_000_000,
    async_checkpoint=False,
    gpus_per_replica=64,
)


@pytest.fixture(scope="module")
def definitions(api_server: Cluster) -> None:
    """Our kinds are served."""
    install_crds(api_server)


def longest_summary(run: str) -> BlockReport:
    """A report whose summary is as long as a termination message may be, to a few bytes."""
    windows = tuple(
        make_window(
            Arm(arm),
            index,
            step_s=0.123456789,
            steps=10**6 + index,
            shape="01234567",
            elements_per_sample=1234.56789012345,
            distinct_ppk=999,
            sample_ids="89abcdef",
            losses="fedcba98",
            loss_mean=2.345678901234567,
            quiet_step_s=0.012345678,
            startup_s=123.456,
            peak_mem_mib=123_456,
        )
        for index, arm in enumerate("ABBA")
    )
    report = BlockReport(run=run, state="done", windows=windows)
    for length in range(200, 0, -1):
        longer = report.model_copy(update={"why": '"' * length})
        if render_block_summary(longer) is not None:
            return longer
    return report


def largest_plan(uid: str) -> Plan:
    """The longest plan of the longest profile, with every string at its limit."""
    constants = make_constants(ProfileName.THOROUGH)
    changes = tuple(Change(knob=knob, before=10_000_000, after=10_000_000) for knob in list(KnobName)[:4])
    return Plan(
        name="x" * 41 + "-0123456789",
        job="x" * 63,
        job_uid=uid,
        fingerprint="f" * 16,
        family="a" * 16,
        attempt=1000,
        hypothesis=Hypothesis(
            changes=changes, phase=Phase.CHECKPOINT, expected_gain=1 / 3, source=Source.CLAUDE, rationale=LONG[:500]
        ),
        baseline=ALL_KNOBS,
        variant=ALL_KNOBS,
        objective=Objective.DEVICE_HOURS,
        max_slowdown=1.0500000000000003,
        constants=constants,
        live=False,
        replicas=4096,
        interruption_interval_s=86400 / 7,
        interruptions_seen=10**6,
        exposure_s=1e8 / 3,
        max_lost_work_s=1800 / 7,
        restart_s=100 / 3,
        device_hours_ahead=1e6 / 3,
        baseline_shares_ppk=(111,) * 9,
        mem_limit_mib=10**9,
        seed=2**53,
        blocks=enumerate_blocks(2**53, constants),
    )


def largest_record(plan: Plan, spec: BlockSpec) -> BlockRecord:
    """A block with everything there is to say of it."""
    return BlockRecord(
        spec=spec,
        node="n" * 253,
        started_at_s=1_763_723_245.1234567,
        held_device_s=1e6 / 3,
        report=longest_summary(plan.run_name(spec)),
        failure=LONG[:200],
    )


def largest_verdict() -> Verdict:
    """A verdict with all votes and vetoes, at full length."""
    vote = {"agree": True, "effect": 1 / 3, "bar": 1 / 7, "changed": ("time", "order", "offset", "seed", "node")}
    return Verdict(
        word=VerdictWord.INCONCLUSIVE,
        sentence='"' * 500,
        effect=1 / 3,
        interval=(1 / 7, 3 / 7),
        effect_se=1 / 11,
        floor=1 / 13,
        discovery_effect=1 / 17,
        blocks_used=64,
        votes=tuple(Vote(check=number, node="n" * 253, **vote) for number in range(5)),
        vetoes=tuple(Veto(name=name, silent=False, sentence='"' * 300) for name in VetoName),
        reason="R" * 40,
    )


def stored_bytes(document: dict[str, Any]) -> int:
    """Bytes of an object as JSON."""
    return len(json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode())


def test_the_largest_experiment_stays_within_128_kib(
    api_server: Cluster, api_namespace: str, definitions: None
) -> None:
    """Every planned block run, every one tested on for months, all stopped runs and applications, owners' records too.

    The server takes it, every write of it, and it is read back.
    """
    uid = create_job(api_server, api_namespace)["metadata"]["uid"]
    plan = largest_plan(uid)

    async def run() -> tuple[dict[str, Any], int]:
        transport = await _transport(api_server)
        client = impatient(transport)
        index = await load_index(client, [api_namespace])
        ledger = KubeLedger(client, index, await see_job(client, api_namespace), lambda: 1.0)
        await ledger.add_plan(plan)
        for spec in plan.blocks:
            await ledger.reserve(plan.name, plan.run_name(spec), 1e9 / 3)
            await ledger.add_block(plan.name, largest_record(plan, spec))
        for number in range(MAX_LOSSES + 2):
            loss = Loss(run=plan.run_name(plan.blocks[0]), started_at_s=1e9 + number / 3, held_device_s=1e6 / 3)
            await ledger.add_loss(plan.name, loss)
        await ledger.add_verdict(plan.name, largest_verdict(), 1_763_723_245.1234567)
        for index_of in range(plan.constants.holdout_blocks):
            await ledger.add_block(plan.name, largest_record(plan, holdout_block(plan.seed, index_of)))
        for number in range(MAX_APPLICATIONS + 1):
            await ledger.add_application(_application(plan, number))
        memory = await ledger.recall(uid, "f" * 16, "a" * 16)
        document = await client.get(Kind.EXPERIMENT, api_namespace, plan.name)
        assert document is not None
        await transport.close()
        return document, len(memory.experiments[0].blocks)

    document, blocks = asyncio.run(run())
    assert blocks == len(plan.blocks) + plan.constants.holdout_blocks
    assert stored_bytes(document) <= MAX_EXPERIMENT_BYTES


def _application(plan: Plan, number: int) -> Application:
    kinds = [ApplicationKind.APPLIED, ApplicationKind.ROLLED_BACK]
    return Application(
        job=plan.job,
        job_uid=plan.job_uid,
        fingerprint=plan.fingerprint,
        at_s=1_763_723_245.1234567 + number,
        kind=kinds[number % 2],
        experiment=plan.name,
        declared=ALL_KNOBS,
        knobs=ALL_KNOBS,
    )


async def _transport(cluster: Cluster) -> FaultyTransport:
    return FaultyTransport(await open_transport(cluster.admin.kubeconfig))


def largest_status() -> TrainingJobStatus:
    """Every field at its limit, every sentence cut."""
    return TrainingJobStatus(
        observed_generation=2**31,
        message=LONG,
        conditions=tuple(
            JobCondition(
                type=type_name,
                status=ConditionStatus.UNKNOWN,
                reason="R" * 64,
                message=LONG,
                last_transition_time=to_timestamp(1_763_723_245.0),
                observed_generation=2**31,
            )
            for type_name in JobConditionType
        ),
        phase_shares=PhaseShares(**{phase.value: 111 for phase in Phase}),
        diagnosis=DiagnosisReport(bottleneck=Bottleneck.CHECKPOINT_BOUND, sentence=LONG),
        wasted_device_hours_per_hour=1e6 / 3,
        effective_knobs=tuple(
            EffectiveKnob(name=name, value="10000000", source=KnobSource.OVERLAY, experiment="x" * 52)
            for name in KnobName
        ),
        bank=BankReport(gross_device_hours=-1e6 / 3, spent_device_hours=1e6 / 3, net_device_hours=-1e6 / 7),
        active_experiment="x" * 52,
        last_verdicts=tuple(
            VerdictReport(
                experiment="x" * 52,
                word=VerdictWord.INCONCLUSIVE,
                change="c" * 160,
                sentence=LONG,
                closed_at=to_timestamp(1_763_723_245.1234567 + number),
            )
            for number in range(MAX_LAST_VERDICTS)
        ),
    )


def test_the_largest_status_stays_within_32_kib(api_server: Cluster, api_namespace: str, definitions: None) -> None:
    """With the longest observation in it; the server takes it, and it is read back as it was."""
    uid = create_job(api_server, api_namespace)["metadata"]["uid"]
    observation = Observation(
        run="x" * 41 + "-ffffffff-o0",
        at_s=1_763_723_245.1234567,
        fingerprint="f" * 16,
        job=make_job(),
        knobs=ALL_KNOBS,
        report=longest_summary("x" * 41 + "-ffffffff-o0"),
        held_device_s=1e6 / 3,
    )

    async def run() -> tuple[dict[str, Any], TrainingJobStatus]:
        transport = await _transport(api_server)
        client = impatient(transport)
        index = await load_index(client, [api_namespace])
        ledger = KubeLedger(client, index, await see_job(client, api_namespace), lambda: 1.0)
        await ledger.add_observation(uid, observation)
        await write_status(client, ledger.seen, largest_status())
        seen = await see_job(client, api_namespace)
        await transport.close()
        return seen.document["status"], seen.status

    stored, status = asyncio.run(run())
    assert len(stored["observation"]["summary"]) > MAX_SUMMARY_BYTES - 3
    assert stored_bytes(stored) <= MAX_STATUS_BYTES
    assert status.model_copy(update={"observation": None}) == largest_status()
    assert all(len(condition.message) <= MAX_SENTENCE for condition in status.conditions)


def test_an_idle_job_is_never_written_to(api_server: Cluster, api_namespace: str, definitions: None) -> None:
    """One patch when something was found out; then none, at whatever hour; one more when the job changes."""
    create_job(api_server, api_namespace)
    starting = Facts(standing=Note(reason=Reason.STARTING, sentence="0 of 1 pods run."))
    running = Facts(standing=Note(reason=Reason.AS_DECLARED, sentence="1 of 1 pods run."))

    async def run() -> list[int]:
        transport = await _transport(api_server)
        client = impatient(transport)
        counts = []
        for now_s, facts in (
            (10.0, starting),
            (70.0, starting),
            (9999.0, starting),
            (10_000.0, running),
            (2e4, running),
        ):
            seen = await see_job(client, api_namespace)
            await write_status(client, seen, describe(facts, seen.status, seen.generation, now_s))
            counts.append(len(transport.writes))
        final = await see_job(client, api_namespace)
        times = {c.type: c.last_transition_time for c in final.status.conditions}
        assert times[JobConditionType.READY] == to_timestamp(10_000.0)
        assert times[JobConditionType.STALLED] == to_timestamp(10.0)
        await transport.close()
        return counts

    assert asyncio.run(run()) == [1, 1, 1, 2, 2]


def test_a_status_is_not_written_over_a_newer_one(api_server: Cluster, api_namespace: str, definitions: None) -> None:
    """Another pass was faster: outdated, and the newer one stays."""
    create_job(api_server, api_namespace)

    async def run() -> None:
        transport = await _transport(api_server)
        client = impatient(transport)
        old = await see_job(client, api_namespace)
        newer = await write_status(client, old, TrainingJobStatus(message="newer"))
        assert newer is not None
        refused = await write_status(client, old, TrainingJobStatus(message="older"))
        assert getattr(refused, "is_outdated", False)
        assert (await see_job(client, api_namespace)).status.message == "newer"
        await transport.close()

    asyncio.run(run())
