"""For how long is a job as its event showed it, and when does the operator have to ask?"""

import pytest

from amdahl_loop.recollection import SIGHT_S, SIGHTS, JobKey, Sights

JOB = JobKey("team", "train")


def show(version: str) -> dict[str, object]:
    """A TrainingJob."""
    return {"metadata": {"name": "train", "resourceVersion": version}}


def test_the_first_pass_gets_what_was_told_last_and_later_ones_ask() -> None:
    """Once the operator writes, what the watch tells may be older than that."""
    sights = Sights(clock=lambda: 0.0)
    sights.note(JOB, show("1"))
    sights.note(JOB, show("2"))
    assert sights.take(JOB) == show("2")
    assert sights.take(JOB) is None
    sights.note(JOB, show("3"))
    assert sights.take(JOB) is None


@pytest.mark.parametrize(("age_s", "is_believed"), [(0.0, True), (SIGHT_S, True), (SIGHT_S + 1, False)])
def test_what_was_told_long_ago_is_read_again(age_s: float, is_believed: bool) -> None:
    """The watch may have gone silent since."""
    now_s = [100.0]
    sights = Sights(clock=lambda: now_s[0])
    sights.note(JOB, show("1"))
    now_s[0] += age_s
    assert (sights.take(JOB) is not None) == is_believed


def test_a_job_that_is_gone_is_another_when_it_comes_back() -> None:
    """Nothing of the one before is believed, and the new one is as it is told of."""
    sights = Sights(clock=lambda: 0.0)
    sights.note(JOB, show("1"))
    sights.forget(JOB)
    assert sights.take(JOB) is None
    sights.forget(JOB)
    sights.note(JOB, show("5"))
    assert sights.take(JOB) == show("5")


def test_no_more_is_kept_than_was_agreed() -> None:
    """The others are read; one that is kept already is kept up to date."""
    sights = Sights(clock=lambda: 0.0)
    keys = [JobKey("team", f"job-{number}") for number in range(SIGHTS + 1)]
    for key in keys:
        sights.note(key, show("1"))
    sights.note(keys[0], show("2"))
    assert sights.take(keys[-1]) is None
    assert sights.take(keys[0]) == show("2")
