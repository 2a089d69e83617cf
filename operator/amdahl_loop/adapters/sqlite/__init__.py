"""The ledger in one SQLite file: the `LedgerStore` port for one machine."""

from amdahl_loop.adapters.sqlite.errors import (
    LedgerConflictError,
    LedgerCorruptError,
    LedgerError,
    LedgerUnavailableError,
)
from amdahl_loop.adapters.sqlite.store import SqliteLedger

__all__ = ["LedgerConflictError", "LedgerCorruptError", "LedgerError", "LedgerUnavailableError", "SqliteLedger"]
