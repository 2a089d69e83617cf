"""Where time is booked in scripts that make batches, evaluations or updates by hand: `handmade.py`, step by step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from amdahl_probe.draft import Draft
from amdahl_probe.evaluation import Evaluation
from amdahl_probe.forwards import Forwards
from amdahl_probe.guarding import Switch
from amdahl_probe.spans import Ledger
from probe.runs import SCRIPTS, Scripts, torch_has

SLOW_NS = 30_000_000
"""What each forward pass, each batch made by hand and each pause takes in `handmade.py`."""

LOOPS = ["plain", "transformed", "accumulated", "evaluated", "inferred", "careless", "frozen", "looked", "adversarial"]
LOOPS += ["parted", "fused", "loaded", "compiled"]

#: Of each loop, by step: how many slow parts are booked to which phase. Step 0 holds the startup.
Table = dict[str, dict[int, dict[str, int]]]


def rows(steps: int, usual: dict[str, int], **special: dict[str, int]) -> dict[int, dict[str, int]]:
    """Steps 1 to `steps` - 1, of which some (`s2` is step 2) are special."""
    return {at: special.get(f"s{at}", usual) for at in range(1, steps)}


EVALUATED = {"other": 1, "eval": 2, "compute": 1}
EXPECTED: Table = {
    "plain": rows(4, {"other": 1, "compute": 1}),
    "transformed": rows(4, {"other": 2, "compute": 1}),
    "accumulated": rows(4, {"other": 1, "compute": 3}),
    "evaluated": rows(4, {"other": 1, "compute": 1}, s2={"other": 1, "eval": 4, "compute": 1, "checkpoint": 0}),
    "inferred": rows(4, {"other": 1, "compute": 1}, s2=EVALUATED),
    "careless": rows(4, {"other": 1, "compute": 1}, s2=EVALUATED),
    "frozen": rows(4, {"other": 1, "compute": 1}, s2=EVALUATED),
    "looked": rows(4, {"other": 1, "compute": 1}, s2={"other": 0, "eval": 2, "compute": 1}),
    "adversarial": rows(4, {"other": 2, "compute": 2}),
    "parted": rows(4, {"other": 1, "compute": 2}),
    "parted, without optimizer pre-hooks": rows(4, {"other": 2, "compute": 1}),
    "fused": rows(4, {"other": 1, "compute": 3}),
    "loaded": {
        **{at: {"other": 0, "compute": 1} for at in (1, 3, 5, 7)},
        **{at: {"other": 0, "input": 1, "compute": 1} for at in (2, 6)},
        4: {"other": 1, "eval": 3, "input": 1, "compute": 1},
    },
    "compiled": rows(8, {"other": 1, "compute": 1}, s4={"other": 1, "eval": 1, "compute": 1}),
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory, probe_zip: Path, bare_env: dict[str, str]) -> Iterator[Scripts]:
    """The script, with the probe and without."""
    run = Scripts(tmp_path_factory.mktemp("phases"), probe_zip, bare_env)
    for name, probe in (("handmade", True), ("handmade-bare", False)):
        run.start(name, str(SCRIPTS / "handmade.py"), str(run.out(name)), probe=probe)
    yield run
    run.close()


@pytest.mark.slow
class TestHandmade:
    """Real loops, each in a process of its own."""

    @pytest.mark.parametrize("loop", LOOPS)
    def test_losses_are_bit_identical(self, loop: str, scripts: Scripts) -> None:
        """[P] With and without the probe."""
        bare, probed = (scripts.result(name) for name in ("handmade-bare", "handmade"))
        assert (bare.code, probed.code) == (0, 0), probed.errors
        expected = (scripts.out("handmade-bare") / f"{loop}.losses").read_text()

        assert expected
        assert (scripts.out("handmade") / f"{loop}.losses").read_text() == expected

    def test_nothing_is_said_or_compiled_for_the_probe(self, scripts: Scripts) -> None:
        """[P] The same warnings, and as many graphs as without it."""
        assert scripts.result("handmade") == scripts.result("handmade-bare")

    @pytest.mark.parametrize("loop", LOOPS)
    def test_each_part_is_booked_to_its_phase(self, loop: str, scripts: Scripts) -> None:
        """At least the slow parts, no phase that the step has not, and sums that are exact."""
        steps = {step["i"]: step["ph"] for step in scripts.steps("handmade", LOOPS.index(loop))}
        is_less = loop == "parted" and not torch_has("optimizer pre-hooks")
        table = EXPECTED[f"{loop}, without optimizer pre-hooks" if is_less else loop]

        for at, expected in table.items():
            told = {phase: ns for phase, ns in steps[at].items() if ns}
            assert told.keys() == expected.keys(), (at, told)
            assert all(told[phase] >= slow * SLOW_NS for phase, slow in expected.items()), (at, told)
        assert steps.keys() - table.keys() == {0}

    @pytest.mark.parametrize("loop", LOOPS)
    def test_walls_are_conserved(self, loop: str, scripts: Scripts) -> None:
        """Phases sum to the step's wall, and walls to the run's, to the nanosecond."""
        steps = scripts.steps("handmade", LOOPS.index(loop))

        assert all(sum(step["ph"].values()) == step["w"] for step in steps)
        assert sum(step["w"] for step in steps[1:]) == steps[-1]["t"] - steps[0]["t"]

    @pytest.mark.parametrize("loop", LOOPS)
    def test_samples_are_those_of_training_loaders(self, loop: str, scripts: Scripts) -> None:
        """Batches made by hand are not seen, and those of an evaluation do not count."""
        samples = [step["n"] for step in scripts.steps("handmade", LOOPS.index(loop))]

        assert samples == ([8, 0] * 4 if loop == "loaded" else [0] * len(samples))


class TestForwards:
    """Which calls the hook sees, on real modules."""

    @pytest.fixture
    def seen(self) -> Iterator[tuple[Forwards, list[tuple[bool, bool]]]]:
        """A hook that takes itself away when it is told of a call, and what it was told."""
        told: list[tuple[bool, bool]] = []

        def begin(is_recording: bool, is_training: bool) -> None:
            told.append((is_recording, is_training))
            forwards.ignore()

        forwards = Forwards(Switch(), torch, begin)
        yield forwards, told
        forwards.ignore()

    def test_the_first_call_alone_is_seen(self, seen: tuple[Forwards, list[Any]]) -> None:
        """The outermost module, once, and none before `watch`."""
        forwards, told = seen
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        model(torch.ones(2))
        forwards.watch()
        model(torch.ones(2))
        model(torch.ones(2))

        assert told == [(True, True)]

    @pytest.mark.parametrize(
        ("module", "is_seen"),
        [
            (torch.nn.Linear(2, 2), True),
            (torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 2)), True),
            (torch.nn.ReLU(), False),
            (torch.nn.BatchNorm1d(2, affine=False).eval(), False),
        ],
    )
    def test_modules_without_parameters_are_not_models(
        self, module: torch.nn.Module, is_seen: bool, seen: tuple[Forwards, list[Any]]
    ) -> None:
        """Transforms, losses and metrics are called between steps too."""
        forwards, told = seen
        forwards.watch()
        module(torch.ones(2, 2))

        assert bool(told) is is_seen

    @pytest.mark.parametrize(
        ("mode", "is_training", "expected"),
        [
            (torch.enable_grad, True, (True, True)),
            (torch.enable_grad, False, (True, False)),
            (torch.no_grad, True, (False, True)),
            (torch.inference_mode, False, (False, False)),
        ],
    )
    def test_gradients_and_mode_are_told(
        self, mode: Any, is_training: bool, expected: tuple[bool, bool], seen: tuple[Forwards, list[Any]]
    ) -> None:
        """What makes a call training or evaluation."""
        forwards, told = seen
        forwards.watch()
        with mode():
            torch.nn.Linear(2, 2).train(is_training)(torch.ones(2))

        assert told == [expected]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


CERTAIN, DOUBTFUL, TRAINING = "called without gradients", "called in evaluation mode", "called in training mode"


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([CERTAIN, TRAINING], {"other": 1, "eval": 1, "compute": 1}),
        ([CERTAIN, CERTAIN, TRAINING], {"other": 1, "eval": 2, "compute": 1}),
        ([DOUBTFUL], {"other": 1, "compute": 1}),
        ([DOUBTFUL, DOUBTFUL], {"other": 1, "compute": 2}),
        ([DOUBTFUL, TRAINING], {"other": 1, "eval": 1, "compute": 1}),
        ([CERTAIN, DOUBTFUL], {"other": 1, "eval": 1, "compute": 1}),
        ([CERTAIN], {"other": 1, "eval": 1}),
    ],
)
def test_evaluation_is_what_no_backward_pass_follows(calls: list[str], expected: dict[str, int]) -> None:
    """A second passes before the first call, after each call, and the last one ends with a backward pass."""
    clock = Clock()
    ledger = Ledger(clock, bottom="other")
    evaluation, draft = Evaluation(ledger, ledger.rest), Draft()
    clock.now += 1
    for call in calls:
        if call == TRAINING:
            evaluation.interrupt()
        else:
            evaluation.call(is_certain=call == CERTAIN)
        clock.now += 1
    if evaluation.is_provisional:
        evaluation.promote(draft)
    draft.close(0, clock.now, ledger.take())

    assert {phase: ns for phase, ns in draft.phases.items() if ns} == expected
