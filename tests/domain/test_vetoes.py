"""Guards that end a win alone, one by one."""

from typing import Any

import pytest

from amdahl_loop.domain import vetoes
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.evidence import Evidence, read_block, sift
from amdahl_loop.domain.experiments import Plan
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.telemetry import Arm
from amdahl_loop.domain.verdicts import Veto
from judge_builders import make_constants, make_plan, make_record, make_window

PLAN = make_plan()
SPEC = PLAN.stage_blocks(Stage.DISCOVERY)[0]
SPREAD = (0.02, 10)


def make_block(baseline: dict[str, Any], variant: dict[str, Any], plan: Plan = PLAN) -> Evidence:
    """A discovery block; a tuple holds one value for each of the arm's two windows."""
    seen = {"A": 0, "B": 0}
    windows = []
    for index, arm in enumerate(SPEC.labels):
        fields = baseline if arm == "A" else variant
        changes = {k: v[seen[arm]] if isinstance(v, tuple) else v for k, v in fields.items()}
        windows.append(make_window(Arm(arm), index, **changes))
        seen[arm] += 1
    return read_block(plan, make_record(plan, SPEC, tuple(windows)))


@pytest.mark.parametrize(
    ("baseline", "variant", "name"),
    [
        pytest.param({}, {}, None, id="equal"),
        pytest.param({}, {"samples": (624, 640)}, None, id="an epoch's short last batch"),
        pytest.param({}, {"samples": 560}, "work", id="fewer samples a step"),
        pytest.param({}, {"elements_per_sample": 64.5}, None, id="lengths that vary by 1 %"),
        pytest.param({"elements_per_sample": (60.0, 64.0)}, {"elements_per_sample": (62.0, 68.0)}, None, id="by data"),
        pytest.param({"elements_per_sample": (60.0, 64.0)}, {"elements_per_sample": 50.0}, "work", id="beyond data"),
        pytest.param({"shape": ("aaaaaaaa", "bbbbbbbb")}, {"shape": "cccccccc"}, None, id="shapes vary by data"),
        pytest.param({}, {"shape": "cccccccc"}, "work", id="another shape throughout"),
        pytest.param({"distinct_ppk": (900, 1000)}, {"distinct_ppk": 880}, None, id="few batches repeat by chance"),
        pytest.param({}, {"distinct_ppk": 900}, "work", id="batches repeat"),
        pytest.param({"clock_ppk": 60}, {"clock_ppk": -60}, None, id="polling of short windows"),
        pytest.param({}, {"clock_ppk": -100}, "meter", id="a slow clock"),
        pytest.param({"clock_ppk": 100}, {}, "meter", id="the baseline's clock"),
        pytest.param({}, {"clock_ppk": (90, -90)}, None, id="disturbed readings: void, not a lie"),
        pytest.param({}, {"clock_ppk": (200, 0)}, None, id="one late reading: void, not a lie"),
        pytest.param({"loss_mean": None}, {"loss_mean": None}, None, id="no losses in either arm"),
        pytest.param({}, {"loss_mean": (2.5, None)}, "quality", id="a loss hidden"),
    ],
)
def test_guards_of_one_block(baseline: dict[str, Any], variant: dict[str, Any], name: str | None) -> None:
    """Work, meter and quality read every block before any statistics."""
    found = vetoes.check_block(make_block(baseline, variant))
    assert (found.name if found else None) == name
    assert found is None or not found.silent


def test_a_disturbed_clock_makes_the_block_void() -> None:
    """One window whose clock cannot be believed is no evidence."""
    assert not make_block({}, {"clock_ppk": (90, -90)}).is_measured


@pytest.mark.parametrize(
    ("limit", "peak", "silent"),
    [
        pytest.param(None, 4000, True, id="no limit: loader workers cost memory"),
        pytest.param(None, 5000, False, id="no limit: twice, and 4 GiB more"),
        pytest.param(8000, 7100, True, id="within nine tenths of the limit"),
        pytest.param(8000, 7300, False, id="too near the limit"),
    ],
)
def test_memory(limit: int | None, peak: int, silent: bool) -> None:
    """Harm: against the limit where it is known."""
    plan = make_plan(mem_limit_mib=limit)
    veto = vetoes.judge_memory(plan, [make_block({}, {"peak_mem_mib": peak}, plan)])
    assert veto.silent is silent
    assert f"peak memory {peak} MiB" in veto.sentence


