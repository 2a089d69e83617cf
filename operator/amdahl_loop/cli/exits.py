"""With which code does the program end, and what is a user told?

Expected failures are raised as `Stop` with a code and a message that names what is wrong and the fix; nothing else
ends a command early. The codes are a contract: scripts and CI act on them (docs/cli.md).
"""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from amdahl_loop.adapters.local.runner import RunnerUnavailableError, RunRefusedError
from amdahl_loop.adapters.sqlite import LedgerError
from amdahl_loop.domain.parsing import ManifestError


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    NOT_OBSERVED = 1
    USAGE = 2
    LEDGER = 3
    ENVIRONMENT = 4
    DISAGREES = 5
    INTERRUPTED = 130


MEANINGS = {
    Exit.DONE: "finished, with a win or without",
    Exit.NOT_OBSERVED: "the job could not be observed",
    Exit.USAGE: "wrong usage, a name that nothing bears, or a manifest that cannot be used",
    Exit.LEDGER: "the ledger was refused: damaged, newer, missing, or in use by another loop",
    Exit.ENVIRONMENT: "machine or cluster stand in the way: no sandbox, disk full, no permission, no answer",
    Exit.DISAGREES: "a replay disagrees with the record",
    Exit.INTERRUPTED: "interrupted; everything finished is kept",
}


class Stop(Exception):  # noqa: N818 - it ends a command, and is no error of the program
    """A command ends here, with this code and this message."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@contextmanager
def explained() -> Iterator[None]:
    """Turn the adapters' errors into `Stop`; anything else is a fault of ours and keeps its traceback."""
    try:
        yield
    except ManifestError as error:
        raise Stop(Exit.USAGE, str(error)) from error
    except LedgerError as error:
        code = Exit.ENVIRONMENT if _is_machine(error.__cause__) else Exit.LEDGER
        raise Stop(code, str(error)) from error
    except (RunRefusedError, RunnerUnavailableError) as error:
        raise Stop(Exit.ENVIRONMENT, str(error)) from error
    except BrokenPipeError:
        raise  # the reader went away, which is no fault of the machine
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Stop(Exit.ENVIRONMENT, f"{where}{error.strerror or error}; mend it and run again") from error


def _is_machine(cause: BaseException | None) -> bool:
    """Whether a ledger failed for want of disk or permission, rather than for what it holds or who holds it."""
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
