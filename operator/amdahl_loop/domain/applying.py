"""May a proven value be written into the user's spec, and if not, who stands in the way?

A decision of what the object says now: the mode, the declared values, the applications recorded so far and who owns the
fields (server-side apply's `managedFields`). Nothing is forced on a tool that would put its own value back: then the
value stays an overlay, and the rule that makes the tool look away is named. What runs is not decided here.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from amdahl_loop.domain.knob_values import KnobName, Knobs, KnobValue
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.stewards import Claim, Ignore, Steward, hand_over_rules, name_stewards, steward_of
from amdahl_loop.domain.tuning import APPLYING, Mode
from amdahl_loop.domain.values import Frozen

MAX_REVERTS = 2
"""Once two values were put back, the spec of this job is not written again: nobody wins such a fight."""


class DeclaredSpec(Frozen):
    """What the object says, read live."""

    name: str
    namespace: str
    knobs: Knobs
    claims: tuple[Claim, ...] = ()
    """Who owns which knob's field."""
    tracked_by: frozenset[Steward] = frozenset()
    """Tools whose tracking marks the object bears; such a tool may write under kubectl's name."""
    overruled: frozenset[str] = frozenset()
    """Managers whose claims the owner has declared void (`stewards.OVERRULE_ANNOTATION`)."""
    seen: Mapping[KnobName, KnobValue] = {}
    """Values that the last status found in the spec: what tells a revert from a write that has not happened yet."""


class WriteSpec(Frozen):
    """Server-side apply these fields, no others; `force` takes them from people at a keyboard."""

    experiment: str
    values: Mapping[KnobName, KnobValue]
    force: bool


class KeepOverlay(Frozen):
    """The values run, the spec is left alone."""

    reason: Reason
    sentence: str
    ignore: tuple[Ignore, ...] = ()


class Conflict(Frozen):
    """The values do not run, since the mode wants them in the spec or nowhere."""

    reason: Reason
    sentence: str
    ignore: tuple[Ignore, ...] = ()


class RecordRevert(Frozen):
    """Somebody has put the old values back: to be recorded, before anything else."""

    application: Application
    """The application that was undone."""
    declared: Knobs
    sentence: str

    def as_application(self, at_s: float) -> Application:
        """The fact to record: the values stay those of the application, the spec's are its owner's word."""
        return self.application.model_copy(
            update={"kind": ApplicationKind.REVERTED, "declared": self.declared, "at_s": at_s}
        )


class RecordRelease(Frozen):
    """The owner has left the fields of a proven value out of the source: to be recorded, then the loop may hold them.

    The record keeps the value in force meanwhile: a knob that nobody declares would otherwise be the program's own.
    """

    application: Application
    """The application whose fields were released."""
    declared: Knobs
    sentence: str

    def as_application(self, at_s: float) -> Application:
        """The fact to record: the same values, over what is declared now."""
        return self.application.model_copy(update={"declared": self.declared, "at_s": at_s})


class Nothing(Frozen):
    """There is nothing to write."""

    reason: Reason
    sentence: str


Decision = WriteSpec | KeepOverlay | Conflict | RecordRevert | RecordRelease | Nothing

WRITING = (Mode.AUTO, Mode.SPEC)
"""Modes in which proven values belong into the spec."""


class Position(Enum):
    """Where the declared values stand, seen from the newest application."""

    IN_SPEC = "what was applied"
    UNWRITTEN = "what was declared before, and the spec was not written yet"
    PUT_BACK = "what was declared before, though the spec was written"
    RELEASED = "what was declared before, less the fields that were to be written"
    ELSEWHERE = "something else: a new baseline"


