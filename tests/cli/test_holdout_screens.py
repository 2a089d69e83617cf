"""What a person sees of a win that is tested on: the log, the live view, `show`, its drawing and `explain`."""

import asyncio
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from amdahl_loop.adapters.memory import MemoryLedger
from amdahl_loop.cli.chronicle import Chronicle
from amdahl_loop.cli.drive import drive
from amdahl_loop.cli.explain import _tell_next
from amdahl_loop.cli.report import shape_blocks, shape_experiment
from amdahl_loop.cli.scene import draw
from amdahl_loop.cli.shapes import ShowShape
from amdahl_loop.cli.svg import draw_blocks
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.plan import Challenge, Wait
from amdahl_loop.domain.runs import RunState
from amdahl_loop.domain.telemetry import Phase
from amdahl_loop.reconcile import Identity, Ports, Tick
from builders import FAMILY, FINGERPRINT, UID, make_job
from fakes import COMPUTE_S, SimulatedRunner, Truth, loader_bound

IDENTITY = Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY)
JOB = make_job({"dataloaderWorkers": 0}, {"profile": "standard"})


@dataclass
class Seen:
    """A watch that keeps every line and every tick, and skips the waits between checks."""

    runner: SimulatedRunner
    ledger: MemoryLedger
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    chronicle: Chronicle = field(default_factory=Chronicle)
    lines: list[str] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)

    def ticked(self, latest: Tick) -> None:
        """Keep it; a wait is over at once."""
        self.lines.extend(self.chronicle.tell(latest))
        self.ticks.append(latest)
        if isinstance(latest.action, Wait):
            self.runner.now_s = latest.action.until_s

    def polled(self, state: RunState) -> None:
        """Nothing to see."""


def run_loop(runner: SimulatedRunner, ledger: MemoryLedger) -> Seen:
    """One start of the loop, to its end."""

    async def turn() -> Seen:
        seen = Seen(runner, ledger)
        ports = Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s)
        await drive(JOB, IDENTITY, ports, seen, seen.stop)
        return seen

    return asyncio.run(turn())


@pytest.fixture(scope="module")
def life() -> list[Seen]:
    """Tuned; then three days on which nothing of the win is left."""
    runner, ledger = SimulatedRunner(Truth(phases_s=loader_bound), now_s=1e6), MemoryLedger()
    turns = [run_loop(runner, ledger)]
    runner.truth = Truth(phases_s=lambda _: {Phase.COMPUTE: COMPUTE_S, Phase.INPUT: 0.0})
    for _ in range(3):
        runner.now_s += 1.01 * 86_400
        turns.append(run_loop(runner, ledger))
    return turns


def tuned_experiment(life: list[Seen]) -> Experiment:
    """The experiment, with its blocks before and after the verdict."""
    return next(iter(life[-1].ledger.state.experiments.values()))


def challenge_of(seen: Seen) -> Tick:
    """The tick that ran the block."""
    return next(tick for tick in seen.ticks if isinstance(tick.action, Challenge))


def test_the_log_says_what_was_tested_and_why_it_was_taken_back(life: list[Seen]) -> None:
    """One line for the block, one for what it found, one for the old value."""
    assert any(line.startswith("  holdout block 1 (") and "no block has tested it" in line for line in life[1].lines)
    assert any(line.startswith("  holdout block 1: ") for line in life[1].lines)
    (taken_back,) = [line for turn in life for line in turn.lines if line.startswith("taken back")]
    assert taken_back.startswith("taken back: dataloaderWorkers 0 again; faded: saves ")
    assert taken_back in life[3].lines


def test_the_live_view_does_not_promise_a_win(life: list[Seen]) -> None:
    """The experiment is over; the view shows the block and how the win stands."""
    tick = challenge_of(life[2])
    console = Console(width=160)
    with console.capture() as capture:
        console.print(draw(tick, None, elapsed_s=5.0, running_s=1.0))
    shown = capture.get()
    assert "holdout block 2" in shown
    assert "stands: saves" in shown
    assert "if it wins" not in shown


def test_show_and_its_drawing_hold_the_blocks_last(life: list[Seen]) -> None:
    """In the order in which they ran, in a colour of their own."""
    experiment = tuned_experiment(life)
    shaped = shape_blocks(experiment)
    assert [block.name for block in shaped[-3:]] == ["h0", "h1", "h2"]
    assert len(shaped) == len(experiment.blocks)
    shown = ShowShape(
        experiment=shape_experiment(experiment),
        hypothesis="-",
        profile="standard",
        objective="DeviceHours",
        seed=1,
        floor=0.03,
        planned_blocks=len(experiment.plan.blocks),
        runs=shaped,
        svg=None,
    )
    drawing = draw_blocks(shown)
    assert drawing.count('class="holdout') == 3 + 1
    assert ">holdout<" in drawing


def test_explain_names_the_block_that_is_due(life: list[Seen]) -> None:
    """It would be the first thing that `run` does."""
    said = _tell_next(challenge_of(life[1]).action)
    assert said.startswith("`run` would test a win on first: dataloaderWorkers 0 -> 3 claims 70")
