"""When a running job is restarted: at once for its owner, after a checkpoint for the loop, never beside its old self."""

from typing import Any

import pytest

from amdahl_loop.adapters.kube.objects import JobFacts
from amdahl_loop.adapters.kube.revisions import (
    Advance,
    Create,
    Present,
    Remove,
    Revision,
    SetSuspend,
    Step,
    Wanted,
    decide,
)
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.tuning import ApplyWhen

LIVE, AFTER, NEXT = ApplyWhen.LIVE, ApplyWhen.AFTER_CHECKPOINT, ApplyWhen.NEXT_RESTART


def facts(number: int = 0, **changes: Any) -> JobFacts:
    """A Job with one pod, running and ready."""
    fields: dict[str, Any] = {"uid": f"u{number}", "labels": {}, "annotations": {}, "active": 1, "ready": 1} | changes
    return JobFacts(name=f"pydocs-r{number}", **fields)


def revision(
    number: int = 0, declared: str = "d", devices: str = "4", has_probe: bool = True, **changes: Any
) -> Revision:
    return Revision(
        number=number, declared=declared, devices=devices, has_probe=has_probe, facts=facts(number, **changes)
    )


def wanted(**changes: Any) -> Wanted:
    return Wanted(**({"declared": "d", "devices": "4"} | changes))


def present(*revisions: Revision, target: int = 0, **changes: Any) -> Present:
    return Present(target=target, revisions=revisions, **changes)


FAILED = {"failure_reason": "BackoffLimitExceeded", "failed_at_s": 100.0, "active": 0, "ready": 0}
IDLE = {"active": 0, "ready": 0}


