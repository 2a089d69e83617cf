"""Random plans, reports and verdicts as the domain makes them, for round trips."""

import json
from typing import Any

from hypothesis import strategies as st

from amdahl_loop.domain.blocks import BlockSpec, enumerate_blocks, holdout_block
from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.experiments import BlockRecord, Loss, Plan
from amdahl_loop.domain.hypotheses import Change, Hypothesis, Source
from amdahl_loop.domain.knob_values import ActivationCheckpointing, DataParallel, KnobName, Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.telemetry import (
    Arm,
    BlockReport,
    Loader,
    Malformed,
    Phase,
    Saves,
    Window,
    WindowOutcome,
    checksum,
    parse_block_summary,
)
from amdahl_loop.domain.tuning import Objective
from amdahl_loop.domain.verdicts import Verdict, VerdictWord, Veto, VetoName, Vote

finite = st.floats(allow_nan=False, allow_infinity=False)
seconds = st.floats(min_value=0, max_value=1e9)
moments_s = st.just(0.0) | st.floats(min_value=1, max_value=4e9)
digests = st.text("0123456789abcdef", min_size=8, max_size=8)
fingerprints = st.text("0123456789abcdef", min_size=16, max_size=16)
names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?", fullmatch=True)
printable = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)

_LIMITS = {"dataloader_workers": (0, 256), "prefetch_factor": (1, 256), "checkpoint_every_steps": (1, 10**7)}
_LIMITS |= {"micro_batch": (1, 65_536), "bucket_mb": (1, 4096)}
_NUMBERS = {name: st.none() | st.integers(*limits) for name, limits in _LIMITS.items()}
_SWITCHES = {
    name: st.none() | st.booleans() for name in ("pin_memory", "persistent_workers", "async_checkpoint", "compile")
}
_WORDS = {"activation_checkpointing": ActivationCheckpointing, "data_parallel": DataParallel}
_STEP = {name: st.none() | st.sampled_from(words) for name, words in _WORDS.items()}
knobs = st.builds(Knobs, gpus_per_replica=st.none() | st.integers(1, 64), **_NUMBERS, **_SWITCHES, **_STEP)


@st.composite
def constants(draw: st.DrawFn) -> Constants:
    """A profile's constants with some of their numbers changed to any other."""
    profile = draw(st.sampled_from(list(PROFILES.values())))
    changes: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "floor": finite,
                "loss_tolerance": finite,
                "alphas": st.tuples(finite, finite, finite, finite),
                "window_s": seconds,
                "with_void_share": finite,
                "min_steps": st.integers(0, 2**40),
            },
        )
    )
    return profile.model_copy(update=changes)


