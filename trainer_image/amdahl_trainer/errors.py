"""How can a run end? Exit codes are a contract with whoever restarts the process; each expected failure has one."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes. 75 follows sysexits.h's EX_TEMPFAIL: run it again and it goes on."""

    FINISHED = 0
    CRASHED = 1
    YIELDED = 75
    CONFIG = 76
    OUT_OF_MEMORY = 77
    DATA = 78
    NON_FINITE = 79


class TrainerError(Exception):
    """An expected failure: its message is for the person who must fix it, `code` for the machine that restarts."""

    code = Exit.CRASHED


class ConfigError(TrainerError):
    """The configuration, or a checkpoint that does not fit it, must be changed by a person."""

    code = Exit.CONFIG


class DataError(TrainerError):
    """The data cannot be read, built or loaded."""

    code = Exit.DATA


class NonFiniteError(TrainerError):
    """The loss or the gradients are NaN or infinite. The parameters are those before the bad step."""

    code = Exit.NON_FINITE
