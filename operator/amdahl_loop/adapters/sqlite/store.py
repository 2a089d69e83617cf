"""How is the ledger kept on one machine, so that nothing in it is ever lost, changed or believed when damaged?

One SQLite file of append-only entries. Each entry carries the hash of the one before it; the whole chain is verified
whenever the file is opened, and a small file beside it (`<ledger>.head`) remembers the newest entry, so that a cut,
edited or older copy is refused and never written to. Every record is one transaction: a crash or a full disk loses
the entry that was being written and nothing else.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from amdahl_loop.adapters.sqlite.entries import (
    EXPORT_VERSION,
    Body,
    Closed,
    Entry,
    Lost,
    Measured,
    Observed,
    entry_of,
    parse_body,
    parse_export,
)
from amdahl_loop.adapters.sqlite.errors import LedgerConflictError, LedgerCorruptError, LedgerUnavailableError
from amdahl_loop.adapters.sqlite.file import (
    connect,
    describe_damage,
    expected_schema,
    head_path,
    lock_or_refuse,
    prepare,
    read_head,
    schema_of,
    translate_errors,
)
from amdahl_loop.adapters.sqlite.fold import Fold
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Loss, Plan
from amdahl_loop.domain.ledger import Application, JobMemory, Observation
from amdahl_loop.domain.verdicts import Verdict


class SqliteLedger:
    """The `LedgerStore` port on one SQLite file.

    `exclusive=True` is for a loop: it holds a lock for its life, so that a second loop is told.
    `exclusive=False` is for readers (`ledger`, `show`): no lock, nothing is created, nothing can be written.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        self._fold = Fold()

    @classmethod
    def open(cls, path: Path, exclusive: bool = True) -> Self:
        """Open and verify the whole file; a LedgerError says what is wrong with it and how to mend that."""
        if not exclusive and not path.exists():
            raise LedgerUnavailableError(
                f"there is no ledger at {path}; run a job first, or name another with --ledger"
            )
        lock = lock_or_refuse(path) if exclusive else None
        try:
            with translate_errors(path):
                connection = connect(path, exclusive)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
        ledger = cls(path, connection, lock)
        try:
            with translate_errors(path):
                ledger._verify()
                if exclusive:
                    prepare(connection)
                    ledger._remember_head()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file and of the lock."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- the port -------------------------------------------------------------------------------------------------

    async def recall(self, job_uid: str, fingerprint: str, family: str) -> JobMemory:
        """All that is known of a job, of its fingerprint and of its family."""
        return self._catch_up().recall(job_uid, fingerprint, family)

    async def experiments(self) -> tuple[Experiment, ...]:
        """Every experiment, oldest first."""
        return self._catch_up().experiments()

    async def add_observation(self, job_uid: str, observation: Observation) -> None:
        """Record one observation; the same one twice is no error."""
        self._append([Observed(job_uid=job_uid, observation=observation)], once=False)

    async def add_plan(self, plan: Plan) -> None:
        """Record an experiment's plan, before its first block; the same plan twice is no error, another one is."""
        self._append([plan], once=False)

    async def add_block(self, experiment: str, record: BlockRecord) -> None:
        """Record a finished block once, under an open experiment; a holdout block under a closed one."""
        self._append([Measured(experiment=experiment, record=record)], once=True)

    async def add_loss(self, experiment: str, loss: Loss) -> None:
        """Charge a run that was stopped; the same one twice is no error."""
        self._append([Lost(experiment=experiment, loss=loss)], once=False)

    async def add_verdict(self, experiment: str, verdict: Verdict, now_s: float) -> None:
        """Close an experiment, once."""
        self._append([Closed(experiment=experiment, at_s=now_s, verdict=verdict)], once=True)

    async def add_application(self, application: Application) -> None:
        """Record that knob values were applied, rolled back or found changed; the same one twice is no error."""
        self._append([application], once=False)

    # --- carrying a ledger elsewhere ------------------------------------------------------------------------------

    def export_lines(self) -> Iterator[str]:
        """The ledger as JSON lines: a header with count and last hash, then every entry with its link."""
        with translate_errors(self.path):
            rows = read_rows(self._connection, "1")
        yield json.dumps({"v": EXPORT_VERSION, "entries": len(rows), "head": rows[-1].hash if rows else ""})
        for row in rows:
            yield json.dumps({"kind": row.entry.kind, "body": row.entry.body, "hash": row.hash})

    def import_lines(self, lines: Iterable[str]) -> int:
        """Add what is not yet known, all or nothing; how many entries were new.

        Raises LedgerCorruptError for a cut or edited file, LedgerConflictError where it contradicts what is here.
        """
        before = self._head()[0]
        self._append(list(parse_export(lines)), once=False)
        return self._head()[0] - before

    # --- writing --------------------------------------------------------------------------------------------------

    def _append(self, bodies: Iterable[Body], once: bool) -> None:
        """Add entries in one transaction; `once` refuses even an identical second record."""
        with translate_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for body in bodies:
                    self._append_one(body, once)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._remember_head()

    def _append_one(self, body: Body, once: bool) -> None:
        entry = entry_of(body)
        known = self._connection.execute(
            "SELECT body FROM entries WHERE kind = ? AND key = ?", (entry.kind, entry.key)
        ).fetchone()
        if known is not None:
            is_same = parse_body(entry._replace(body=known[0])) == body
            if not once and is_same:
                return
            difference = "once already" if is_same else "with other content"
            raise LedgerConflictError(
                f"{self.path}: {entry.kind} {entry.key} is recorded {difference}; nothing was changed"
            )
        self._check_order(body, entry)
        seq, head = self._head()
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (seq + 1, *entry, head, entry.hash_after(head)),
        )

    def _check_order(self, body: Body, entry: Entry) -> None:
        """A plan comes before everything of its experiment, holdout blocks after the verdict, all others before it."""
        if not isinstance(body, Measured | Lost | Closed):
            return
        kinds = {
            row[0]
            for row in self._connection.execute(
                "SELECT kind FROM entries WHERE experiment = ? AND kind IN ('plan', 'verdict')", (entry.experiment,)
            )
        }
        if "plan" not in kinds:
            raise LedgerConflictError(f"{self.path}: {entry.kind} {entry.key} has no plan; record the plan first")
        is_holdout = isinstance(body, Measured) and body.record.spec.stage is Stage.HOLDOUT
        if isinstance(body, Lost) or is_holdout is ("verdict" in kinds):
            return
        place = "before" if is_holdout else "after"
        raise LedgerConflictError(
            f"{self.path}: {entry.kind} {entry.key} comes {place} the verdict; nothing was changed"
        )

    def _head(self) -> tuple[int, str]:
        row = self._connection.execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return (row[0], row[1]) if row else (0, "")

    def _remember_head(self) -> None:
        """Note the newest entry beside the ledger. The entry is safe already, so a full disk here loses nothing."""
        seq, head = self._head()
        with contextlib.suppress(OSError):
            note = head_path(self.path).with_suffix(".head.new")
            note.write_text(f"{seq} {head}\n")
            note.replace(head_path(self.path))

    # --- reading --------------------------------------------------------------------------------------------------

    def _catch_up(self) -> Fold:
        """Everything recorded so far: entries that were added since the last look are read, by whomever they are."""
        with translate_errors(self.path):
            for row in read_rows(self._connection, "seq > ?", self._fold.seq):
                self._fold.add(row.seq, parse_body(row.entry))
        return self._fold

    def _verify(self) -> None:
        """Every page, the schema, every link, every body; and that nothing is missing at the end."""
        noted = read_head(self.path)
        found = self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise LedgerCorruptError(describe_damage(self.path, str(found)))
        if schema_of(self._connection) != expected_schema(self._connection):
            raise LedgerCorruptError(describe_damage(self.path, "its tables or triggers were altered"))
        head, links = "", {0: ""}
        for row in read_rows(self._connection, "1"):
            if row.seq != len(links) or row.previous != head or row.hash != row.entry.hash_after(head):
                raise LedgerCorruptError(describe_damage(self.path, f"entry {row.seq} breaks the chain of hashes"))
            body = parse_body(row.entry)
            if entry_of(body)[:-1] != row.entry[:-1]:  # an older version wrote fewer fields
                raise LedgerCorruptError(describe_damage(self.path, f"entry {row.seq} is not what its body says"))
            self._fold.add(row.seq, body)
            head = row.hash
            links[row.seq] = head
        if noted is not None and links.get(noted[0]) != noted[1]:
            raise LedgerCorruptError(
                f"{self.path} ends at entry {len(links) - 1}, but entry {noted[0]} was written here: it was cut or an "
                f"older copy was put in its place. Put the newer copy back, or delete {head_path(self.path)} to accept "
                "the loss"
            )


class Row(NamedTuple):
    """An entry with its place in the chain."""

    seq: int
    entry: Entry
    previous: str
    hash: str


def read_rows(connection: sqlite3.Connection, where: str, *values: int) -> list[Row]:
    """Rows in order; `where` is text of this module, never of a caller's."""
    rows = connection.execute(f"SELECT * FROM entries WHERE {where} ORDER BY seq", values)  # noqa: S608 - see docstring
    return [Row(row[0], Entry(*row[1:8]), row[8], row[9]) for row in rows]