changes = (
    st.builds(
        Change,
        knob=st.sampled_from([KnobName.DATALOADER_WORKERS, KnobName.CHECKPOINT_EVERY_STEPS]),
        before=st.none() | st.integers(0, 10**7),
        after=st.integers(0, 10**7),
    )
    | st.builds(
        Change,
        knob=st.sampled_from([KnobName.PIN_MEMORY, KnobName.ASYNC_CHECKPOINT]),
        before=st.none() | st.booleans(),
        after=st.booleans(),
    )
    | st.builds(
        Change,
        knob=st.just(KnobName.ACTIVATION_CHECKPOINTING),
        before=st.none() | st.sampled_from(["none", "block", "selective"]),
        after=st.sampled_from(["none", "block", "selective"]),
    )
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A plan with blocks enumerated from its seed and constants."""
    used, seed, is_transfer = draw(constants()), draw(st.integers(0, 2**48 - 1)), draw(st.booleans())
    return Plan(
        name=draw(names) + "-0123456789",
        job=draw(names),
        job_uid=draw(st.uuids().map(str)),
        fingerprint=draw(fingerprints),
        family=draw(fingerprints),
        attempt=draw(st.integers(0, 9)),
        hypothesis=Hypothesis(
            changes=tuple(draw(st.lists(changes, min_size=1, max_size=4))),
            phase=draw(st.sampled_from(Phase)),
            expected_gain=draw(st.floats(0, 1, exclude_max=True)),
            source=draw(st.sampled_from(Source)),
            rationale=draw(printable),
        ),
        baseline=draw(knobs),
        variant=draw(knobs),
        objective=draw(st.sampled_from(Objective)),
        max_slowdown=draw(finite),
        constants=used,
        live=draw(st.booleans()),
        replicas=draw(st.integers(1, 4096)),
        skip_discovery=is_transfer,
        interruption_interval_s=draw(seconds),
        interruptions_seen=draw(st.integers(0, 100)),
        exposure_s=draw(seconds),
        max_lost_work_s=draw(seconds),
        restart_s=draw(seconds),
        device_hours_ahead=draw(seconds),
        baseline_shares_ppk=draw(st.sampled_from([(), (0, 0, 0, 600, 380, 0, 0, 0, 20)])),
        mem_limit_mib=draw(st.none() | st.integers(0, 10**7)),
        seed=seed,
        blocks=enumerate_blocks(seed, used, is_transfer),
    )


counts = st.integers(0, 10**15)
micros = st.integers(0, 10**14) | st.floats(0, 1e14)


@st.composite
def summaries(draw: st.DrawFn, run: str) -> str:
    """A checksummed summary of a run, as a supervisor may write it, with any subset of the optional keys."""
    windows = [draw(_windows(index)) for index in range(draw(st.integers(0, 4)))]
    content: dict[str, Any] = {
        "v": "amdahl.block/1",
        "run": run,
        "state": draw(st.sampled_from(["running", "done", "error"])),
    }
    content |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "why": printable,
                "at": st.sampled_from([["A", 0], ["B", 3]]),
                "live": st.sampled_from([0, 1]),
                "cpus": st.integers(1, 100_000),
            },
        )
    )
    content["w"] = windows
    return json.dumps(content | {"crc": checksum(content)}, separators=(",", ":"))


def _windows(index: int) -> st.SearchStrategy[dict[str, Any]]:
    """A window in the compact keys of the contract; one that says ok holds a measurement."""
    optional: dict[str, st.SearchStrategy[Any]] = {
        "sh": digests, "id": digests, "ls": digests, "el": st.integers(0, 10**6) | st.floats(0, 1e6),
        "di": st.integers(0, 1000), "lm": finite, "st": micros, "sd": micros, "su": st.integers(0, 10**9),
        "lb": st.tuples(micros, micros), "mem": counts, "ck": st.integers(-(10**6), 10**6),
        "sk": st.tuples(st.integers(0, 4096), st.integers(0, 1000)), "of": st.sampled_from([0, 1]),
        "ig": st.lists(st.sampled_from(["microBatch", "compile"]), min_size=1, unique=True),
    }  # fmt: skip
    measured: dict[str, st.SearchStrategy[Any]] = {
        "a": st.sampled_from(["A", "B"]), "i": st.just(index), "x": st.just("ok"), "n": st.integers(1, 10**9),
        "s": st.integers(1, 10**12), "d": st.integers(1, 4096), "us": st.integers(1, 10**14), "ph": _shares(),
    }  # fmt: skip
    lost: dict[str, st.SearchStrategy[Any]] = {
        "a": st.sampled_from(["A", "B"]),
        "i": st.just(index),
        "x": st.sampled_from(["crash", "oom", "hang", "no_steps", "no_report", "void", "signal"]),
    }
    return st.fixed_dictionaries(measured, optional=optional) | st.fixed_dictionaries(
        lost, optional=optional | {"why": printable, "xc": st.integers(-64, 255), "n": counts, "us": micros}
    )


def _shares() -> st.SearchStrategy[list[int]]:
    """Nine shares that sum to 1000."""
    return st.lists(st.integers(0, 111), min_size=8, max_size=8).map(lambda parts: [*parts, 1000 - sum(parts)])


@st.composite
def reports(draw: st.DrawFn, run: str) -> BlockReport:
    """A report that was parsed from a summary and believed."""
    report = parse_block_summary(draw(summaries(run)), run)
    if isinstance(report, Malformed):
        return BlockReport(run=run, state="error", why=report.reason)
    return report


@st.composite
def records(draw: st.DrawFn, plan: Plan, spec: BlockSpec) -> BlockRecord:
    """A finished block: reported, or lost with a reason."""
    report = draw(st.none() | reports(plan.run_name(spec, draw(st.integers(0, 2)))))
    return BlockRecord(
        spec=spec,
        node=draw(st.sampled_from(["", "node-a", "ip-10-0-0-1.eu.internal"])),
        started_at_s=draw(moments_s),
        held_device_s=draw(seconds),
        report=report,
        failure=draw(printable),
    )


@st.composite
def finished_blocks(draw: st.DrawFn, plan: Plan) -> tuple[BlockRecord, ...]:
    """Some blocks of the plan, and some that tested its win on."""
    ran = draw(st.lists(st.sampled_from(plan.blocks), unique=True, max_size=6))
    kept = [holdout_block(plan.seed, index) for index in range(draw(st.integers(0, 3)))]
    return tuple(draw(records(plan, spec)) for spec in (*ran, *kept))


votes = st.builds(
    Vote,
    check=st.integers(0, 9),
    agree=st.booleans(),
    effect=finite,
    bar=finite,
    changed=st.lists(st.sampled_from(["time", "order", "offset", "seed", "node"]), unique=True).map(tuple),
    node=st.sampled_from(["", "node-a,node-b"]),
)
verdicts = st.builds(
    Verdict,
    word=st.sampled_from(VerdictWord),
    sentence=printable,
    effect=st.none() | finite,
    interval=st.none() | st.tuples(finite, finite),
    effect_se=st.none() | finite,
    floor=st.none() | finite,
    discovery_effect=st.none() | finite,
    blocks_used=st.integers(0, 64),
    votes=st.lists(votes, max_size=5).map(tuple),
    vetoes=st.lists(
        st.builds(Veto, name=st.sampled_from(VetoName), silent=st.booleans(), sentence=printable), max_size=3
    ).map(tuple),
    reason=st.sampled_from(["", "outvoted", "BudgetExhausted"]),
)
losses = st.tuples(names, moments_s, seconds).map(
    lambda drawn: Loss(run=drawn[0], started_at_s=drawn[1], held_device_s=drawn[2])
)


@st.composite
def applications(draw: st.DrawFn, plan: Plan) -> Application:
    """Something that happened to the plan's values."""
    return Application(
        job=plan.job,
        job_uid=plan.job_uid,
        fingerprint=draw(fingerprints),
        at_s=draw(moments_s),
        kind=draw(st.sampled_from(ApplicationKind)),
        experiment=plan.name,
        declared=draw(knobs),
        knobs=draw(knobs),
    )


def full_window(arm: Arm, index: int) -> Window:
    """A window with every field of the contract, at about the most digits that a summary of four windows has room for."""
    return Window(
        arm=arm, index=index, outcome=WindowOutcome.OK, steps=123_456, samples=1_234_567_890, devices=4096,
        wall_s=1234.567891, phases_ppk=(111,) * 8 + (112,), shape="deadbeef", elements_per_sample=1_048_576.123,
        distinct_ppk=1000, sample_ids="deadbeef", losses="deadbeef", loss_mean=2.3125678,
        saves=Saves(count=12, block_s=1.234567, interference_s=0.123456), quiet_step_s=1.234567, quiet_step_sd_s=0.123456,
        startup_s=123.456, loader=Loader(batch_s=1.234567, cv=0.999), peak_mem_mib=123_456, clock_ppk=-12,
        straggler=(4095, 999), offset_applied=True,
    )  # fmt: skip
