"""Where a block runs: with its experiment, away from others, and where its storage lies."""

from typing import Any

import pytest

from amdahl_loop.adapters.kube.placement import Placement, Visit, affine, place
from amdahl_loop.adapters.kube.runner import read_visits
from amdahl_loop.domain.blocks import Stage

D, R, P = Stage.DISCOVERY, Stage.REFUTE, Stage.PROOF
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
EXISTS = {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}


def visit(stage: Stage, *nodes: str, check: int = 0) -> Visit:
    return Visit(stage=stage, check=check, nodes=nodes)


@pytest.mark.parametrize(
    ("stage", "check", "past", "bound", "placement"),
    [
        pytest.param(P, 0, [], [], Placement(), id="the first block goes anywhere"),
        pytest.param(D, 0, [visit(P, "a")], [], Placement(required=("a",)), id="later ones stay"),
        pytest.param(D, 0, [visit(P, "a", "b")], [], Placement(required=("a", "b")), id="on all its nodes"),
        pytest.param(D, 0, [visit(P, "a"), visit(D)], [], Placement(), id="free after finding no place"),
        pytest.param(D, 0, [visit(P), visit(D, "b")], [], Placement(required=("b",)), id="with the first that ran"),
        pytest.param(R, 0, [visit(P, "a"), visit(D, "a")], [], Placement(avoided=("a",)), id="a check goes elsewhere"),
        pytest.param(
            R, 1, [visit(D, "a"), visit(R, "b")], [], Placement(avoided=("a", "b")), id="where no other check was"
        ),
        pytest.param(R, 1, [visit(D, "a"), visit(R, "b", check=1)], [], Placement(required=("b",)), id="its own blocks stay"),
        pytest.param(Stage.NULL, 0, [visit(D, "a"), visit(R, "b")], [], Placement(required=("a",)), id="the null block"),
        pytest.param(Stage.SOAK, 0, [visit(D, "a"), visit(R, "b")], [], Placement(required=("a",)), id="the soak block"),
        pytest.param(R, 0, [visit(D, "a")], ["j"], Placement(required=("j",)), id="storage overrules"),
    ],
)  # fmt: skip
def test_where_the_next_block_runs(
    stage: Stage, check: int, past: list[Visit], bound: list[str], placement: Placement
) -> None:
    """From where the experiment's finished blocks ran."""
    assert place(stage, check, past, bound) == placement


def test_visits_are_read_from_the_experiment() -> None:
    """Oldest first, holdout blocks after the others; what has no name of a block is passed over."""
    blocks = [{"name": "p0", "node": "a"}, {"name": "r2-1", "node": "b,c"}, {"name": "d0"}, {"name": "??"}]
    experiment = {"metadata": {"name": "e-1"}, "status": {"blocks": blocks, "holdouts": [{"name": "h0", "node": "a"}]}}
    assert read_visits(experiment) == (
        visit(P, "a"),
        visit(R, "b", "c", check=2),
        visit(D),
        visit(Stage.HOLDOUT, "a"),
    )
    assert read_visits({"metadata": {"name": "e-1"}}) == ()


def node(name: str, operator: str = "In") -> dict[str, Any]:
    return {"key": "metadata.name", "operator": operator, "values": [name]}


@pytest.mark.parametrize(
    ("own", "placement", "terms"),
    [
        pytest.param({}, Placement(required=("a",)), [{"matchFields": [node("a")]}], id="no wish of the user's"),
        pytest.param(
            {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [EXISTS]}}}, Placement(required=("a",)),
            [EXISTS | {"matchFields": [node("a")]}], id="both hold",
        ),
        pytest.param(
            {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [EXISTS, {"matchFields": [node("z")]}]}}},
            Placement(required=("a",)),
            [EXISTS | {"matchFields": [node("a")]}, {"matchFields": [node("z"), node("a")]}], id="in each alternative",
        ),
        pytest.param(
            {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [EXISTS]}}}, Placement(required=("a", "b")),
            [EXISTS | {"matchFields": [node("a")]}, EXISTS | {"matchFields": [node("b")]}], id="one of several nodes",
        ),
    ],
)  # fmt: skip
def test_the_users_node_affinity_holds_beside_ours(own: Any, placement: Placement, terms: Any) -> None:
    """Terms are alternatives, so the node goes into each of them."""
    assert affine(own, placement, "e")["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] == terms


def test_nodes_to_avoid_are_avoided_where_there_are_others() -> None:
    """A wish, not a demand: on one node a check runs there, and the claim says so."""
    affinity = affine({"nodeAffinity": {PREFERRED: [{"weight": 1}]}}, Placement(avoided=("a", "b")), "e")[
        "nodeAffinity"
    ]
    assert REQUIRED not in affinity
    assert [item["weight"] for item in affinity[PREFERRED]] == [1, 100, 100]
    assert affinity[PREFERRED][1]["preference"] == {"matchFields": [node("a", "NotIn")]}


def test_experiments_keep_apart_across_namespaces() -> None:
    """No other experiment's pod on the node; ranks of the own block may share it; the user's own rules stay."""
    own = {"podAntiAffinity": {REQUIRED: [{"topologyKey": "rack"}]}, "podAffinity": {PREFERRED: []}}
    affinity = affine(own, Placement(), "pydocs-1")
    rack, apart = affinity["podAntiAffinity"][REQUIRED]
    assert rack == {"topologyKey": "rack"}
    assert apart["namespaceSelector"] == {}
    assert apart["labelSelector"]["matchExpressions"] == [
        {"key": "amdahl-loop.io/experiment", "operator": "Exists"},
        {"key": "amdahl-loop.io/experiment", "operator": "NotIn", "values": ["pydocs-1"]},
    ]
    assert affinity["podAffinity"] == {PREFERRED: []}
    assert own["podAntiAffinity"][REQUIRED] == [{"topologyKey": "rack"}]
