"""On which node should a block run?

The first block of an experiment goes where the scheduler likes. Later ones stay on its node, so that blocks differ by
nothing else; refute checks go elsewhere where there is an elsewhere. Storage that only one node may attach overrules
all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.children import EXPERIMENT_LABEL, JOB_LABEL, REVISION_LABEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """Where an earlier block of the experiment ran; no nodes where it found no place."""

    stage: Stage
    check: int
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Nodes that a block must run on (none: any), and nodes that it should rather not.

    `after` names the job whose running pods have to be gone from a node first: the two take turns there.
    """

    required: tuple[str, ...] = ()
    avoided: tuple[str, ...] = ()
    after: str = ""


def place(stage: Stage, check: int, past: Sequence[Visit], bound_to: Sequence[str] = ()) -> Placement:
    """Where the next block should run. `bound_to`: the job's nodes, where its storage can be attached nowhere else.

    After a block that found no place the next one is free again: its node may be gone for good.
    """
    if bound_to:
        return Placement(required=tuple(bound_to))
    if not past or not past[-1].nodes:
        return Placement()
    if stage is not Stage.REFUTE:
        first = next(visit for visit in past if visit.nodes)
        return Placement(required=first.nodes)
    own = [visit for visit in past if visit.stage is Stage.REFUTE and visit.check == check and visit.nodes]
    if own:
        return Placement(required=own[0].nodes)
    return Placement(avoided=tuple(sorted({node for visit in past for node in visit.nodes})))


def affine(affinity: Object, placement: Placement, experiment: str) -> Object:
    """The user's affinity and this placement, both in force; and no other experiment, of any namespace, on the node.

    Node terms are alternatives, so the placement goes into each of them.
    """
    changed = dict(affinity)
    if placement.required or placement.avoided:
        changed["nodeAffinity"] = _node_affinity(affinity.get("nodeAffinity") or {}, placement)
    apart = dict(affinity.get("podAntiAffinity") or {})
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    turns = [_running_pods(placement.after)] if placement.after else []
    apart[required] = [*(apart.get(required) or ()), _other_experiments(experiment), *turns]
    return changed | {"podAntiAffinity": apart}


def _node_affinity(affinity: Object, placement: Placement) -> Object:
    changed = dict(affinity)
    if placement.required:
        key = "requiredDuringSchedulingIgnoredDuringExecution"
        terms = (affinity.get(key) or {}).get("nodeSelectorTerms") or [{}]
        field = {"key": "metadata.name", "operator": "In", "values": list(placement.required)}
        if len(placement.required) == 1:
            pinned = [term | {"matchFields": [*(term.get("matchFields") or ()), field]} for term in terms]
        else:  # a field takes one value, so each node is an alternative of its own
            pinned = [
                term | {"matchFields": [*(term.get("matchFields") or ()), field | {"values": [node]}]}
                for term in terms
                for node in placement.required
            ]
        changed[key] = {"nodeSelectorTerms": pinned}
    if placement.avoided:
        key = "preferredDuringSchedulingIgnoredDuringExecution"
        away = [
            {
                "weight": 100,
                "preference": {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": [n]}]},
            }
            for n in placement.avoided
        ]
        changed[key] = [*(affinity.get(key) or ()), *away]
    return changed


def _running_pods(job: str) -> Object:
    """The scheduler reads it both ways: neither do the job's pods come to a node while the block's are there."""
    own = [
        {"key": JOB_LABEL, "operator": "In", "values": [job]},
        {"key": REVISION_LABEL, "operator": "Exists"},
    ]
    return {"labelSelector": {"matchExpressions": own}, "topologyKey": "kubernetes.io/hostname"}


def _other_experiments(experiment: str) -> Object:
    others = [
        {"key": EXPERIMENT_LABEL, "operator": "Exists"},
        {"key": EXPERIMENT_LABEL, "operator": "NotIn", "values": [experiment]},
    ]
    return {
        "labelSelector": {"matchExpressions": others},
        "namespaceSelector": {},
        "topologyKey": "kubernetes.io/hostname",
    }
