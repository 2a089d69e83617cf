"""Who keeps a field of the user's object at its value, and what makes them look away?

Field managers are told apart by name: people at a keyboard, tools that put their own value back, ourselves. For each
tool exactly what its owner does to hand a knob over, as lines of YAML.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from amdahl_loop.domain.knob_values import KnobName, KnobValue
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.values import Frozen

OUR_MANAGER = "amdahl-loop"
"""Field manager of everything that the operator writes."""

OVERRULE_ANNOTATION = "amdahl-loop.io/overrule"
"""Names of field managers, with commas, from whom the loop may take a knob's field: they were told to ignore it."""


class Steward(StrEnum):
    """Who stands behind a field manager. The order is the one in which they are named when several own a field."""

    ARGO_CD = "Argo CD"
    FLUX = "Flux"
    FLUX_HELM = "Flux's helm-controller"
    HELM = "Helm"
    KAPP = "kapp"
    OTHER = "another program"
    INTERACTIVE = "kubectl"
    OURS = "the loop"

    @property
    def reason(self) -> Reason:
        """Why a field of this steward's is not written."""
        return _REASONS.get(self, Reason.MANAGED_BY_OTHER)


_REASONS = {
    Steward.ARGO_CD: Reason.MANAGED_BY_ARGO_CD,
    Steward.FLUX: Reason.MANAGED_BY_FLUX,
    Steward.FLUX_HELM: Reason.MANAGED_BY_HELM,
    Steward.HELM: Reason.MANAGED_BY_HELM,
    Steward.KAPP: Reason.MANAGED_BY_KAPP,
}

_MANAGERS = (
    ("argocd", Steward.ARGO_CD),
    ("kustomize-controller", Steward.FLUX),
    ("flux", Steward.FLUX),
    ("helm-controller", Steward.FLUX_HELM),
    ("helm", Steward.HELM),
    ("kapp", Steward.KAPP),
)
"""Beginnings of managers' names, the more special before the more general."""

_MARKS = (
    ("argocd.argoproj.io/tracking-id", "", Steward.ARGO_CD),
    ("argocd.argoproj.io/instance", "", Steward.ARGO_CD),
    ("kustomize.toolkit.fluxcd.io/name", "", Steward.FLUX),
    ("helm.toolkit.fluxcd.io/name", "", Steward.FLUX_HELM),
    ("meta.helm.sh/release-name", "", Steward.HELM),
    ("app.kubernetes.io/managed-by", "Helm", Steward.HELM),
    ("kapp.k14s.io/app", "", Steward.KAPP),
)
"""Labels and annotations by which tools know their objects; a value where the name alone says nothing."""


class Claim(Frozen):
    """One manager's ownership of one knob's field."""

    manager: str
    knob: KnobName


class Ignore(Frozen):
    """What makes a tool leave our fields alone: what to do where, and the YAML on one line."""

    where: str
    snippet: str


def steward_of(manager: str) -> Steward:
    """Who stands behind a manager's name. Names nobody knows belong to programs, which may put their value back."""
    if manager == OUR_MANAGER:
        return Steward.OURS
    if manager == "kubectl" or manager.startswith("kubectl-"):
        return Steward.INTERACTIVE
    name = manager.lower()
    return next((steward for beginning, steward in _MANAGERS if name.startswith(beginning)), Steward.OTHER)


def read_marks(marks: Mapping[str, str]) -> frozenset[Steward]:
    """The tools that track an object, by its labels and annotations together."""
    return frozenset(steward for name, value, steward in _MARKS if name in marks and value in ("", marks[name]))


def name_stewards(claims: Iterable[Claim], tracked_by: frozenset[Steward]) -> dict[Steward, list[str]]:
    """The tools and programs that own any of these fields, each with its managers' names; empty where none does.

    A field that kubectl owns belongs to the tool that tracks the object, if one does: it may have called kubectl.
    """
    found: dict[Steward, list[str]] = {}
    for claim in claims:
        steward = steward_of(claim.manager)
        if steward is Steward.OURS:
            continue
        for owner in tracked_by if steward is Steward.INTERACTIVE else (steward,):
            name = claim.manager if owner is steward else f"{owner} (as {claim.manager})"
            if name not in found.setdefault(owner, []):
                found[owner].append(name)
    return found


