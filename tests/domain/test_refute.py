"""What makes a refute check's vote, and when it counts."""

import pytest

from amdahl_loop.domain import refute
from amdahl_loop.domain.blocks import BlockSpec, Stage
from amdahl_loop.domain.evidence import Evidence, read_block, sift
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Plan
from amdahl_loop.domain.verdicts import Vote
from judge_builders import Bench, make_constants, make_plan

PLAN = make_plan()
DISCOVERY = PLAN.stage_blocks(Stage.DISCOVERY)[:4]
FIRST, SECOND = (PLAN.stage_blocks(Stage.REFUTE, check)[0] for check in (0, 1))


def make_vote(agree: bool, check: int = 0) -> Vote:
    """A vote that changed everything it had to."""
    return Vote(check=check, agree=agree, effect=0.1, bar=0.05, changed=refute.REQUIRED_CHANGES)


def make_check(spec: BlockSpec, plan: Plan = PLAN, **changes: object) -> refute.Check:
    """A check of one block on a quiet bench, its record changed."""
    record = Bench(plan, gain=0.2, noise=0.001).run(spec).model_copy(update=changes)
    sifted = sift([read_block(plan, record)], plan.constants)
    check = refute.run_check(spec.check, sifted, [record], 1, is_exhausted=False)
    assert check is not None
    return check


def records_of(*specs: BlockSpec) -> list[BlockRecord]:
    """Records of discovery or of other checks."""
    return [Bench(PLAN, gain=0.2, noise=0.001).run(spec) for spec in specs]


def test_a_planned_check_changes_all_that_it_must() -> None:
    """Time, order, data offset and seed differ by plan; the node does where there is another."""
    here = refute.name_changes(make_check(FIRST), records_of(*DISCOVERY), records_of(SECOND))
    there = refute.name_changes(make_check(FIRST, node="n1"), records_of(*DISCOVERY), records_of(SECOND))
    assert here == ("time", "order", "offset", "seed")
    assert there == ("time", "order", "offset", "seed", "node")


@pytest.mark.parametrize(
    ("same", "missing"),
    [
        pytest.param({"seeds": DISCOVERY[0].seeds}, "seed", id="a seed of discovery"),
        pytest.param({"offsets": DISCOVERY[2].offsets}, "offset", id="data of discovery"),
    ],
)
def test_a_check_that_repeats_discovery_does_not_count(same: dict[str, object], missing: str) -> None:
    """What was the same is named."""
    spec = FIRST.model_copy(update=same)
    plan = PLAN.model_copy(update={"blocks": (*PLAN.blocks, spec)})
    vote = refute.cast_vote(make_check(spec, plan), records_of(*DISCOVERY), records_of(SECOND), bar=0.05)
    assert refute.unchanged(vote) == (missing,)


def test_a_check_at_the_time_of_discovery_does_not_count() -> None:
    """A parallel run on another node is not another time."""
    discovery = records_of(*DISCOVERY)
    check = make_check(FIRST, started_at_s=discovery[0].started_at_s)
    assert refute.unchanged(refute.cast_vote(check, discovery, [], bar=0.05)) == ("time",)


def test_one_order_in_all_blocks_does_not_count() -> None:
    """If discovery and checks all ran ABBA, whatever favours its outer windows would be upheld."""
    order = {"order": "ABBA", "labels": "ABBA"}
    spec, others = FIRST.model_copy(update=order), [s.model_copy(update=order) for s in DISCOVERY]
    plan = PLAN.model_copy(update={"blocks": (*others, spec)})
    records = [Bench(plan, gain=0.2, noise=0.001).run(other) for other in others]
    vote = refute.cast_vote(make_check(spec, plan), records, [], bar=0.05)
    assert refute.unchanged(vote) == ("order",)


@pytest.mark.parametrize(
    ("claim", "floor", "bar"),
    [
        pytest.param(0.20, 0.03, 0.10, id="half the claim"),
        pytest.param(0.04, 0.06, 0.03, id="half the floor, where that is more"),
    ],
)
def test_agreement_bar(claim: float, floor: float, bar: float) -> None:
    """A check agrees at half the claim and half the floor at least."""
    assert refute.agreement_bar(claim, floor, make_constants()) == pytest.approx(bar)


@pytest.mark.parametrize(
    ("votes", "checks", "lost"),
    [
        pytest.param([], 3, False, id="none yet"),
        pytest.param([False], 3, False, id="one against, two to come"),
        pytest.param([False, False], 3, True, id="two of three against"),
        pytest.param([True, False, True], 3, False, id="a majority for"),
        pytest.param([False, True, False, True], 5, False, id="open"),
        pytest.param([False, True, False, False], 5, True, id="three of five against"),
    ],
)
def test_a_claim_is_lost_once_no_majority_is_possible(votes: list[bool], checks: int, lost: bool) -> None:
    """Early termination only where the outcome cannot change."""
    assert refute.is_lost([make_vote(agree) for agree in votes], checks) is lost