def decide(
    mode: Mode,
    declared: DeclaredSpec,
    applications: Sequence[Application],
    refused: Iterable[Claim] = (),
    *,
    ban: str | None = None,
) -> Decision:
    """What to do about the spec. `applications` are the job's own, oldest first.

    `refused` holds the claims that the server named when it refused an unforced write; without them nothing is forced.
    `ban` is the limit that the values break which the spec lacks (`withholding.find_ban`).
    """
    if not applications:
        return Nothing(reason=Reason.NOTHING_APPLIED, sentence="No value of the loop's is in force.")
    newest = applications[-1]
    position = locate(declared, applications)
    if position is Position.IN_SPEC:
        return Nothing(reason=Reason.IN_SPEC, sentence=f"spec.knobs holds the values of {newest.experiment}.")
    if position is Position.RELEASED and mode in WRITING:
        return _record_release(declared, newest)
    if position in (Position.ELSEWHERE, Position.RELEASED):
        return Nothing(
            reason=Reason.NEW_BASELINE,
            sentence=f"The owner declared other values than {newest.experiment} knew: they are the new baseline.",
        )
    if position is Position.PUT_BACK and newest.kind is not ApplicationKind.REVERTED:
        return _record_revert(declared, newest)
    missing = differing(declared.knobs, newest.knobs)
    if ban is not None:
        said = f"Not in force: {_say(newest.experiment, missing)}. {ban}."
        return Nothing(reason=Reason.OUTSIDE_LIMITS, sentence=said)
    if mode not in APPLYING:
        said = f"Not in force, since tuning.mode is {mode}: {_say(newest.experiment, missing)}."
        return Nothing(reason=Reason.MODE_KEEPS_SPEC, sentence=said)
    return _write_or_hold(mode, declared, applications, tuple(refused))


def locate(declared: DeclaredSpec, applications: Sequence[Application]) -> Position:
    """Where the declared values stand; `applications` are oldest first and not empty."""
    newest = applications[-1]
    if declared.knobs == newest.knobs:
        return Position.IN_SPEC
    if declared.knobs == newest.declared:
        is_written = newest.kind is ApplicationKind.REVERTED or _is_seen(declared, newest.knobs)
        return Position.PUT_BACK if is_written else Position.UNWRITTEN
    if _is_released(declared, newest):
        return Position.RELEASED
    earlier = [application.declared for application in chain_of(applications)]
    return Position.PUT_BACK if declared.knobs in earlier else Position.ELSEWHERE


def chain_of(applications: Sequence[Application]) -> tuple[Application, ...]:
    """The newest application and those before it that it builds on: no owner's new baseline lies between them.

    Neither a revert nor a release is a baseline: both hold on to the values of the application before them.
    """
    chain: list[Application] = []
    for application in reversed(applications):
        if chain and not _holds_on(chain[-1], application):
            break
        chain.append(application)
    return tuple(reversed(chain))


def _holds_on(later: Application, earlier: Application) -> bool:
    """Whether an application builds on the one before it."""
    is_same = (later.experiment, later.knobs) == (earlier.experiment, earlier.knobs)
    is_revert = later.kind is ApplicationKind.REVERTED
    return is_revert or is_same or later.declared in (earlier.knobs, earlier.declared)


def count_reverts(applications: Iterable[Application]) -> int:
    """How often somebody has put old values back."""
    return sum(application.kind is ApplicationKind.REVERTED for application in applications)


def _is_seen(declared: DeclaredSpec, applied: Knobs) -> bool:
    """Whether the spec was found to hold every value that it lacks now."""
    missing = differing(declared.knobs, applied)
    return all(declared.seen.get(knob) == value for knob, value in missing.items())


def _is_released(declared: DeclaredSpec, newest: Application) -> bool:
    """Whether the owner has taken fields out that the loop has not written yet, and changed nothing else.

    Out of the written spec it is another matter: then the knob is no longer the loop's to change.
    """
    changed = differing(newest.declared, newest.knobs)
    left_out = {knob for knob in changed if declared.knobs.get(knob) is None}
    kept = {knob: value for knob, value in newest.declared.declared().items() if knob not in left_out}
    is_unwritten = all(declared.seen.get(knob) != changed[knob] for knob in left_out)
    is_asked_for = newest.kind is ApplicationKind.APPLIED and bool(left_out) and is_unwritten
    return is_asked_for and declared.knobs.declared() == kept


def differing(declared: Knobs, applied: Knobs) -> dict[KnobName, KnobValue]:
    """Applied values that the spec does not hold, in catalogue order."""
    return {knob: value for knob, value in applied.declared().items() if declared.get(knob) != value}