def read_overruled(annotations: Mapping[str, str]) -> frozenset[str]:
    """Managers that the owner lets the loop overrule: those that were told to ignore the fields."""
    names = annotations.get(OVERRULE_ANNOTATION, "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


def hand_over_rules(
    steward: Steward,
    namespace: str,
    name: str,
    values: Mapping[KnobName, KnobValue | None],
    managers: Sequence[str],
) -> tuple[Ignore, ...]:
    """What the owner does so that the loop may hold these knobs of a TrainingJob; empty where nobody knows.

    The first rule is enough by itself. The others together are the second way, which keeps the knobs in the source:
    the tool is told to ignore them, and the loop that it was. A tool that ignores a field goes on owning it, so that
    the field's owners do not tell. `values` are the knobs with what is declared now, `managers` those who own them.
    """
    knobs = ", ".join(f"{knob}: {str(value).lower()}" for knob, value in values.items() if value is not None)
    left_out = Ignore(where="leave out of the TrainingJob in its source", snippet=f"spec: {{knobs: {{{knobs}}}}}")
    told = _tell_tool(steward, namespace, name, tuple(values))
    if told is None:
        return (left_out,) if steward is Steward.HELM else ()
    overrule = f"metadata: {{annotations: {{{OVERRULE_ANNOTATION}: {_quote(','.join(managers))}}}}}"
    return (left_out, told, Ignore(where="and with it to the TrainingJob in its source", snippet=overrule))


def _tell_tool(steward: Steward, namespace: str, name: str, knobs: Sequence[KnobName]) -> Ignore | None:
    """The tool's own rule for fields that others may change; None where it has none."""
    pointers = _flow(f"/spec/knobs/{knob}" for knob in knobs)
    target = f"target: {{group: amdahl-loop.io, kind: TrainingJob, name: {name}}}"
    match steward:
        case Steward.ARGO_CD:
            paths = _flow(f".spec.knobs.{knob}" for knob in knobs)
            rule = f"{{group: amdahl-loop.io, kind: TrainingJob, name: {name}, jqPathExpressions: {paths}}}"
            options = "syncPolicy: {syncOptions: [RespectIgnoreDifferences=true, ServerSideApply=true]}"
            return Ignore(
                where="or add to the Application", snippet=f"spec: {{ignoreDifferences: [{rule}], {options}}}"
            )
        case Steward.FLUX:
            return Ignore(
                where="or add to the Kustomization (kustomize-controller 1.9 or later)",
                snippet=f"spec: {{ignore: [{{paths: {pointers}, {target}}}]}}",
            )
        case Steward.FLUX_HELM:
            rule = f"{{paths: {pointers}, {target}}}"
            return Ignore(where="or add to the HelmRelease", snippet=f"spec: {{driftDetection: {{ignore: [{rule}]}}}}")
        case Steward.KAPP:
            matcher = f"kindNamespaceNameMatcher: {{kind: TrainingJob, namespace: {namespace}, name: {name}}}"
            copied = f"type: copy, sources: [existing, new], resourceMatchers: [{{{matcher}}}]"
            rules = _flow(f"{{path: [spec, knobs, {knob}], {copied}}}" for knob in knobs)
            header = "apiVersion: kapp.k14s.io/v1alpha1, kind: Config"
            return Ignore(where="or add to kapp's configuration", snippet=f"{{{header}, rebaseRules: {rules}}}")
        case _:
            return None


def _quote(text: str) -> str:
    """A YAML string, whatever a manager is called."""
    return json.dumps(text, ensure_ascii=False)


def _flow(items: Iterable[str]) -> str:
    return f"[{', '.join(items)}]"
