"""How can a run end? Exit codes are a contract with whoever restarts the process; each expected failure has one.

`docs/trainer/launch.md` says what to do about each. 75 follows sysexits.h's EX_TEMPFAIL; 80 and 81 are the codes of
ranks that did nothing wrong: the one that did is named in their last line.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes."""

    FINISHED = 0
    CRASHED = 1
    YIELDED = 75
    CONFIG = 76
    OUT_OF_MEMORY = 77
    DATA = 78
    NON_FINITE = 79
    PEER_DIED = 80
    PEER_HUNG = 81
    SAVE_FAILED = 82


class TrainerError(Exception):
    """An expected failure: its message is for the person who must fix it, `code` for the machine that restarts.

    `is_common`: all ranks end with it at the same step, so that one of each machine says it.
    """

    code = Exit.CRASHED
    is_common = False


class ConfigError(TrainerError):
    """The configuration, or a checkpoint that does not fit it, must be changed by a person."""

    code = Exit.CONFIG


class OutOfMemoryError(TrainerError):
    """The device, the process or the machine has no more memory."""

    code = Exit.OUT_OF_MEMORY


class DataError(TrainerError):
    """The data cannot be read, built or loaded."""

    code = Exit.DATA


class BadSamplesError(DataError):
    """The ranks together have left out more samples than they may."""

    is_common = True


class NonFiniteError(TrainerError):
    """The loss or the gradients are NaN or infinite. The parameters are those before the bad step."""

    code = Exit.NON_FINITE
    is_common = True


class SaveError(TrainerError):
    """A checkpoint could not be written. Those before it are whole."""

    code = Exit.SAVE_FAILED


class PeerError(TrainerError):
    """Another rank ended, or did not come to a collective."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code
