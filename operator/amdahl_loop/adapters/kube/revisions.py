"""Does the running job have to be restarted for what is wanted now, and may it be?

A running Job is never edited but for `suspend`; what cannot be switched in place makes a new revision. What its owner
changed takes effect at once. A value that the loop put in force waits for the next durable checkpoint, so that no work
is lost; the old Job's pods are gone before the new Job is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from amdahl_loop.adapters.kube.entering import EARLY_ENDS
from amdahl_loop.adapters.kube.objects import JobFacts
from amdahl_loop.domain.conditions import Note
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.tuning import ApplyWhen

SURE_S = 5.0
"""Dates of the cluster have no fractions, clocks of nodes differ, and a kubelet may hold a ConfigMap that is a moment
old: so much later than the values a container has to be started, to be taken for one that has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a revision should be: digest of its owner's part, the knob in the pod itself; and how to get there.

    `guest` names the block for which the job makes way; empty where there is none. `may_hide`: the probe's path may
    hide one of the image's, by which the program finds its modules.
    """

    declared: str
    devices: str
    is_suspended: bool = False
    is_queued: bool = False
    when: ApplyWhen = ApplyWhen.LIVE
    is_live: bool = False
    guest: str = ""
    may_hide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One running Job that is there, and what it was made from; `values` is None where an older operator made it."""

    number: int
    declared: str
    devices: str
    facts: JobFacts
    values: int | None = None
    has_probe: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """What there is: the revision that is to run, every Job, and what is known of their pods.

    `pods_left`: pods of other revisions that have not ended. `is_outdated`: a pod may have other values than those in
    force, or the last one has failed with such. `has_saved`: a checkpoint was written since a restart became necessary.
    `values_since_s`: since when the values are others than the newest Job was made with; None where they are the same.
    `early_ends`: see `entering.py`.
    """

    target: int
    revisions: Sequence[Revision] = ()
    pods_left: int = 0
    is_outdated: bool = False
    has_saved: bool = False
    values_since_s: float | None = None
    early_ends: int = 0

    @property
    def newest(self) -> Revision | None:
        """The Job of the revision that is to run."""
        return next((revision for revision in self.revisions if revision.number == self.target), None)


@dataclass(frozen=True, slots=True)
class Create:
    """Make the Job of a revision."""

    revision: int


@dataclass(frozen=True, slots=True)
class Advance:
    """Write down that another revision is to run, and that the probe stays out of this template from now on."""

    revision: int
    without_probe: bool = False


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete a Job, pods included."""

    job: JobFacts


@dataclass(frozen=True, slots=True)
class SetSuspend:
    """Let a Job's pods go, or come back."""

    job: JobFacts
    suspend: bool


Step = Create | Advance | Remove | SetSuspend


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step, if any, and how the job stands until then."""

    step: Step | None
    note: Note


ENDED = Note(reason=Reason.FINISHED, sentence="The job has run to its end.")
"""Of a job whose only Job is complete, whatever its spec says by now."""
SUSPENDED = Note(reason=Reason.SUSPENDED, sentence="spec.suspend is true; the job keeps no pods.")


def find_rest(
    revisions: Sequence[Revision], is_suspended: bool, is_queued: bool, has_ended: bool = False
) -> Note | None:
    """How a job stands of which nothing runs or is to run: it has ended, or is suspended; None: more is to be asked.

    `has_ended`: it was seen to end, and does not run again because somebody has tidied its Job away. Of one that ran
    without the probe, or that fails, more is to be said; what a queue manages is taken away.
    """
    if not revisions and has_ended:
        return ENDED
    if not revisions and is_suspended:
        return SUSPENDED
    only = revisions[0] if len(revisions) == 1 else None
    if only is None or only.facts.is_deleting or not only.has_probe:
        return None
    if only.facts.is_complete:
        return ENDED
    return SUSPENDED if is_suspended and only.facts.is_at_rest and not is_queued else None


def decide(wanted: Wanted, present: Present) -> Decision:
    """The next step towards one running Job of the wanted kind."""
    newest = present.newest
    stale = [revision for revision in present.revisions if revision is not newest]
    if stale:
        return _clear_away(stale[0].facts)
    if newest is None:
        return _make(wanted, present)
    if newest.facts.is_deleting and wanted.guest:
        return Decision(None, _make_way(wanted))
    if newest.facts.is_deleting:
        return Decision(None, _note(Reason.REPLACING, f"Job {newest.facts.name} is being deleted."))
    if newest.facts.is_complete:
        return Decision(None, ENDED)
    if wanted.is_suspended:
        return _suspend(wanted, newest)
    if wanted.guest and not newest.facts.failure_reason:
        return Decision(Remove(newest.facts), _make_way(wanted))
    if _must_restart(wanted, newest, present):
        return _restart(wanted, newest, present)
    if newest.facts.failure_reason:
        facts = newest.facts
        said = f"Job {facts.name} failed: {facts.failure_message or facts.failure_reason}"
        return Decision(None, _note(Reason.JOB_FAILED, said))
    return _run_on(wanted, newest, present)


def _note(reason: Reason, sentence: str) -> Note:
    return Note(reason=reason, sentence=sentence)


def _clear_away(facts: JobFacts) -> Decision:
    note = _note(Reason.REPLACING, f"Job {facts.name} of an earlier revision is taken away.")
    return Decision(None if facts.is_deleting else Remove(facts), note)


def _make(wanted: Wanted, present: Present) -> Decision:
    if wanted.is_suspended:
        return Decision(None, SUSPENDED)
    if wanted.guest:
        return Decision(None, _make_way(wanted))
    if present.pods_left:
        said = f"Waiting for {present.pods_left} pods of the Job before to end."
        return Decision(None, _note(Reason.REPLACING, said))
    return Decision(Create(present.target), _note(Reason.STARTING, f"Starting revision {present.target}."))


def _suspend(wanted: Wanted, newest: Revision) -> Decision:
    """A Job that a queue manages is deleted: its `suspend` is the queue's own word."""
    if wanted.is_queued:
        return Decision(Remove(newest.facts), SUSPENDED)
    return Decision(None if newest.facts.is_suspended else SetSuspend(newest.facts, True), SUSPENDED)


