"""Which experiments are there, and what is known of the closed ones without reading them again?

Built by one paginated list when the operator starts, kept by its own writes and by what it hears of others'. Of other
jobs' experiments only the newest answer to each question and the latest few are recalled, so that a pass costs the same
beside ten of them and beside ten thousand.
"""

import heapq
import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable
from math import inf

from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.rows import Group, Key, Order, Row, expand, key_of, make_row, read_version
from amdahl_loop.domain.api.records import StoredExperiment, Unreadable, read_experiment

__all__ = ["LATEST", "ExperimentIndex", "Key", "key_of"]

LATEST = 32
"""So many of the latest experiments of a family, and of a fingerprint, speak for how often a knob wins."""

PARSED = 64
"""Experiments that stay parsed: about a MiB each at worst."""

_log = logging.getLogger("amdahl_loop")


class ExperimentIndex:
    """Every Experiment that is known, by what jobs ask for."""

    def __init__(self) -> None:
        self.listed: dict[str | None, str] = {}
        """The version of each list that this was built from: from there on changes can be watched."""
        self.news: Counter[str] = Counter()
        """How often what is known of a namespace's closed experiments has changed."""
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
        self.news[row.key.namespace] += not row.is_open and row != known
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

    def hear(self, document: Object) -> bool:
        """Note an Experiment that an event or a list told of; whether that was news.

        What nobody could have written is passed over, with a warning: it must not stop the others. What is being
        written stays in doubt: the event may be of somebody else's write.
        """
        key, version = key_of(document), read_version(document)
        if key in self._versions and 0 < version <= self._versions[key]:
            return False
        is_doubtful = key in self._uncertain
        try:
            self.learn(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _log.warning("Experiment %s/%s is passed over: %r", *key, error)
            return False
        if is_doubtful:
            self.doubt(key)
        return True

    def is_closed(self, key: Key) -> bool:
        """Whether the Experiment is known to have a verdict."""
        row = self._rows.get(key)
        return row is not None and not row.is_open

    def closed_keys(self, namespace: str | None) -> list[Key]:
        """Every Experiment of a namespace, or (None) of all, that is known to have a verdict."""
        rows = self._rows.values()
        return [row.key for row in rows if not row.is_open and namespace in (None, row.key.namespace)]

    def job_of(self, key: Key) -> str:
        """Name of the job that an Experiment is of; empty where nobody knows."""
        row = self._rows.get(key)
        return "" if row is None else row.job_name

    def forget(self, key: Key) -> None:
        """An Experiment that is gone."""
        self._uncertain.discard(key)
        self._older_since_s.pop(key, None)
        self._versions.pop(key, None)
        row = self._rows.pop(key, None)
        if row is None:
            return
        self.news[key.namespace] += not row.is_open
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
        """Whether the Experiment has to be read live: unknown, open, being written, or a win that may count."""
        row = self._rows.get(key)
        return row is None or row.is_open or row.is_needed_whole or key in self._uncertain

    def version(self, key: Key) -> int:
        """The latest version of an Experiment that the server has shown; 0 where none is known."""
        return self._versions.get(key, 0)

    def is_past(self, document: Object) -> bool:
        """Whether this is an Experiment as it was before what the server has shown already."""
        return read_version(document) < self._versions.get(key_of(document), 0)

    def is_older(self, document: Object, now_s: float, patience_s: float) -> bool:
        """Whether a read that shows the past is not to be believed.

        Not for ever: what is older for longer than `patience_s` is what there is, since the store was put back.
        """
        key = key_of(document)
        if not self.is_past(document):
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
