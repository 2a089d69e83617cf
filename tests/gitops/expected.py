"""What is to be seen of each tool's job in each mode, step by step? A truth table.

Five steps: the source is applied and the win is proven; the same source comes again and again; the field is handed over
by the tool's own rule, or by leaving it out; that source comes again and again; the source takes the proven value over.
"""

from enum import StrEnum
from typing import NamedTuple

from gitops.jobs import DECLARED, MODES, PROVEN


class Phase(StrEnum):
    """A step of the story."""

    WON = "proven"
    AGAIN = "the same source again"
    HANDED = "handed over"
    STAYS = "that source again"
    TAKEN = "the source says 3"


class State(NamedTuple):
    """What the server shows of one job."""

    workers: int | None
    """`spec.knobs.dataloaderWorkers`."""
    runs_with: int | None
    """What the pods are given."""
    conflict: str
    """`ApplyConflict` with its reason."""
    tuned: str
    """`Tuned` with its reason."""


ROUNDS = 5
"""How often each tool brings the same source again."""
WRITING = ("Auto", "Spec")
"""Modes in which the loop writes the spec."""

IN_SPEC, PROVEN_VALUES = "False/InSpec", "True/ProvenValues"
WRITTEN = State(PROVEN, PROVEN, IN_SPEC, PROVEN_VALUES)
ADVISED = State(DECLARED, DECLARED, "False/NothingApplied", "False/Recommended")
WATCHED = State(DECLARED, DECLARED, "False/NothingApplied", "False/NoWin")
KEPT = State(DECLARED, PROVEN, "False/ModeKeepsSpec", PROVEN_VALUES)

TRACKED = {
    "argocd": "ManagedByArgoCD",
    "argocd-client": "ManagedByArgoCD",
    "flux": "ManagedByFlux",
    "helm": "ManagedByHelm",
    "helm-client": "ManagedByHelm",
}
"""Tools that keep their fields, each with the reason that names it."""
PEOPLE = ("kubectl", "kubectl-server", "kubectl-force")
"""Applied by hand: the loop takes the field."""
OVERRULED = {"flux-overruled": "kustomize-controller", "helm-overruled": "helm"}
"""Tools with their managers, whose owner lets the loop overrule them and has not told them to ignore anything: a mistake."""
REFUSED = ("kubectl-server", "helm-overruled")
"""Tools that are refused when they bring the old value over ours, as they do not force."""
TOOLS = (*PEOPLE, *TRACKED, *OVERRULED)


def modes_of(tool: str) -> tuple[str, ...]:
    """Overruled tools are of interest where something is written."""
    return WRITING if tool in OVERRULED else MODES


def expect(tool: str, mode: str) -> dict[Phase, State]:
    """All five steps of one job."""
    quiet = {"Overlay": KEPT, "Recommend": ADVISED, "Observe": WATCHED}
    if mode in quiet:
        return dict.fromkeys((Phase.WON, Phase.AGAIN, Phase.HANDED, Phase.STAYS), quiet[mode]) | {
            Phase.TAKEN: _taken(mode)
        }
    if tool in TRACKED:
        held = _hold(mode, TRACKED[tool])
        return {Phase.WON: held, Phase.AGAIN: held, Phase.HANDED: WRITTEN, Phase.STAYS: WRITTEN, Phase.TAKEN: WRITTEN}
    again = WRITTEN if tool in REFUSED else _hold(mode, "Reverted")
    return {Phase.WON: WRITTEN, Phase.AGAIN: again, Phase.HANDED: again, Phase.STAYS: again, Phase.TAKEN: WRITTEN}


def expect_writes(tool: str, mode: str) -> list[int]:
    """Writes of the operator to the TrainingJob by the end of each step, its status aside: one for a win, and no more."""
    in_the_end = int(mode in WRITING)
    first = 0 if tool in TRACKED else in_the_end
    return [first, first, in_the_end, in_the_end, in_the_end]


def expect_refusals(tool: str, mode: str) -> dict[Phase, int]:
    """How often each step is refused to the tool, because the field is ours."""
    if tool not in REFUSED or mode not in WRITING:
        return {}
    by_hand = {Phase.HANDED: 1, Phase.STAYS: ROUNDS} if tool in PEOPLE else {}
    return {Phase.AGAIN: ROUNDS} | by_hand


def _hold(mode: str, reason: str) -> State:
    """The spec is left alone: an overlay in Auto; in Spec the value is not in force either."""
    if mode == "Auto":
        return State(DECLARED, PROVEN, f"True/{reason}", PROVEN_VALUES)
    return State(DECLARED, DECLARED, f"True/{reason}", "False/WonUnapplied")


def _taken(mode: str) -> State:
    """The owner has put the proven value into the source."""
    if mode == "Overlay":
        return WRITTEN
    tuned = "True/ProvenValues" if mode == "Recommend" else "False/NoWin"
    return State(PROVEN, PROVEN, "False/NothingApplied", tuned)


EXPECTED = {(tool, mode): expect(tool, mode) for tool in TOOLS for mode in modes_of(tool)}
