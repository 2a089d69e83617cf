"""How long may a job be left alone after a pass?"""

from amdahl_loop.domain.conditions import Note
from amdahl_loop.domain.plan import Apply, Challenge, Halt, Judge, Launch, Observe, Propose, Rollback, Wait
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.runs import Finished, Unplaced
from amdahl_loop.reconcile import Tick

AT_ONCE_S = 0.0
POLL_S = 2.0
"""While a block runs or pods are on their way; their events wake the job earlier."""
LOOKS = 8
"""So many times the counters of a job are read within the window that measures it, which ends at one of them."""
RESYNC_ACTIVE_S = 15.0
RESYNC_IDLE_S = 300.0
SETTLED = (Reason.AS_DECLARED, Reason.FINISHED, Reason.SUSPENDED)
"""Ways of standing that only an event can change."""


def has_acted(ticked: Tick) -> bool:
    """Whether a pass has changed what is known: the next one follows at once."""
    match ticked.action:
        case Propose() | Judge() | Apply() | Rollback():
            return True
        case Observe() | Launch() | Challenge():
            return isinstance(ticked.run, Finished | Unplaced)
        case Wait() | Halt():
            return False


def rest_of(ticked: Tick, standing: Note, now_s: float) -> float:
    """How long a job may rest: shortly while something goes on, long when nothing does."""
    match ticked.action:
        case Wait(until_s=until_s):
            return min(RESYNC_IDLE_S, max(POLL_S, until_s - now_s))
        case Observe(request=request):
            return min(RESYNC_ACTIVE_S, max(POLL_S, request.windows[0].measure_s / LOOKS))
        case Halt():
            is_moving = standing.reason in (Reason.STARTING, Reason.REPLACING)
            return RESYNC_ACTIVE_S if is_moving else RESYNC_IDLE_S
        case _:
            return POLL_S


def is_at_rest(ticked: Tick, standing: Note) -> bool:
    """Whether only what is watched, or the job itself, can give the next pass something to do.

    Not where time does: values in force are tested on, and save more by the hour.
    """
    memory = ticked.snapshot.memory
    is_timeless = not memory.applications and not memory.disowned
    return isinstance(ticked.action, Halt) and standing.reason in SETTLED and is_timeless