@pytest.mark.parametrize(
    ("want", "there", "step", "reason"),
    [
        pytest.param(wanted(), present(), Create(0), Reason.STARTING, id="nothing yet"),
        pytest.param(wanted(), present(target=3), Create(3), Reason.STARTING, id="the revision that was written down"),
        pytest.param(wanted(), present(revision()), None, Reason.AS_DECLARED, id="as it should be"),
        pytest.param(wanted(), present(revision(ready=0)), None, Reason.STARTING, id="pods on their way"),
        pytest.param(wanted(), present(revision(is_deleting=True)), None, Reason.REPLACING, id="being deleted by somebody"),
        pytest.param(wanted(), present(revision(is_complete=True)), None, Reason.FINISHED, id="done"),
        pytest.param(
            wanted(declared="new"), present(revision(is_complete=True)), None, Reason.FINISHED, id="done is done, whatever changes"
        ),
        pytest.param(wanted(), present(revision(**FAILED)), None, Reason.JOB_FAILED, id="failed"),
        pytest.param(
            wanted(), present(revision(**FAILED), values_since_s=50), None, Reason.JOB_FAILED, id="failed with these values, too"
        ),
        pytest.param(
            wanted(), present(revision(**FAILED), values_since_s=150), Advance(1), Reason.REPLACING,
            id="failed, and values are others now",
        ),
        pytest.param(
            wanted(), present(revision(**FAILED), values_since_s=100), Advance(1), Reason.REPLACING,
            id="failed in the second of the change",
        ),
        pytest.param(
            wanted(), present(revision(**FAILED), values_since_s=96), Advance(1), Reason.REPLACING,
            id="failed so soon after the change that its pods may not have had it",
        ),
        pytest.param(wanted(declared="new"), present(revision(**FAILED)), Advance(1), Reason.REPLACING, id="failed, and mended"),
        # the probe may hide a path of the image's
        pytest.param(
            wanted(may_hide=True), present(revision(**IDLE), early_ends=1), None, Reason.STARTING, id="one early end is chance"
        ),
        pytest.param(
            wanted(may_hide=True), present(revision(), early_ends=2), Advance(1, without_probe=True), Reason.REPLACING,
            id="two early ends: without the probe",
        ),
        pytest.param(
            wanted(may_hide=True), present(revision(**FAILED), early_ends=1), Advance(1, without_probe=True), Reason.REPLACING,
            id="one, and the Job has given up",
        ),
        pytest.param(
            wanted(may_hide=True), present(revision(**FAILED)), None, Reason.JOB_FAILED, id="failed late: not the probe's doing"
        ),
        pytest.param(
            wanted(), present(revision(**FAILED), early_ends=7), None, Reason.JOB_FAILED,
            id="the template names the path, or a measurement has shown that all is well",
        ),
        pytest.param(
            wanted(may_hide=True), present(revision(has_probe=False, **FAILED), early_ends=7), None, Reason.JOB_FAILED,
            id="it ends without the probe as well",
        ),
        pytest.param(
            wanted(may_hide=True, declared="new"), present(revision(**FAILED), early_ends=7), Advance(1), Reason.REPLACING,
            id="another template is tried with the probe",
        ),
        pytest.param(
            wanted(may_hide=True, when=NEXT, devices="2"), present(revision(), early_ends=2), Advance(1, without_probe=True),
            Reason.REPLACING, id="whatever else waits for a restart",
        ),
        # its owner's changes
        pytest.param(wanted(declared="new"), present(revision()), Advance(1), Reason.REPLACING, id="template changed: at once"),
        pytest.param(
            wanted(declared="new", when=NEXT), present(revision()), Advance(1), Reason.REPLACING,
            id="template changed: whatever apply.when says of proven values",
        ),
        # what the loop put in force
        pytest.param(wanted(devices="2"), present(revision()), None, Reason.REPLACING, id="S1: waits for a checkpoint"),
        pytest.param(wanted(devices="2"), present(revision(), has_saved=True), Advance(1), Reason.REPLACING, id="S1: and restarts"),
        pytest.param(wanted(devices="2", when=NEXT), present(revision(), has_saved=True), None, Reason.AS_DECLARED, id="S1: next restart"),
        pytest.param(wanted(devices="2", when=NEXT), present(revision(**IDLE)), Advance(1), Reason.REPLACING, id="S1: nothing runs"),
        pytest.param(wanted(), present(revision(), is_outdated=True), None, Reason.REPLACING, id="S0: waits where it cannot switch"),
        pytest.param(
            wanted(), present(revision(), is_outdated=True, has_saved=True), Advance(1), Reason.REPLACING, id="S0: and restarts"
        ),
        pytest.param(
            wanted(is_live=True), present(revision(), is_outdated=True, has_saved=True), None, Reason.AS_DECLARED, id="S0: switched live"
        ),
        pytest.param(
            wanted(when=NEXT), present(revision(), is_outdated=True, has_saved=True), None, Reason.AS_DECLARED, id="S0: next restart"
        ),
        pytest.param(
            wanted(when=AFTER), present(revision(), is_outdated=True, has_saved=True), Advance(1), Reason.REPLACING,
            id="S0: after a checkpoint",
        ),
        # from one revision to the next
        pytest.param(
            wanted(), present(revision(0), target=1), Remove(facts(0)), Reason.REPLACING, id="the old Job goes first"
        ),
        pytest.param(
            wanted(), present(revision(0, is_deleting=True), target=1), None, Reason.REPLACING, id="and is waited for"
        ),
        pytest.param(wanted(), present(target=1, pods_left=2), None, Reason.REPLACING, id="and so are its pods"),
        pytest.param(wanted(), present(target=1), Create(1), Reason.STARTING, id="then comes the next"),
        pytest.param(
            wanted(), present(revision(0), revision(1), target=1), Remove(facts(0)), Reason.REPLACING, id="never two of them"
        ),
        # in turn with a block
        pytest.param(
            wanted(guest="d0"), present(revision()), Remove(facts()), Reason.MAKING_WAY, id="its checkpoint is written: it makes way"
        ),
        pytest.param(
            wanted(guest="d0"), present(revision(is_deleting=True)), None, Reason.MAKING_WAY, id="it is on its way out"
        ),
        pytest.param(wanted(guest="d0"), present(), None, Reason.MAKING_WAY, id="it stays away while the block is there"),
        pytest.param(wanted(), present(pods_left=1), None, Reason.REPLACING, id="it never runs beside its old self"),
        pytest.param(
            wanted(guest="d0", devices="2"), present(revision()), Remove(facts()), Reason.MAKING_WAY,
            id="it comes back with the new value",
        ),
        pytest.param(
            wanted(guest="d0", is_queued=True), present(revision()), Remove(facts()), Reason.MAKING_WAY, id="out of its queue, too"
        ),
        pytest.param(
            wanted(guest="d0"), present(revision(is_complete=True)), None, Reason.FINISHED, id="what is done is left as it is"
        ),
        pytest.param(
            wanted(guest="d0"), present(revision(**FAILED)), None, Reason.JOB_FAILED, id="a failure is not hidden by a restart"
        ),
        pytest.param(
            wanted(guest="d0", is_suspended=True), present(), None, Reason.SUSPENDED, id="its owner's word counts more"
        ),
        # suspended
        pytest.param(wanted(is_suspended=True), present(), None, Reason.SUSPENDED, id="suspended before it began"),
        pytest.param(
            wanted(is_suspended=True), present(revision()), SetSuspend(facts(), True), Reason.SUSPENDED, id="suspended"
        ),
        pytest.param(
            wanted(is_suspended=True), present(revision(is_suspended=True)), None, Reason.SUSPENDED, id="suspended already"
        ),
        pytest.param(
            wanted(), present(revision(is_suspended=True, **IDLE)), SetSuspend(facts(is_suspended=True, **IDLE), False),
            Reason.STARTING, id="resumed",
        ),
        pytest.param(
            wanted(), present(revision(is_suspended=True, **IDLE), values_since_s=50), Advance(1), Reason.STARTING,
            id="resumed with other values: no clock has to tell which of its pods have them",
        ),
        pytest.param(
            wanted(is_live=True), present(revision(is_suspended=True, **IDLE), values_since_s=50),
            SetSuspend(facts(is_suspended=True, **IDLE), False), Reason.STARTING, id="resumed, and its program reads them",
        ),
        pytest.param(
            wanted(is_queued=True), present(revision(is_suspended=True, **IDLE), values_since_s=50), None, Reason.QUEUED,
            id="held back by its queue, with other values",
        ),
        pytest.param(
            wanted(is_suspended=True, is_queued=True), present(revision()), Remove(facts()), Reason.SUSPENDED,
            id="suspended in a queue: the queue's field is not written",
        ),
        pytest.param(
            wanted(is_queued=True), present(revision(is_suspended=True, **IDLE)), None, Reason.QUEUED, id="held back by its queue"
        ),
        pytest.param(
            wanted(is_suspended=True), present(revision(is_complete=True)), None, Reason.FINISHED, id="suspended when it is done"
        ),
    ],
)  # fmt: skip
def test_the_next_step(want: Wanted, there: Present, step: Step | None, reason: Reason) -> None:
    """One step at a time, each from what is there."""
    decision = decide(want, there)
    assert decision.step == step
    assert decision.note.reason is reason
    assert decision.note.sentence
