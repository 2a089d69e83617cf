"""Who keeps a field of the user's object at its value, and what makes them look away?

Field managers are told apart by name: people at a keyboard, tools that put their own value back, ourselves. For each
tool the exact rule that makes it leave a knob alone, as one line of YAML.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from amdahl_loop.domain.knob_values import KnobName, KnobValue
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.values import Frozen

OUR_MANAGER = "amdahl-loop"
"""Field manager of everything that the operator writes."""


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
    """What makes a tool leave our fields alone: where it goes, and the YAML on one line."""

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


def ignore_rules(
    steward: Steward, namespace: str, name: str, values: Mapping[KnobName, KnobValue | None]
) -> tuple[Ignore, ...]:
    """What the owner adds so that a tool leaves these knobs of a TrainingJob alone; empty where nobody knows.

    `values` are the knobs with what is declared now.
    """
    pointers = _flow(f"/spec/knobs/{knob}" for knob in values)
    target = f"target: {{group: amdahl-loop.io, kind: TrainingJob, name: {name}}}"
    match steward:
        case Steward.ARGO_CD:
            paths = _flow(f".spec.knobs.{knob}" for knob in values)
            rule = f"{{group: amdahl-loop.io, kind: TrainingJob, name: {name}, jqPathExpressions: {paths}}}"
            options = "syncPolicy: {syncOptions: [RespectIgnoreDifferences=true, ServerSideApply=true]}"
            return (Ignore(where="the Application", snippet=f"spec: {{ignoreDifferences: [{rule}], {options}}}"),)
        case Steward.FLUX:
            annotation = "metadata: {annotations: {kustomize.toolkit.fluxcd.io/ssa: Merge}}"
            return (
                Ignore(
                    where="the Kustomization (kustomize-controller 1.9 or later)",
                    snippet=f"spec: {{ignore: [{{paths: {pointers}, {target}}}]}}",
                ),
                Ignore(where="the TrainingJob, with these knobs left out of it (any version)", snippet=annotation),
            )
        case Steward.FLUX_HELM:
            rule = f"{{paths: {pointers}, {target}}}"
            return (Ignore(where="the HelmRelease", snippet=f"spec: {{driftDetection: {{ignore: [{rule}]}}}}"),)
        case Steward.HELM:
            knobs = ", ".join(f"{knob}: {str(value).lower()}" for knob, value in values.items())
            return (Ignore(where="the chart's TrainingJob, to be left out", snippet=f"spec: {{knobs: {{{knobs}}}}}"),)
        case Steward.KAPP:
            matcher = f"kindNamespaceNameMatcher: {{kind: TrainingJob, namespace: {namespace}, name: {name}}}"
            copied = f"type: copy, sources: [existing, new], resourceMatchers: [{{{matcher}}}]"
            rules = _flow(f"{{path: [spec, knobs, {knob}], {copied}}}" for knob in values)
            header = "apiVersion: kapp.k14s.io/v1alpha1, kind: Config"
            return (Ignore(where="kapp's configuration", snippet=f"{{{header}, rebaseRules: {rules}}}"),)
        case _:
            return ()


def _flow(items: Iterable[str]) -> str:
    return f"[{', '.join(items)}]"
