"""How is the ledger's file opened, locked, lifted to the newest schema, and how do its errors read?

Not for network file systems, which cannot hold SQLite's write-ahead log.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from amdahl_loop.adapters.sqlite.errors import LedgerConflictError, LedgerCorruptError, LedgerUnavailableError

APPLICATION_ID = 0x414D444C
"""`AMDL` in the file's header: another program's database is refused, not migrated."""

BUSY_TIMEOUT_MS = 5_000

MIGRATIONS = (
    """
    CREATE TABLE entries (
        seq INTEGER PRIMARY KEY,
        kind TEXT NOT NULL CHECK (kind IN ('observation', 'plan', 'block', 'verdict', 'application')),
        key TEXT NOT NULL,
        experiment TEXT NOT NULL,
        job_uid TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        family TEXT NOT NULL,
        body TEXT NOT NULL,
        previous TEXT NOT NULL,
        hash TEXT NOT NULL UNIQUE,
        UNIQUE (kind, key)
    );
    CREATE INDEX entries_by_experiment ON entries (experiment, seq);
    CREATE INDEX entries_by_job ON entries (job_uid, kind);
    CREATE INDEX entries_by_fingerprint ON entries (fingerprint, kind);
    CREATE INDEX entries_by_family ON entries (family, kind);
    CREATE TRIGGER entries_never_change BEFORE UPDATE ON entries
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: no entry is ever changed'); END;
    CREATE TRIGGER entries_never_vanish BEFORE DELETE ON entries
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: no entry is ever removed'); END;
    """,
    """
    ALTER TABLE entries RENAME TO entries_1;
    CREATE TABLE entries (
        seq INTEGER PRIMARY KEY,
        kind TEXT NOT NULL CHECK (kind IN ('observation', 'plan', 'block', 'loss', 'verdict', 'application')),
        key TEXT NOT NULL,
        experiment TEXT NOT NULL,
        job_uid TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        family TEXT NOT NULL,
        body TEXT NOT NULL,
        previous TEXT NOT NULL,
        hash TEXT NOT NULL UNIQUE,
        UNIQUE (kind, key)
    );
    INSERT INTO entries SELECT * FROM entries_1 ORDER BY seq;
    DROP TABLE entries_1;
    CREATE INDEX entries_by_experiment ON entries (experiment, seq);
    CREATE INDEX entries_by_job ON entries (job_uid, kind);
    CREATE INDEX entries_by_fingerprint ON entries (fingerprint, kind);
    CREATE INDEX entries_by_family ON entries (family, kind);
    CREATE TRIGGER entries_never_change BEFORE UPDATE ON entries
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: no entry is ever changed'); END;
    CREATE TRIGGER entries_never_vanish BEFORE DELETE ON entries
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: no entry is ever removed'); END;
    """,
)
"""`MIGRATIONS[n]` lifts a ledger from schema version n to n + 1; a published one is never edited."""


def connect(path: Path, exclusive: bool) -> sqlite3.Connection:
    """A connection whose file is ours and of a version we know; a writer creates it where there is none."""
    if exclusive and not path.exists():
        head_path(path).unlink(missing_ok=True)  # whoever removed the ledger wants a new one
    mode = "rwc" if exclusive else "ro"
    connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode={mode}", uri=True, isolation_level=None)
    try:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        if exclusive:
            connection.execute("PRAGMA synchronous = FULL")  # an entry that was acknowledged survives a power cut
        _check_version(path, connection)
        if exclusive and _pragma(connection, "user_version") == 0:
            prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(path: Path, connection: sqlite3.Connection) -> None:
    """Refuse what is not ours or is newer than this program, before a byte is written."""
    version, application = _pragma(connection, "user_version"), _pragma(connection, "application_id")
    if version == 0 and application == 0 and not schema_of(connection):
        if (noted := read_head(path)) is not None and noted[0] > 0:
            raise LedgerCorruptError(describe_damage(path, f"it is empty, but {noted[0]} entries were written"))
        return
    if application != APPLICATION_ID or version < 1:
        raise LedgerCorruptError(f"{path} is a database, but no ledger (or its header is damaged); name another file")
    if version > len(MIGRATIONS):
        raise LedgerUnavailableError(
            f"{path} has schema version {version}, this program knows {len(MIGRATIONS)}; use the newer amdahl-loop"
        )


def prepare(connection: sqlite3.Connection) -> None:
    """Make a file that is new, or was found to be whole, ready to be written to."""
    _lift(connection)
    connection.execute("PRAGMA journal_mode = WAL")


def _lift(connection: sqlite3.Connection, newest: int = len(MIGRATIONS)) -> None:
    """Lift the schema to the newest version, each step with its version number in one transaction."""
    for version in range(_pragma(connection, "user_version"), newest):
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[version]} PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {version + 1}; COMMIT;"
        )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def schema_of(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Names and definitions of everything in the database but SQLite's own tables."""
    return connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()


def expected_schema(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """The schema that the file's own version must have: a reader lifts nothing."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as model:
        _lift(model, _pragma(connection, "user_version"))
        return schema_of(model)


def lock_or_refuse(path: Path) -> int:
    """Hold `<ledger>.lock` for the life of the loop; the kernel lets go of it however the process ends."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LedgerUnavailableError(
            f"{lock_path} cannot be written: {error.strerror}; choose another --ledger"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise LedgerUnavailableError(
            f"{path} is in use by another loop (process {holder}); wait for it, stop it, or name another --ledger"
        ) from error
    except OSError as error:
        os.close(lock)
        raise LedgerUnavailableError(f"{lock_path} cannot be locked: {error.strerror}; use a local disk") from error
    return lock


def head_path(path: Path) -> Path:
    """The note of the newest entry, beside the ledger."""
    return path.with_name(path.name + ".head")


def read_head(path: Path) -> tuple[int, str] | None:
    """Number and hash of the newest entry ever written here; None when there is no note."""
    try:
        seq, _, head = head_path(path).read_text(errors="replace").rstrip("\n").partition(" ")
        return int(seq), head
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LedgerCorruptError(f"{head_path(path)} is damaged; delete it if {path} is the newest copy") from error


@contextlib.contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """SQLite's errors in our words: damage, or something that a user can mend and try again."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in _PASSING:
            raise LedgerUnavailableError(f"{path}: {error}; nothing recorded was lost: {_PASSING[code]}") from error
        if code == sqlite3.SQLITE_CONSTRAINT:
            raise LedgerConflictError(f"{path}: {error}") from error
        raise LedgerCorruptError(describe_damage(path, str(error))) from error
    except UnicodeDecodeError as error:
        raise LedgerCorruptError(describe_damage(path, "its text is not UTF-8")) from error
    except OSError as error:
        raise LedgerUnavailableError(f"{path}: {error.strerror}; nothing recorded was lost") from error


_PASSING = {
    sqlite3.SQLITE_FULL: "free some space and run again",
    sqlite3.SQLITE_IOERR: "check the disk and its free space, then run again",
    sqlite3.SQLITE_CANTOPEN: "check the path and its permissions",
    sqlite3.SQLITE_READONLY: "check the file's permissions",
    sqlite3.SQLITE_PERM: "check the file's permissions",
    sqlite3.SQLITE_BUSY: "another program holds the file; try again",
    sqlite3.SQLITE_LOCKED: "another program holds the file; try again",
}


def describe_damage(path: Path, reason: str) -> str:
    """What a user is told about a ledger that cannot be believed."""
    return (
        f"{path} is damaged ({reason}) and was left as it is; put a backup in its place, or move it aside to start a "
        "new ledger"
    )
