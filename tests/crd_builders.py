"""Builders of the objects that a cluster holds, and the one table of manifests that nobody accepts."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders import make_manifest
from testbed.cluster import Cluster, wait_for

Document = dict[str, Any]


@dataclass(frozen=True)
class Refusal:
    """A manifest that is refused: by the API server with one text, by the parser of one machine with another."""

    name: str
    change: Callable[[Document], None]
    server_says: str
    parser_says: str | None
    """None where only the server can tell, or where only the server cares."""

    def document(self) -> Document:
        """The faulty manifest."""
        document = make_object()
        self.change(document)
        return document


def make_object(name: str = "pydocs", **spec: Any) -> Document:
    """A legal TrainingJob with every part of the spec in use."""
    document = copy.deepcopy(make_manifest(knobs={"dataloaderWorkers": 0, "checkpointEverySteps": 50}, **spec))
    document["metadata"]["name"] = name
    return document


def put(path: str, value: object) -> Callable[[Document], None]:
    """An edit that sets one field, making the objects above it where they are missing."""

    def edit(document: Document) -> None:
        place: Any = document
        *parents, last = path.split("/")
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[last] = value

    return edit


def _containers(*containers: Document) -> Callable[[Document], None]:
    return put("spec/template/spec/containers", list(containers))


_TRAINER: Document = {"name": "trainer", "image": "example/trainer:1", "command": ["python", "train.py"]}


def _trainer_without(*fields: str) -> Document:
    return {name: value for name, value in _TRAINER.items() if name not in fields}


REFUSALS = (
    Refusal(
        "no container is named trainer",
        _containers({"name": "main", "command": ["x"]}, {"name": "proxy"}),
        'spec.template.spec.containers: Invalid value: "object": containers are named ["main", "proxy"]; name the one to tune '
        "'trainer', exactly once",
        "containers are named ['main', 'proxy']; name the one to tune 'trainer', exactly once",
    ),
    Refusal(
        "two containers are named trainer",
        _containers(_TRAINER, _TRAINER),
        'Duplicate value: {"name":"trainer"}',
        "name the one to tune 'trainer', exactly once",
    ),
    Refusal(
        "the trainer has no command",
        _containers(_trainer_without("command")),
        "the trainer container has no command; write it out, the image's default cannot be seen",
        "the trainer container has no command; write it out, the image's default cannot be seen",
    ),
    Refusal(
        "the trainer's command is empty",
        _containers(_TRAINER | {"command": []}),
        "the trainer container has no command; write it out",
        "the trainer container has no command; write it out",
    ),
    Refusal(
        "nine containers",
        _containers(_TRAINER, *({"name": f"side-{number}"} for number in range(8))),
        "spec.template.spec.containers: Too many: 9: must have at most 8 items",
        "at most 8 items",
    ),
    Refusal("no containers", _containers(), "should have at least 1 items", "at least 1 item"),
    Refusal(
        "no template",
        lambda document: document["spec"].pop("template"),
        "spec.template: Required value",
        "spec.template",
    ),
    *(
        Refusal(
            f"{knob} is {word} its owner's limit",
            lambda document, knob=knob, value=value, limits=limits: (
                put(f"spec/knobs/{knob}", value)(document),
                put(f"spec/tuning/knobs/{knob}", limits)(document),
            )[0],
            f'spec.knobs.{knob}: Invalid value: "object": knobs.{knob} is {value}, outside tuning.knobs.{knob} [{least}, {most}]; '
            "widen one of them",
            f"knobs.{knob} is {value}, outside tuning.knobs.{knob}",
        )
        for knob, value, limits, word, least, most in (
            ("dataloaderWorkers", 9, {"max": 8}, "above", "none", "8"),
            ("prefetchFactor", 1, {"min": 2}, "below", "2", "none"),
            ("checkpointEverySteps", 5, {"min": 10, "max": 20}, "below", "10", "20"),
            ("gpusPerReplica", 4, {"min": 1, "max": 2}, "above", "1", "2"),
        )
    ),
    Refusal(
        "limits are the wrong way round",
        put("spec/tuning/knobs", {"prefetchFactor": {"min": 4, "max": 2}}),
        'spec.tuning.knobs.prefetchFactor: Invalid value: "object": min 4 is above max 2; swap them or drop one',
        "min 4 is above max 2; swap them or drop one",
    ),
    Refusal(
        "a knob is out of the catalogue",
        put("spec/knobs/dataloaderWorkers", 300),
        "spec.knobs.dataloaderWorkers in body should be less than or equal to 256",
        "less than or equal to 256",
    ),
    Refusal("a knob is no number", put("spec/knobs/dataloaderWorkers", "many"), "must be of type integer", "'many'"),
    Refusal("no replicas", put("spec/replicas", 0), "should be greater than or equal to 1", "spec.replicas: 0"),
    Refusal(
        "an unknown mode",
        put("spec/tuning/mode", "Turbo"),
        'spec.tuning.mode: Unsupported value: "Turbo": supported values: "Observe", "Recommend", "Auto", "Spec", "Overlay"',
        "'Observe', 'Recommend', 'Auto', 'Spec' or 'Overlay'",
    ),
    Refusal("an unknown knob is pinned", put("spec/tuning/pin", ["speed"]), 'Unsupported value: "speed"', "'speed'"),
    Refusal(
        "a knob is pinned twice",
        put("spec/tuning/pin", ["replicas", "replicas"]),
        'spec.tuning.pin[1]: Duplicate value: "replicas"',
        None,
    ),
    Refusal(
        "a slowdown that is no number",
        put("spec/tuning/maxSlowdown", "fast"),
        "'fast' is no decimal number; write digits as text, such as '4' or '0.5'",
        "'fast' is no decimal number; write digits as text, such as '4' or '0.5'",
    ),
    Refusal(
        "a slowdown that asks for speed",
        put("spec/tuning/maxSlowdown", "0.9"),
        "maxSlowdown '0.9' is below 1; write the factor that may be lost, such as '1.05'",
        "'0.9' is below 1, a demand to be faster; write the factor that may be lost, such as 1.05",
    ),
    Refusal(
        "a budget below zero",
        put("spec/tuning/budget/deviceHours", "-4"),
        "spec.tuning.budget.deviceHours: Invalid value: \"string\": '-4' is no decimal number",
        "'-4' is no decimal number",
    ),
    Refusal(
        "a budget that is not text",
        put("spec/tuning/budget/deviceHours", 4),
        "spec.tuning.budget.deviceHours in body must be of type string",
        "spec.tuning.budget.deviceHours: 4",
    ),
    Refusal(
        "no trial at a time",
        put("spec/tuning/budget/parallelTrials", 0),
        "should be greater than or equal to 1",
        "greater than or equal to 1",
    ),
    Refusal(
        "a duration without a unit",
        put("spec/tuning/checkpoint/maxLostWork", "30"),
        "'30' is no duration longer than zero; write one such as 30m, 1h30m or 250ms",
        "'30' is no duration; write a number and a unit",
    ),
    Refusal(
        "no time at all",
        put("spec/tuning/checkpoint/meanTimeBetweenInterruptions", "0h"),
        "'0h' is no duration longer than zero",
        "'0h' must be longer than zero",
    ),
    Refusal(
        "seventeen scratch folders",
        put("spec/tuning/trial/scratchPaths", [f"/scratch/{number}" for number in range(17)]),
        "spec.tuning.trial.scratchPaths: Too many: 17: must have at most 16 items",
        "at most 16 items",
    ),
    Refusal(
        "an empty interpreter",
        put("spec/tuning/trial/python", ""),
        "should be at least 1 chars long",
        "at least 1 character",
    ),
    Refusal("the name is too long", put("metadata/name", "x" * 64), "metadata.name 'xxx", "metadata.name"),
    Refusal(
        "the name has a dot",
        put("metadata/name", "py.docs"),
        "metadata.name 'py.docs' must be lower-case letters, digits and '-', at most 63, because host names and labels hold no more; "
        "rename it",
        "metadata.name: 'py.docs': must be lower-case letters",
    ),
)
"""Every fault that the schema alone can find."""


CRDS = Path(__file__).resolve().parents[1] / "crds"


def install_crds(cluster: Cluster) -> None:
    """The definitions of `crds/` are established, and the server serves every kind."""
    cluster.admin.kubectl("apply", "--server-side", "--force-conflicts", "-f", CRDS)
    cluster.admin.kubectl("wait", "--for=condition=Established", "-f", CRDS, "--timeout=60s")
    for definition in CRDS.glob("*.yaml"):
        path = f"/apis/amdahl-loop.io/v1alpha1/{definition.stem}"
        wait_for(lambda path=path: cluster.admin.get(path).status == 200, 60, f"the server lists {definition.stem}")