def _make_way(wanted: Wanted) -> Note:
    """Its checkpoint is written: the Job goes, and comes back when the block has ended."""
    said = f"The job makes way for trial {wanted.guest}, and goes on from its checkpoint after it."
    return _note(Reason.MAKING_WAY, said)


def _is_kept_from_running(wanted: Wanted, newest: Revision, present: Present) -> bool:
    """Whether the probe may be what the program dies of; once is enough where the Job has given up on it."""
    enough = 1 if newest.facts.failure_reason else EARLY_ENDS
    return wanted.may_hide and newest.has_probe and present.early_ends >= enough


def _must_restart(wanted: Wanted, newest: Revision, present: Present) -> bool:
    """Whether the Job, as it runs, is not what is wanted, and no switch in place makes it so."""
    facts = newest.facts
    if newest.declared != wanted.declared or newest.devices != wanted.devices:
        return True
    if _is_kept_from_running(wanted, newest, present):
        return True
    if facts.failure_reason:  # failed with values that were changed since: the new ones deserve a start
        since_s = present.values_since_s
        return since_s is not None and facts.failed_at_s is not None and since_s + SURE_S > facts.failed_at_s
    return present.is_outdated and not wanted.is_live and wanted.when is not ApplyWhen.NEXT_RESTART


def _restart(wanted: Wanted, newest: Revision, present: Present) -> Decision:
    """Move on to the next revision as soon as nothing is lost by it."""
    advance = Advance(present.target + 1)
    if newest.declared != wanted.declared:
        return Decision(advance, _note(Reason.REPLACING, "The job's template was changed; it is started anew."))
    if _is_kept_from_running(wanted, newest, present):
        said = f"The program of Job {newest.facts.name} ends at its start; it is started without the probe."
        return Decision(Advance(present.target + 1, without_probe=True), _note(Reason.REPLACING, said))
    if newest.facts.failure_reason or not newest.facts.active:
        return Decision(advance, _note(Reason.REPLACING, "Nothing of the job runs; it is started with the new values."))
    if wanted.when is ApplyWhen.NEXT_RESTART:
        return Decision(None, _note(Reason.AS_DECLARED, "The new values take effect at the next restart."))
    if present.has_saved:
        return Decision(advance, _note(Reason.REPLACING, "A checkpoint is written; the job is started anew from it."))
    return Decision(None, _note(Reason.REPLACING, "The new values take effect after the next checkpoint."))


def _run_on(wanted: Wanted, newest: Revision, present: Present) -> Decision:
    """A suspended Job comes back as it was, or, where the values are others by now, as one that was made with them."""
    facts = newest.facts
    if facts.is_suspended and wanted.is_queued:
        return Decision(None, _note(Reason.QUEUED, f"The queue has not admitted Job {facts.name}."))
    if facts.is_suspended and present.values_since_s is not None and not wanted.is_live:
        return Decision(Advance(present.target + 1), _note(Reason.STARTING, "The job resumes with the new values."))
    if facts.is_suspended:
        return Decision(SetSuspend(facts, False), _note(Reason.STARTING, "The job resumes."))
    if facts.ready < facts.replicas:
        return Decision(None, _note(Reason.STARTING, f"{facts.ready} of {facts.replicas} pods are ready."))
    return Decision(None, _note(Reason.AS_DECLARED, f"{facts.ready} of {facts.replicas} pods are ready."))
