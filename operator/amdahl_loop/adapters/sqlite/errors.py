"""How can the ledger fail, in words that name the file and the fix?"""


class LedgerError(Exception):
    """The ledger cannot do what was asked; the message names the file and the fix."""


class LedgerCorruptError(LedgerError):
    """The file is damaged, cut, edited or older than it was; it is left exactly as it is."""


class LedgerUnavailableError(LedgerError):
    """The file cannot be read or written now: disk full, no permission, another loop, a newer schema."""


class LedgerConflictError(LedgerError, ValueError):
    """What was to be recorded contradicts what is recorded already."""