def make_evidence(effect: float, gaps: tuple[float, float] = (0.0, 0.0), is_measured: bool = True) -> Evidence:
    """A block of a check, already read."""
    return Evidence(FIRST, "n0", is_measured=is_measured, effect=effect, gaps=gaps)


@pytest.mark.parametrize(
    ("blocks", "exhausted", "effect", "voted"),
    [
        pytest.param([make_evidence(0.2)], False, 0.2, 0.2, id="one valid block"),
        pytest.param([make_evidence(0.9, (0.5, 0.0))], False, None, None, id="void: wait for the spare"),
        pytest.param([make_evidence(0.9, (0.5, 0.0)), make_evidence(0.2)], False, 0.2, 0.2, id="spare replaces it"),
        pytest.param(
            [make_evidence(-0.2, (0.0, 0.5)), make_evidence(0.2)], False, 0.2, 0.0, id="kept: the variant spoilt it"
        ),
        pytest.param([make_evidence(0.1, (0.5, 0.0))], True, 0.1, 0.1, id="exhausted: void blocks fill up"),
        pytest.param([make_evidence(0.0, is_measured=False)], True, None, None, id="missing blocks never do"),
    ],
)
def test_what_a_check_finds(blocks: list[Evidence], exhausted: bool, effect: float | None, voted: float | None) -> None:
    """The estimate uses valid blocks; the vote also sees blocks that only the variant spoilt."""
    check = refute.run_check(0, sift(blocks, make_constants(void_factor=0.0)), [], 1, is_exhausted=exhausted)
    found = (check.effect, check.voted) if check else (None, None)
    assert found == (pytest.approx(effect), pytest.approx(voted)) if check else found == (effect, voted)


SPACED = make_plan(constants=make_constants(check_spacing_s=3600.0))


def experiment_at(*starts_s: tuple[Stage, int, float]) -> Experiment:
    """A spaced experiment whose blocks, the first of each stage and check, began at these times."""
    bench = Bench(SPACED, gain=0.2, noise=0.001)
    records = [
        bench.run(SPACED.stage_blocks(stage, check)[0]).model_copy(update={"started_at_s": at_s})
        for stage, check, at_s in starts_s
    ]
    return Experiment(plan=SPACED, blocks=tuple(records))


@pytest.mark.parametrize(
    ("starts_s", "stage", "check", "due_s"),
    [
        pytest.param([(Stage.DISCOVERY, 0, 100.0)], Stage.REFUTE, 0, 3700.0, id="first check after discovery"),
        pytest.param(
            [(Stage.DISCOVERY, 0, 100.0), (Stage.REFUTE, 0, 3700.0)],
            Stage.REFUTE,
            1,
            7300.0,
            id="second after the first",
        ),
        pytest.param(
            [(Stage.DISCOVERY, 0, 100.0), (Stage.REFUTE, 0, 9000.0)],
            Stage.REFUTE,
            1,
            12600.0,
            id="a late one delays the next",
        ),
        pytest.param(
            [(Stage.DISCOVERY, 0, 100.0), (Stage.REFUTE, 0, 3700.0)],
            Stage.REFUTE,
            0,
            3700.0,
            id="a spare block does not wait again",
        ),
        pytest.param([(Stage.PROOF, 0, 50.0)], Stage.REFUTE, 0, 3650.0, id="a transfer waits after its proof"),
        pytest.param([(Stage.DISCOVERY, 0, 100.0)], Stage.DISCOVERY, 0, None, id="discovery does not wait"),
        pytest.param([(Stage.REFUTE, 0, 100.0)], Stage.SOAK, 0, None, id="nor does the soak"),
    ],
)
def test_checks_keep_their_distance(
    starts_s: list[tuple[Stage, int, float]], stage: Stage, check: int, due_s: float | None
) -> None:
    """A check begins the plan's distance after the newest block that is not its own."""
    spec = SPACED.stage_blocks(stage, check)[-1]
    assert refute.due_at_s(experiment_at(*starts_s), spec) == due_s


def test_checks_without_spacing_start_at_once() -> None:
    """`quick` keeps no distance: its wins are claimed for the hour in which they were tested."""
    assert refute.due_at_s(Experiment(plan=PLAN, blocks=tuple(records_of(*DISCOVERY))), FIRST) is None


@pytest.mark.parametrize(("apart_s", "counts"), [(3600.0, True), (3450.0, True), (3300.0, False), (-3600.0, True)])
def test_a_check_too_close_to_other_evidence_does_not_count(apart_s: float, counts: bool) -> None:
    """The records must confirm the distance, whichever clock they come from, within a twentieth."""
    discovery = records_of(DISCOVERY[0])
    check = make_check(FIRST, started_at_s=discovery[0].started_at_s + apart_s)
    vote = refute.cast_vote(check, discovery, [], bar=0.05, spacing_s=3600.0)
    assert ("time" not in refute.unchanged(vote)) == counts
