"""What is spent and what is reserved never exceed the budget, whatever runs cost and however long they hang."""

import asyncio
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amdahl_loop.adapters.memory import MemoryLedger
from amdahl_loop.domain.plan import Challenge, Halt, Launch, Wait
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import OVERRUN_S, Finished, RunRequest, block_request
from amdahl_loop.reconcile import Identity, Ports, tick
from builders import FAMILY, FINGERPRINT, UID, make_job
from fakes import SimulatedRunner, Truth, loader_bound
from judge_builders import make_plan

IDENTITY = Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY)


@dataclass
class HangingRunner(SimulatedRunner):
    """A machine on which some runs hang: these hold their devices until the last moment that they are granted."""

    hanging: float = 0.0

    async def submit(self, job: TrainingJob, request: RunRequest) -> None:
        """Run it; a run that hangs reports nothing."""
        await super().submit(job, request)
        if random.Random(request.run).random() < self.hanging and "-o" not in request.run:
            held_s = request.reserved_device_s(job.spec.replicas)
            self.runs[request.run] = Finished(failure="deadline", started_at_s=self.now_s, held_device_s=held_s)
            self.now_s += held_s


@settings(max_examples=25)
@given(
    budget_s=st.integers(1, 9_000),
    hanging=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    processes=st.sampled_from([1, 4]),
    profile=st.sampled_from(["quick", "quick", "standard"]),
)
def test_spent_and_reserved_stay_within_the_budget(budget_s: int, hanging: float, processes: int, profile: str) -> None:
    """At every pass; and the loop ends, be it with a win or with nothing left to spend."""
    budget = {"deviceHours": f"{budget_s / 3600:.6f}"}
    job = make_job({"dataloaderWorkers": 0, "gpusPerReplica": processes}, {"profile": profile, "budget": budget})
    runner, ledger = HangingRunner(Truth(phases_s=loader_bound), now_s=1e6, hanging=hanging), MemoryLedger()
    budget_h = job.budget_device_hours[0]

    async def loop() -> None:
        ports = Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s)
        for _ in range(400):
            seen = await tick(job, IDENTITY, ports)
            spent_h = sum(e.held_device_s for e in ledger.state.experiments.values()) / 3600
            reserved_h = 0.0
            if isinstance(seen.action, Launch | Challenge) and seen.is_waiting:
                reserved_h = seen.action.request.reserved_device_s(job.spec.replicas) / 3600
            assert spent_h + reserved_h <= budget_h * (1 + 1e-9)
            if isinstance(seen.action, Wait):
                runner.now_s = seen.action.until_s
            if isinstance(seen.action, Halt):
                return
        raise AssertionError("the loop does not end")

    asyncio.run(loop())


def make_request(processes: int = 1, expected_s: float = 20.0, deadline_s: float = 300.0) -> RunRequest:
    """The run of a block on so many devices a replica."""
    plan = make_plan(after=processes, before=2 * processes)
    request = block_request(plan, plan.blocks[2], startup_s=4.0, step_s=0.1)
    windows = tuple(
        w.model_copy(update={"knobs": w.knobs.model_copy(update={"gpus_per_replica": processes})})
        for w in request.windows
    )
    return request.model_copy(update={"windows": windows, "expected_s": expected_s, "deadline_s": deadline_s})


@pytest.mark.parametrize(
    ("left_s", "processes", "replicas", "deadline_s"),
    [
        pytest.param(10_000.0, 1, 1, 300.0, id="plenty: its own deadline"),
        pytest.param(300 + OVERRUN_S, 1, 1, 300.0, id="just enough"),
        pytest.param(200.0, 1, 1, 200 - OVERRUN_S, id="less: the deadline is what can be paid for"),
        pytest.param(30 + OVERRUN_S, 1, 1, 30.0, id="one and a half times what it takes"),
        pytest.param(29 + OVERRUN_S, 1, 1, None, id="too little"),
        pytest.param(0.0, 1, 1, None, id="nothing"),
        pytest.param(-50.0, 1, 1, None, id="less than nothing"),
        pytest.param(8 * 200.0, 4, 2, 200 - OVERRUN_S, id="on eight devices"),
        pytest.param(8 * 30.0, 4, 2, None, id="eight devices need eight times as much"),
    ],
)
def test_a_deadline_never_outlives_the_budget(
    left_s: float, processes: int, replicas: int, deadline_s: float | None
) -> None:
    """What a run may hold at most, its ending included, is paid for before it starts."""
    fitted = make_request(processes).fit(left_s, replicas)
    assert (fitted.deadline_s if fitted else None) == deadline_s
    if fitted is not None:
        assert fitted.reserved_device_s(replicas) <= left_s


def test_what_a_block_is_expected_to_take_is_its_launches_and_windows() -> None:
    """Relaunched four times or switched live: startup as observed, warm-ups and windows as planned."""
    for is_live, launches in ((True, 1), (False, 4)):
        plan = make_plan(live=is_live)
        (spec, *_) = (block for block in plan.blocks if block.stage == "discovery")
        request = block_request(plan, spec, startup_s=10.0, step_s=0.0)
        windows_s = sum(window.warmup_s + window.measure_s for window in request.windows)
        assert request.expected_s == pytest.approx(10 * launches + windows_s)
