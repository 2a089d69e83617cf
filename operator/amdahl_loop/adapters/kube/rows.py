"""What is kept of one Experiment, so that a closed one need not be read again?

A compact form that answers every question which `plan.next_action` asks of closed experiments: the plan with one of its
blocks, the verdict without its votes, and what all blocks held together.
"""

import json
import marshal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from sys import intern
from typing import Any, NamedTuple

from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.domain.api.records import StoredExperiment, Unreadable, read_experiment
from amdahl_loop.domain.api.timestamps import to_epoch_s
from amdahl_loop.domain.ledger import ApplicationKind
from amdahl_loop.domain.verdicts import VerdictWord

EXPANDED = 4096
"""Closed experiments that stay parsed, about 10 KiB each: those of a namespace's jobs, which are looked at together."""


class Key(NamedTuple):
    """Where an Experiment is."""

    namespace: str
    name: str


class Group(NamedTuple):
    """Experiments of a namespace that have a job's UID, a fingerprint or a family in common."""

    namespace: str
    value: str


class Order(NamedTuple):
    """Experiments of a job sort by it: oldest first, the open one last."""

    closed_at_s: float
    created_at_s: float
    name: str


@dataclass(frozen=True, slots=True)
class Row:
    """One experiment as the index keeps it; `text` is its compact object, marshalled, and empty while it is open."""

    key: Key
    order: Order
    job: Group
    kin: tuple[Group, Group]
    """Fingerprint and family."""
    question: str = ""
    """What was asked, who proposed it and what was found: the newest such row of a group stands for all."""
    text: bytes = b""
    is_needed_whole: bool = False
    """Whether its values are in force, or it has won and may yet be: what its blocks show then counts."""
    job_name: str = ""

    @property
    def is_open(self) -> bool:
        """Whether there is no verdict yet."""
        return not self.text


def key_of(document: Object) -> Key:
    """Where an object is."""
    metadata = document["metadata"]
    return Key(metadata["namespace"], metadata["name"])


def read_version(document: Object) -> int:
    """The resourceVersion as a number that grows with every write; 0 where a server counts otherwise."""
    return count_version(str(document["metadata"].get("resourceVersion", "")))


def count_version(resource_version: str) -> int:
    """The same of a resourceVersion that was read before."""
    return int(resource_version) if resource_version.isdecimal() else 0


def make_row(document: Object) -> Row:
    """What the index keeps of an Experiment."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    namespace, verdict = intern(metadata["namespace"]), status.get("verdict")

    def group(field: str) -> Group:
        return Group(namespace, intern(str(spec.get(field, ""))))

    order = Order(
        closed_at_s=to_epoch_s(status["closedAt"]) if verdict else inf,
        created_at_s=to_epoch_s(metadata["creationTimestamp"]),
        name=metadata["name"],
    )
    key, job, kin = key_of(document), group("jobUid"), (group("fingerprint"), group("family"))
    job_name = intern(str(spec.get("job", "")))
    if not verdict:
        return Row(key=key, order=order, job=job, kin=kin, job_name=job_name)
    asked = spec.get("hypothesis") or {}
    question = json.dumps([asked.get("changes"), asked.get("source"), verdict.get("word")])
    applied = [application.get("kind") for application in status.get("applications") or ()]
    is_new_win = verdict.get("word") == VerdictWord.WON and not applied
    return Row(
        key=key,
        order=order,
        job=job,
        kin=kin,
        question=intern(question),
        text=marshal.dumps(compact(document)),
        is_needed_whole=is_new_win or (bool(applied) and applied[-1] != ApplicationKind.ROLLED_BACK),
        job_name=job_name,
    )


def compact(document: Object) -> Object:
    """A closed Experiment without its evidence: one planned block, no finished one, no votes; what it held, in one sum.

    The sum is booked as one loss, so that budget and bank come out the same to the last digit.
    """
    spec, status = document["spec"], document["status"]
    blocks = [*(status.get("blocks") or ()), *(status.get("holdouts") or ())]
    held_s = _sum_held(blocks) + _sum_held(status.get("losses") or ())
    kept = {name: status[name] for name in ("closedAt", "applications") if name in status}
    kept["verdict"] = {name: part for name, part in status["verdict"].items() if name not in ("votes", "vetoes")}
    if held_s:
        name = document["metadata"]["name"]
        kept["losses"] = [{"run": name, "startedAt": status["closedAt"], "heldDeviceSeconds": repr(held_s)}]
    return {
        "metadata": {"name": document["metadata"]["name"]},
        "spec": {name: part for name, part in spec.items() if name != "observation"} | {"blocks": spec["blocks"][:1]},
        "status": kept,
    }


def _sum_held(parts: Iterable[Mapping[str, Any]]) -> float:
    return sum(float(part["heldDeviceSeconds"]) for part in parts)


@lru_cache(maxsize=EXPANDED)
def expand(text: bytes) -> StoredExperiment | Unreadable:
    """The experiment that a compact object holds. Kin share them, so those in use are kept parsed."""
    return read_experiment(marshal.loads(text))  # noqa: S302  # written by this very process