@pytest.mark.parametrize(
    ("effect", "wall_effect", "changes", "silent"),
    [
        pytest.param(0.2, 0.2, {}, True, id="cheaper and faster"),
        pytest.param(0.2, -0.04, {}, True, id="cheaper, 4 % slower"),
        pytest.param(0.2, -0.06, {}, False, id="cheaper, 6 % slower"),
        pytest.param(0.2, -0.06, {"max_slowdown": 1.2}, True, id="a price that its owner accepts"),
        pytest.param(0.05, 0.05, {"restart_s": 3600.0, "device_hours_ahead": 10.0}, False, id="the restart costs more"),
        pytest.param(0.0, 0.0, {}, False, id="saves nothing"),
    ],
)
def test_cost(effect: float, wall_effect: float, changes: dict[str, Any], silent: bool) -> None:
    """Wall time has a price that the owner names, and a restart must be earned back."""
    assert vetoes.judge_cost(make_plan(**changes), effect, wall_effect).silent is silent


def test_a_restart_costs_all_devices() -> None:
    """Six minutes on four devices are 0.4 device-hours."""
    plan = make_plan(knob=KnobName.GPUS_PER_REPLICA, before=8, after=4, restart_s=360.0)
    assert "a restart costs 0.4" in vetoes.judge_cost(plan, 0.1, 0.1).sentence


def make_stage(effects: list[float], gap: float = 0.01) -> Any:
    """Finished blocks of soak or null."""
    blocks = [Evidence(SPEC, "n0", is_measured=True, effect=effect, gaps=(gap, gap)) for effect in effects]
    return sift(blocks, make_constants())


def silence_of(said: Veto | vetoes.Unclear | None) -> str:
    """What a guard said, in one word."""
    if said is None:
        return "more"
    return "unclear" if isinstance(said, vetoes.Unclear) else "silent" if said.silent else "loud"


@pytest.mark.parametrize(
    ("effects", "planned", "said"),
    [
        pytest.param([], 3, "more", id="nothing yet"),
        pytest.param([0.20], 3, "silent", id="one very clear block"),
        pytest.param([0.09], 3, "more", id="one block near the bar"),
        pytest.param([-0.30], 3, "more", id="one block never fails"),
        pytest.param([-0.30, -0.30], 3, "loud", id="two clear failures"),
        pytest.param([0.09, 0.09, 0.09], 3, "silent", id="above the bar at the end"),
        pytest.param([0.07, 0.07, 0.07], 3, "loud", id="below the bar at the end"),
    ],
)
def test_soak(effects: list[float], planned: int, said: str) -> None:
    """0.4 of a claim of 20 % must be left after the long warm-up."""
    assert silence_of(vetoes.judge_soak(make_stage(effects), planned, 0.2, SPREAD, make_constants())) == said


@pytest.mark.parametrize(
    ("effects", "planned", "claim", "said"),
    [
        pytest.param([], 4, 0.2, "more", id="nothing yet"),
        pytest.param([0.01], 4, 0.2, "silent", id="a large claim: one block bounds it"),
        pytest.param([0.01], 4, 0.05, "more", id="a small claim: it does not"),
        pytest.param([0.0] * 6, 6, 0.05, "silent", id="a small claim, bounded"),
        pytest.param([0.0, 0.0], 2, 0.03, "unclear", id="blocks used up, not bounded"),
        pytest.param([0.06, 0.06, 0.06, 0.06], 4, 0.08, "loud", id="the harness flatters"),
        pytest.param([-0.06, -0.06, -0.06, -0.06], 4, 0.08, "loud", id="the harness lies the other way"),
        pytest.param([0.2], 4, 0.2, "more", id="one bad block is not yet a lie"),
    ],
)
def test_null(effects: list[float], planned: int, claim: float, said: str) -> None:
    """Bias loud, bounded, or unclear; the interval uses the pooled spread and its degrees of freedom."""
    assert silence_of(vetoes.judge_null(make_stage(effects), planned, claim, 0.03, SPREAD)) == said


@pytest.mark.parametrize("stage", ["soak", "null"])
def test_unmeasured_guards_are_unclear(stage: str) -> None:
    """Blocks that brought nothing are no silence."""
    lost = sift([Evidence(SPEC, "n0", problem="no report")] * 2, make_constants())
    said = (
        vetoes.judge_soak(lost, 2, 0.2, SPREAD, make_constants())
        if stage == "soak"
        else vetoes.judge_null(lost, 2, 0.2, 0.03, SPREAD)
    )
    assert isinstance(said, vetoes.Unclear)
    assert said.reason == f"no_{stage}"