def _record_revert(declared: DeclaredSpec, newest: Application) -> RecordRevert:
    knobs = differing(declared.knobs, newest.knobs)
    managers = sorted({claim.manager for claim in declared.claims if claim.knob in knobs})
    return RecordRevert(
        application=newest,
        declared=declared.knobs,
        sentence=f"{' and '.join(managers) or 'Somebody'} put {_name_fields(knobs)} back to what it was before "
        f"{newest.experiment}.",
    )


def _record_release(declared: DeclaredSpec, newest: Application) -> RecordRelease:
    knobs = differing(declared.knobs, newest.knobs)
    said = f"{_name_fields(knobs)} is left to the loop: {_say(newest.experiment, knobs)} is to be written."
    return RecordRelease(application=newest, declared=declared.knobs, sentence=said)


def _write_or_hold(
    mode: Mode, declared: DeclaredSpec, applications: Sequence[Application], refused: tuple[Claim, ...]
) -> Decision:
    """The spec lacks the values in force: write them, or say what stands in the way."""
    newest = applications[-1]
    missing = differing(declared.knobs, newest.knobs)
    if mode not in WRITING:
        said = f"{_say(newest.experiment, missing)}. tuning.mode {mode} never writes the spec."
        return KeepOverlay(reason=Reason.MODE_KEEPS_SPEC, sentence=f"Kept as an overlay: {said}")
    held = _find_hold(declared, applications, missing, refused)
    if held is None:
        ours = {claim.knob for claim in declared.claims if steward_of(claim.manager) is Steward.OURS}
        values = {k: v for k, v in newest.knobs.declared().items() if k in missing or k in ours}
        return WriteSpec(experiment=newest.experiment, values=values, force=bool(refused))
    reason, why, ignore = held
    return _keep_out(mode, f"{_say(newest.experiment, missing)}. {why}", reason, ignore)


def hold(mode: Mode, refused: WriteSpec, message: str) -> KeepOverlay | Conflict:
    """What a write comes to that the server did not take, for another reason than whose field it is."""
    said = f"{_say(refused.experiment, refused.values)}. The API server refused to write it: {message}"
    return _keep_out(mode, said, Reason.REFUSED_BY_SERVER, ())


def _keep_out(mode: Mode, said: str, reason: Reason, ignore: tuple[Ignore, ...]) -> KeepOverlay | Conflict:
    """Values that do not get into the spec: an overlay, or nothing at all, as the mode wants it."""
    if mode is Mode.SPEC:
        return Conflict(reason=reason, sentence=f"Not in force, since tuning.mode is Spec: {said}", ignore=ignore)
    return KeepOverlay(reason=reason, sentence=f"Kept as an overlay: {said}", ignore=ignore)


def _find_hold(
    declared: DeclaredSpec,
    applications: Sequence[Application],
    missing: Mapping[KnobName, KnobValue],
    refused: tuple[Claim, ...],
) -> tuple[Reason, str, tuple[Ignore, ...]] | None:
    """What forbids writing these fields: a lost fight, a value put back, or a tool that keeps its own."""
    reverts = count_reverts(applications)
    if reverts >= MAX_REVERTS:
        return Reason.DRIFT_FIGHT, f"Proven values were put back {reverts} times: the spec is not written again.", ()
    if count_reverts(chain_of(applications)):
        return Reason.REVERTED, f"Put back by its owner: {_name_fields(missing)}.", ()
    everybody = (*declared.claims, *refused)
    claims = tuple(c for c in everybody if c.knob in missing and c.manager not in declared.overruled)
    stewards = name_stewards(claims, declared.tracked_by)
    if not stewards:
        return None
    first = min(stewards, key=lambda steward: list(Steward).index(steward))
    managers = sorted({claim.manager for claim in claims if steward_of(claim.manager) is not Steward.OURS})
    values = {knob: declared.knobs.get(knob) for knob in missing}
    ignore = hand_over_rules(first, declared.namespace, declared.name, values, managers)
    return first.reason, f"Managed by {' and '.join(stewards[first])}: {_name_fields(missing)}.", ignore


def _name_fields(values: Mapping[KnobName, KnobValue]) -> str:
    return " and ".join(f"spec.knobs.{knob}" for knob in values)


def _say(experiment: str, values: Mapping[KnobName, KnobValue]) -> str:
    said = ", ".join(f"{knob}={str(value).lower()}" for knob, value in values.items())
    return f"{said} ({experiment})"
