"""One word for each way a window can be lost."""

from collections.abc import Callable
from typing import Any

import pytest

from amdahl_probe import verdicts
from amdahl_probe.launch import Exit
from amdahl_probe.records import Disabled, Start
from amdahl_probe.verdicts import Silence
from amdahl_probe.windows import RankLog


@pytest.mark.parametrize(
    ("code", "said", "heard", "word", "why"),
    [
        (0, b"", True, "no_steps", "ended after 3 steps"),
        (0, b"done", False, "no_report", "ended after 0 steps"),
        (1, b"Traceback\n  in f\nValueError: no\n\n", True, "crash", "ValueError: no"),
        (1, b"torch.OutOfMemoryError: 3 GiB", True, "oom", "torch.OutOfMemoryError: 3 GiB"),
        (-9, b"", True, "oom", "ended after 3 steps"),
        (137, b"", False, "oom", "ended after 0 steps"),
        (-11, b"\x1b[31mred\xff", True, "crash", "[31mred\ufffd"),
        (None, b"", True, "crash", "ended after 3 steps"),
    ],
)
def test_ends(
    code: int | None, said: bytes, heard: bool, word: str, why: str, make_log: Callable[..., RankLog]
) -> None:
    """Exit code, the log's last words, and whether anything was heard; the last printed line is the reason."""
    result = verdicts.judge_end(Exit(code), {0: make_log(3)} if heard else {}, said)

    assert (result.outcome, result.code, result.why) == (word, code, why)


@pytest.mark.parametrize(
    ("silence", "counts", "word"),
    [
        ({"quiet_s": 9.9}, [5], None),
        ({}, [5], "hang"),
        ({"used_s": 9.0}, [5], "no_report"),
        ({"has_steps": False, "used_s": 9.0}, [0], "no_steps"),
        ({"has_steps": False}, [0], "hang"),
        ({"has_steps": False}, [], "no_report"),
        ({"ranks": 2}, [5], "void"),
        ({"ranks": 2}, [9, 5], "void"),
        ({"ranks": 2}, [6, 5], "hang"),
        ({"ranks": 2, "has_steps": False}, [5, 0], "void"),
    ],
)
def test_silences(
    silence: dict[str, Any], counts: list[int], word: str | None, make_log: Callable[..., RankLog]
) -> None:
    """Waited for until the limit; then by records, ranks and processor time."""
    fields: dict[str, Any] = {"quiet_s": 10.1, "used_s": 0.1, "has_steps": True, "ranks": 1, "seq": 0, **silence}
    result = verdicts.judge_silence({at: make_log(n) for at, n in enumerate(counts)}, Silence(**fields), limit_s=10)

    assert (result and result.outcome) == word


def test_a_probe_that_is_off_is_not_waited_for(make_log: Callable[..., RankLog]) -> None:
    """Its reason is the window's."""
    log = make_log(3)
    log.add(Disabled("a reason"), 0)
    result = verdicts.judge_silence({0: log}, Silence(0.0, 0.0, True, 1, 0), limit_s=10)

    assert result == verdicts.Result("no_report", why="probe off: a reason")
    assert verdicts.judge_end(Exit(0), {0: log}, b"").outcome == "no_report"


def test_what_a_start_record_says_about_switching(make_log: Callable[..., RankLog]) -> None:
    """Only a process that said no is known not to switch."""
    silent, live, dead = make_log(0), make_log(0), make_log(0)
    live.add(Start(0, 1, live=True), 0)
    dead.add(Start(0, 1, live=False), 0)

    assert [verdicts.cannot_switch({0: log}) for log in (silent, live, dead)] == [False, False, True]
