"""Is every rule of every definition refused by a real server, in its own words?

The rules are read from the definitions themselves: one without a row here fails the last test.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import yaml

from amdahl_loop.domain.api.experiment import ExperimentStatus
from amdahl_loop.domain.api.plans import write_plan
from amdahl_loop.domain.api.records import add_block, close
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.blocks import BlockSpec, holdout_block
from amdahl_loop.domain.experiments import BlockRecord, Plan
from amdahl_loop.domain.telemetry import Arm
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from crd_builders import CRDS, Document, install_crds, make_object, put
from judge_builders import make_plan, make_report, make_window
from testbed.access import Access, Reply
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

API = "/apis/amdahl-loop.io/v1alpha1/namespaces"
Change = Callable[[Document], object]


class Row(NamedTuple):
    """One rule: where it stands in the schema, how it is broken, and what the server says then."""

    plural: str
    path: str
    change: Change
    says: str
    part: str = ""
    """`/status` where the status is what is written."""


DECIMAL = "'lots' is no decimal number; write digits as text, such as '4' or '0.5'"
DURATION = "'soon' is no duration longer than zero; write one such as 30m, 1h30m or 250ms"
INTEGERS = ("dataloaderWorkers", "prefetchFactor", "checkpointEverySteps", "gpusPerReplica", "microBatch", "bucketMb")
STANDS = "a finished block never changes; leave it as it is"
FINAL = "the verdict is final; leave it as it is"
OTHER = [{"name": "main", "command": ["x"]}]


def both(*changes: Change) -> Change:
    """Several edits of one object."""
    return lambda document: [change(document) for change in changes]


ROWS = [
    *(
        Row(
            "trainingjobs",
            "spec",
            both(put(f"spec/knobs/{knob}", 9), put(f"spec/tuning/knobs/{knob}", {"min": 2, "max": 8})),
            f"knobs.{knob} is 9, outside tuning.knobs.{knob} [2, 8]; widen one of them",
        )
        for knob in INTEGERS
    ),
    *(
        Row("trainingjobs", f"spec.tuning.knobs.{knob}", put(f"spec/tuning/knobs/{knob}", {"min": 8, "max": 4}), "min 8 is above max 4; swap them or drop one")
        for knob in INTEGERS
    ),
    Row("trainingjobs", "spec.template", put("spec/template/spec/containers", OTHER), "containers are named [\"main\"]; name the one to tune 'trainer', exactly once"),
    Row("trainingjobs", "spec.template", put("spec/template/spec/containers/0/command", []), "the trainer container has no command; write it out, the image's default cannot be seen"),
    Row("trainingjobs", "spec.tuning.maxSlowdown", put("spec/tuning/maxSlowdown", "lots"), DECIMAL),
    Row("trainingjobs", "spec.tuning.maxSlowdown", put("spec/tuning/maxSlowdown", "0.99"), "maxSlowdown '0.99' is below 1; write the factor that may be lost, such as '1.05'"),
    Row("trainingjobs", "spec.tuning.budget.deviceHours", put("spec/tuning/budget/deviceHours", "lots"), DECIMAL),
    Row("trainingjobs", "spec.tuning.expectedDeviceHours", put("spec/tuning/expectedDeviceHours", "lots"), DECIMAL),
    Row("trainingjobs", "spec.tuning.checkpoint.maxLostWork", put("spec/tuning/checkpoint/maxLostWork", "soon"), DURATION),
    Row("trainingjobs", "spec.tuning.checkpoint.meanTimeBetweenInterruptions", put("spec/tuning/checkpoint/meanTimeBetweenInterruptions", "soon"), DURATION),
    Row("trainingjobs", "", put("metadata/name", "x" * 64), "at most 63, because host names and labels hold no more; rename it"),
    *(
        Row("tuningpolicies", f"spec.knobs.{knob}", put(f"spec/knobs/{knob}", {"min": 8, "max": 4}), "min 8 is above max 4; swap them or drop one")
        for knob in INTEGERS
    ),
    Row("tuningpolicies", "spec.budget.deviceHours", put("spec/budget/deviceHours", "lots"), DECIMAL),
    Row("tuningpolicies", "", put("metadata/name", "x" * 64), "at most 63, because labels hold no more; rename it"),
    Row("experiments", "spec", put("spec/seed", 8), "spec is the plan, recorded before its first block; it never changes, delete the object instead"),
    Row("experiments", "status", lambda d: d["status"].pop("closedAt"), "verdict and closedAt come together; set both", "/status"),
    Row("experiments", "status", lambda d: [d["status"].pop(name) for name in ("verdict", "closedAt")], FINAL, "/status"),
    Row("experiments", "status", lambda d: d["status"]["blocks"].pop(), "a finished block is never removed; keep every entry of status.blocks", "/status"),
    Row("experiments", "status", lambda d: d["status"]["holdouts"].pop(), "a finished block is never removed; keep every entry of status.holdouts", "/status"),
    Row("experiments", "status.blocks[]", lambda d: d["status"]["blocks"][0].update(heldDeviceSeconds="1.0"), STANDS, "/status"),
    Row("experiments", "status.holdouts[]", lambda d: d["status"]["holdouts"][0].update(heldDeviceSeconds="1.0"), STANDS, "/status"),
    Row("experiments", "status.verdict", lambda d: d["status"]["verdict"].update(word="Won"), FINAL, "/status"),
    Row("experiments", "", lambda d: d.pop("status"), "status holds what was measured and is never removed; leave it as it is", "/status"),
    Row("experiments", "", put("metadata/name", "x" * 53), "at most 52, because names of its blocks are longer; rename it"),
]  # fmt: skip


@pytest.fixture(scope="module")
def namespace(api_server: Cluster) -> Iterator[str]:
    """One namespace for this module."""
    install_crds(api_server)
    name = api_server.create_namespace("rules")
    yield name
    api_server.delete_namespace(name)


def run_block(plan: Plan, spec: BlockSpec, number: int) -> BlockRecord:
    """A finished block."""
    windows = tuple(make_window(Arm(letter), index) for index, letter in enumerate(spec.order))
    report = make_report(plan, spec, windows)
    return BlockRecord(spec=spec, node="n", started_at_s=1763722708.0 + number, held_device_s=12.3, report=report)


def legal_status() -> Document:
    """An experiment that has run, was judged, and is tested on."""
    plan = make_plan()
    status = add_block(ExperimentStatus(), run_block(plan, plan.blocks[0], 0))
    status = close(status, Verdict(word=VerdictWord.NO_GAIN, sentence="no gain", effect=0.01), 100.0)
    return to_wire(add_block(status, run_block(plan, holdout_block(plan, 0), 1)))


def legal(plural: str) -> Document:
    """An object that the server takes."""
    policy = {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TuningPolicy",
        "metadata": {"name": "house"},
        "spec": {},
    }
    return {"trainingjobs": make_object, "tuningpolicies": lambda: policy, "experiments": lambda: write_plan(make_plan())}[plural]()  # fmt: skip


def break_rule(admin: Access, path: str, row: Row) -> Reply:
    """Put a legal object there, then ask for the illegal change of it; a change of name is a new object."""
    document = legal(row.plural)
    created = admin.post(path, document)
    assert created.status == 201, created.message
    stored, where = created.body, f"{path}/{created.body['metadata']['name']}"
    if row.part:
        stored = admin.request("PUT", where + row.part, stored | {"status": legal_status()}).body
        assert "verdict" in stored["status"], stored
    row.change(stored)
    if f"{path}/{stored['metadata']['name']}" == where:
        return admin.request("PUT", where + row.part, stored)
    row.change(document)
    return admin.post(path, document)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.plural}: {row.says[:60]} ({row.path})")
def test_a_broken_rule_is_told_in_its_own_words(api_server: Cluster, namespace: str, row: Row) -> None:
    """422, the field and the message."""
    path = f"{API}/{namespace}/{row.plural}"
    try:
        reply = break_rule(api_server.admin, path, row)
    finally:
        api_server.admin.delete(path)
    assert reply.status == 422, reply.body
    assert row.says in reply.message


def find_rules(schema: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and message of every rule below a schema."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path, rule["message"]
    for name, part in schema.get("properties", {}).items():
        yield from find_rules(part, f"{path}.{name}".lstrip("."))
    if isinstance(schema.get("items"), dict):
        yield from find_rules(schema["items"], f"{path}[]")


def test_no_rule_is_without_its_row() -> None:
    """As many rows at each place of each definition as there are rules."""
    declared: list[tuple[str, str]] = []
    for file in sorted(CRDS.glob("*.yaml")):
        definition = yaml.safe_load(file.read_text())
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        declared += [(file.stem, path) for path, _ in find_rules(schema)]
    assert len(declared) > 30
    assert sorted((row.plural, row.path) for row in ROWS) == sorted(declared)
