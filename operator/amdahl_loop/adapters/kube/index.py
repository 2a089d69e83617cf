"""Which experiments are there, and what is known of the closed ones without reading them again?

Built by one paginated list when the operator starts, kept by its own writes. A closed experiment is kept in a compact
form that answers every question which `plan.next_action` asks of closed experiments. Of other jobs' experiments only
the newest answer to each question and the latest few are recalled, so that a pass costs the same beside ten of them
and beside ten thousand.
"""

import heapq
import json
from collections import OrderedDict, defaultdict
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

LATEST = 32
"""So many of the latest experiments of a family, and of a fingerprint, speak for how often a knob wins."""

PARSED = 64
"""Experiments that stay parsed: about a MiB each at worst."""


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
    """One experiment as the index keeps it; `text` is its compact object, empty while it is open."""

    key: Key
    order: Order
    job: Group
    kin: tuple[Group, Group]
    """Fingerprint and family."""
    question: str = ""
    """What was asked, who proposed it and what was found: the newest such row of a group stands for all."""
    text: bytes = b""
    in_force: bool = False
    job_name: str = ""

    @property
    def is_open(self) -> bool:
        """Whether there is no verdict yet."""
        return not self.text


class ExperimentIndex:
    """Every Experiment that is known, by what jobs ask for."""

    def __init__(self) -> None:
        self._rows: dict[Key, Row] = {}
        self._versions: dict[Key, int] = {}
        self._older_since_s: dict[Key, float] = {}
        self._uncertain: set[Key] = set()
        self._open: defaultdict[Key, set[Key]] = defaultdict(set)
        """Open experiments by namespace and name of their job."""
        self._parsed: OrderedDict[tuple[str, str], StoredExperiment | Unreadable] = OrderedDict()
        self._jobs: defaultdict[Group, set[Key]] = defaultdict(set)
        self._answers: defaultdict[Group, dict[str, Key]] = defaultdict(dict)
        self._latest: defaultdict[Group, list[tuple[Order, Key]]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._rows)

    def learn(self, document: Object) -> None:
        """Note an Experiment as the server gave it."""
        row = make_row(document)
        known = self._rows.get(row.key)
        self._rows[row.key] = row
        self._versions[row.key] = read_version(document)
        self._uncertain.discard(row.key)
        self._note_open(row)
        if known is not None and known.job != row.job:  # expected as one job's, found to be another's
            self._leave(known)
        self._jobs[row.job].add(row.key)
        if row.is_open or (known is not None and not known.is_open):
            return
        for group in row.kin:
            answered = self._rows.get(self._answers[group].get(row.question, row.key), row)
            if answered.order <= row.order:
                self._answers[group][row.question] = row.key
            heapq.heappush(self._latest[group], (row.order, row.key))
            if len(self._latest[group]) > LATEST:
                heapq.heappop(self._latest[group])

    def forget(self, key: Key) -> None:
        """An Experiment that is gone."""
        self._uncertain.discard(key)
        self._older_since_s.pop(key, None)
        self._versions.pop(key, None)
        row = self._rows.pop(key, None)
        if row is None:
            return
        self._close(row)
        self._leave(row)
        for group in row.kin:
            if self._answers[group].get(row.question) == key:
                del self._answers[group][row.question]

    def has_open_of_another(self, namespace: str, job: str, uid: str) -> bool:
        """Whether an open experiment is of a job that bore this name before, and is gone."""
        known = self._open.get(Key(namespace, job), ())
        return any(self._rows[key].job.value != uid for key in known)

    def _note_open(self, row: Row) -> None:
        if row.is_open:
            self._open[Key(row.key.namespace, row.job_name)].add(row.key)
        else:
            self._close(row)

    def _close(self, row: Row) -> None:
        """A row is no longer among the open ones."""
        of_name = Key(row.key.namespace, row.job_name)
        keys = self._open.get(of_name, set())
        keys.discard(row.key)
        if not keys:
            self._open.pop(of_name, None)

    def _leave(self, row: Row) -> None:
        """A row is no longer among its job's."""
        keys = self._jobs[row.job]
        keys.discard(row.key)
        if not keys:
            del self._jobs[row.job]

    def expect(self, key: Key, job_uid: str) -> None:
        """An Experiment is about to be created: until the outcome is known, a live read says whether it is there."""
        if key not in self._rows:
            order, nobody = Order(inf, inf, key.name), Group(key.namespace, "")
            row = Row(key=key, order=order, job=Group(key.namespace, job_uid), kin=(nobody, nobody))
            self._rows[key] = row
            self._jobs[row.job].add(key)

    def doubt(self, key: Key) -> None:
        """A write is on its way: until its outcome is known, only a live read says what the Experiment holds."""
        self._uncertain.add(key)

    def is_unsettled(self, key: Key) -> bool:
        """Whether the Experiment has to be read live: unknown, open, in force, or being written."""
        row = self._rows.get(key)
        return row is None or row.is_open or row.in_force or key in self._uncertain

    def is_older(self, document: Object, now_s: float, patience_s: float) -> bool:
        """Whether a read shows an Experiment as it was before what the server has shown already.

        Not for ever: what is older for longer than `patience_s` is what there is, since the store was put back.
        """
        key = key_of(document)
        if read_version(document) >= self._versions.get(key, 0):
            self._older_since_s.pop(key, None)
            return False
        return now_s - self._older_since_s.setdefault(key, now_s) < patience_s

    def parse(self, document: Object) -> StoredExperiment | Unreadable:
        """The experiment that an object holds; the latest few stay parsed, since active jobs read theirs every pass."""
        metadata = document["metadata"]
        version = (str(metadata.get("uid", "")), str(metadata.get("resourceVersion", "")))
        parsed = self._parsed.pop(version, None) or read_experiment(document)
        self._parsed[version] = parsed
        if len(self._parsed) > PARSED:
            self._parsed.popitem(last=False)
        return parsed

    def of_job(self, namespace: str, job_uid: str) -> list[Key]:
        """A job's own experiments, oldest first, the open one last."""
        return self._sorted(self._jobs.get(Group(namespace, job_uid), ()))

    def of_kin(self, namespace: str, job_uid: str, fingerprint: str, family: str) -> list[Key]:
        """Other jobs' closed experiments of the same fingerprint or family: the newest answers and the latest few."""
        keys: set[Key] = set()
        for group in (Group(namespace, fingerprint), Group(namespace, family)):
            keys.update(self._answers.get(group, {}).values())
            keys.update(key for _, key in self._latest.get(group, ()) if key in self._rows)
        return self._sorted(keys - self._jobs.get(Group(namespace, job_uid), set()))

    def recall(self, key: Key) -> StoredExperiment | Unreadable | None:
        """A closed experiment in its compact form; None where it is open or unknown."""
        row = self._rows.get(key)
        return None if row is None or row.is_open else expand(row.text)

    def _sorted(self, keys: Iterable[Key]) -> list[Key]:
        return sorted(keys, key=lambda key: self._rows[key].order)


def key_of(document: Object) -> Key:
    """Where an object is."""
    metadata = document["metadata"]
    return Key(metadata["namespace"], metadata["name"])


def read_version(document: Object) -> int:
    """The resourceVersion as a number that grows with every write; 0 where a server counts otherwise."""
    text = str(document["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


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
    newest = (status.get("applications") or [{}])[-1].get("kind", ApplicationKind.ROLLED_BACK)
    return Row(
        key=key,
        order=order,
        job=job,
        kin=kin,
        question=intern(question),
        text=json.dumps(compact(document), separators=(",", ":"), ensure_ascii=False).encode(),
        in_force=newest != ApplicationKind.ROLLED_BACK,
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


@lru_cache(maxsize=4096)
def expand(text: bytes) -> StoredExperiment | Unreadable:
    """The experiment that a compact object holds. Kin share them, so those in use are kept parsed."""
    return read_experiment(json.loads(text))
