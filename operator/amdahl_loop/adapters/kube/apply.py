"""How does a proven value get into the user's spec, and what does the server say about it?

Server-side apply of the knobs' fields under our own manager, bound to the version that was read: never a whole object,
never by force unless the decision (`domain/applying.py`) says so.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from amdahl_loop.adapters.kube.client import Cause, KubeClient, Refused
from amdahl_loop.adapters.kube.jobs import SeenJob, see
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.domain.applying import Decision, WriteSpec, decide, hold
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.ledger import Application
from amdahl_loop.domain.stewards import Claim
from amdahl_loop.domain.tuning import Mode

_CONFLICT = "FieldManagerConflict"
_MANAGER = re.compile(r'^conflict with "(?P<manager>[^"]*)"')
_FIELD = re.compile(r"^\.?spec\.knobs\.(?P<knob>[A-Za-z]+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What was decided about the spec, and what came of it.

    `seen` is the job as it stands after a write, None where nothing was written. `outdated`: the job changed meanwhile,
    and the next pass decides anew.
    """

    decision: Decision
    seen: SeenJob | None = None
    outdated: bool = False


async def sync_spec(
    client: KubeClient, seen: SeenJob, mode: Mode, applications: Sequence[Application], ban: str | None = None
) -> Synced:
    """Bring the spec in line with the values in force where that may be done, see `decide`; at most two requests.

    Without force first; where the server then names managers that may be overruled, once more with force.
    """
    declared = seen.declared
    decision = decide(mode, declared, applications, ban=ban)
    if not isinstance(decision, WriteSpec):
        return Synced(decision=decision)
    answer = await _apply(client, seen, decision)
    if isinstance(answer, Refused) and (claims := read_conflict(answer.causes)):
        decision = decide(mode, declared, applications, claims)
        if not isinstance(decision, WriteSpec):
            return Synced(decision=decision)
        answer = await _apply(client, seen, decision)
    if not isinstance(answer, Refused):
        return Synced(decision=decision, seen=see(answer))
    is_outdated = answer.is_outdated or answer.is_gone
    return Synced(decision=decision if is_outdated else hold(mode, decision, answer.message), outdated=is_outdated)


async def _apply(client: KubeClient, seen: SeenJob, decision: WriteSpec) -> Object | Refused:
    """UID and version keep the apply from making a new object where the job is gone."""
    metadata = {"name": seen.name, "uid": seen.uid, "resourceVersion": seen.resource_version}
    knobs = {knob.value: value for knob, value in decision.values.items()}
    body: Object = {"metadata": metadata, "spec": {"knobs": knobs}}
    return await client.apply(Kind.TRAINING_JOB, seen.namespace, seen.name, body, force=decision.force)


def read_conflict(causes: Iterable[Cause]) -> tuple[Claim, ...]:
    """The claims that a refused apply ran into; those on other fields than knobs are none of ours."""
    claims: list[Claim] = []
    for cause in causes:
        field, manager = _FIELD.match(cause.field), _MANAGER.match(cause.message)
        if cause.reason == _CONFLICT and field is not None and field["knob"] in set(KnobName):
            name = manager["manager"] if manager is not None else ""
            claims.append(Claim(manager=name, knob=KnobName(field["knob"])))
    return tuple(claims)
