"""Which word fits a window that was not measured? Pure: how the command ended, or what is heard of it, into a word."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Optional

from amdahl_probe.launch import Exit
from amdahl_probe.windows import Numbers, RankLog

#: A process tree that uses less of one processor than this while it says nothing hangs; above, it runs unheard.
IDLE_SHARE = 0.05

#: What an out-of-memory error looks like in the end of the log: torch, CUDA, Python, the C library.
OUT_OF_MEMORY = (b"OutOfMemoryError", b"CUDA out of memory", b"MemoryError", b"can't allocate memory", b"ENOMEM")

Logs = Mapping[int, RankLog]


class Result(NamedTuple):
    """How one window came out."""

    outcome: str
    code: Optional[int] = None
    why: str = ""
    numbers: Optional[Numbers] = None


class Silence(NamedTuple):
    """What is known of a process that says nothing new: for how long, and the processor time it has used meanwhile."""

    quiet_s: float
    used_s: float
    has_steps: bool
    ranks: int
    seq: int


def judge_end(ended: Exit, logs: Logs, last_words: bytes) -> Result:
    """The command ended before its window was measured; the last line that it printed says most about why."""
    steps = max((len(log.steps) for log in logs.values()), default=0)
    why = ended.why or f"ended after {steps} steps"
    if ended.code == 0:
        disabled = find_disabled(logs)
        return Result("no_report" if disabled or not logs else "no_steps", 0, disabled or why)
    why = _last_line(last_words) or why
    if ended.code in (-9, 137) or any(word in last_words for word in OUT_OF_MEMORY):
        return Result("oom", ended.code, why)
    return Result("crash", ended.code, why)


def _last_line(text: bytes) -> str:
    """The last line with anything on it, printable, or nothing."""
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return "".join(letter for letter in last if letter.isprintable())


def judge_silence(logs: Logs, silence: Silence, limit_s: float) -> Optional[Result]:
    """The command runs; None while it may still be waited for.

    A probe that switched itself off is not waited for. Ranks that fell behind or never came void the window. A tree
    that does nothing hangs; one that works has steps that nobody reports, or none.
    """
    disabled = find_disabled(logs)
    if disabled:
        return Result("no_report", why=disabled)
    if silence.quiet_s <= limit_s:
        return None
    if not logs:
        return Result("no_report", why=f"no record in {silence.quiet_s:.0f} s")
    reached = [len(log.steps) for log in logs.values() if log.steps and log.steps[-1].seq == silence.seq]
    if reached and (len(reached) < silence.ranks or max(reached) - min(reached) > 1):
        return Result("void", why=f"{len(logs)} of {silence.ranks} ranks reported, steps {reached[:8]}")
    if silence.used_s < IDLE_SHARE * silence.quiet_s:
        return Result("hang", why=f"no step and no work for {silence.quiet_s:.0f} s")
    return Result("no_report" if silence.has_steps else "no_steps", why=f"no step for {silence.quiet_s:.0f} s")


def is_stepping(logs: Logs, seq: int) -> bool:
    """Whether every rank heard of has made a step of this window."""
    return all(log.steps and log.steps[-1].seq == seq for log in logs.values())


def cannot_switch(logs: Logs) -> bool:
    """Whether a process has said that it does not follow the knob file."""
    return any(log.start is not None and not log.start.live for log in logs.values())


def find_disabled(logs: Logs) -> str:
    """The reason of a probe that switched itself off, or nothing."""
    return next((f"probe off: {log.disabled}" for log in logs.values() if log.disabled is not None), "")
