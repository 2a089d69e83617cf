"""What does an owner do so that the loop may hold a field? Exactly what the operator prints.

In Auto, a tool that can be told to ignore the field is told so, and the loop that it was; in Spec, and with tools that
ignore nothing, the knob is left out of the source.
"""

from collections.abc import Sequence

import yaml

from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.stewards import OVERRULE_ANNOTATION, Ignore, Steward, hand_over_rules
from gitops.expected import OVERRULED, modes_of
from gitops.flux import Flux
from gitops.jobs import DECLARED, Source
from gitops.tools import ArgoCD, Kubectl, Tool


def first_sources(tool: Tool) -> list[Source]:
    """The jobs of a tool as they are applied at first."""
    overruled = {OVERRULE_ANNOTATION: OVERRULED[tool.name]} if tool.name in OVERRULED else {}
    return [Source(mode=mode).mark(overruled) for mode in modes_of(tool.name)]


def hand_over(tool: Tool, sources: Sequence[Source]) -> list[Source]:
    """The sources as their owner changes them; the tool's own rules are set."""
    return [_hand_over(tool, source) if source.mode in ("Auto", "Spec") else source for source in sources]


def _hand_over(tool: Tool, source: Source) -> Source:
    match tool:
        case Kubectl():
            return source
        case Flux(name="flux-overruled"):
            return source
        case Flux() if source.mode == "Auto":
            _, told, overrule = print_rules(Steward.FLUX, tool, source, "kustomize-controller")
            tool.ignore.extend(yaml.safe_load(told.snippet)["spec"]["ignore"])
            return source.mark(yaml.safe_load(overrule.snippet)["metadata"]["annotations"])
        case ArgoCD(is_server_side=True) if source.mode == "Auto":
            *_, overrule = print_rules(Steward.ARGO_CD, tool, source, "argocd-controller")
            tool.ignoring.add(source.name)
            return source.mark(yaml.safe_load(overrule.snippet)["metadata"]["annotations"])
        case _:
            return source.leave_out()


def print_rules(steward: Steward, tool: Tool, source: Source, manager: str) -> tuple[Ignore, ...]:
    """What the operator prints for this job."""
    values = {KnobName.DATALOADER_WORKERS: DECLARED}
    return hand_over_rules(steward, tool.namespace, source.name, values, [manager])
