"""What does a real API server make of Experiments: is a plan safe there, exact to the last digit, and never changed?"""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from amdahl_loop.domain.api.experiment import ExperimentStatus, Reservation
from amdahl_loop.domain.api.plans import write_plan
from amdahl_loop.domain.api.records import (
    StoredExperiment,
    add_application,
    add_block,
    add_loss,
    close,
    read_experiment,
)
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.blocks import holdout_block
from amdahl_loop.domain.experiments import BlockRecord, Loss, Plan
from amdahl_loop.domain.ledger import Application, ApplicationKind
from amdahl_loop.domain.telemetry import Arm
from amdahl_loop.domain.tuning import ProfileName
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from crd_builders import Document, install_crds, make_object
from crd_strategies import full_window
from judge_builders import make_constants, make_plan, make_record, make_report, make_window
from testbed.access import Access, Reply
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

API = "/apis/amdahl-loop.io/v1alpha1/namespaces"
ODD = (0.1 + 0.2, 1e-5, 5e-324, 1e22, 1.7976931348623157e308, 2 / 3, 720000.0, 0.0, -0.0, 123456789.123456789)
"""Numbers that a careless road rounds, widens or shortens."""


class Experiments:
    """Experiments of one namespace."""

    def __init__(self, access: Access, namespace: str) -> None:
        self.access, self.namespace = access, namespace
        self.path = f"{API}/{namespace}/experiments"

    def create(self, plan: Plan) -> Document:
        """Record a plan; it must be accepted."""
        reply = self.access.post(self.path, write_plan(plan))
        assert reply.status == 201, reply.message
        return reply.body

    def replace(self, document: Document, part: str = "") -> Reply:
        """Update the object, or its status."""
        return self.access.request("PUT", f"{self.path}/{document['metadata']['name']}{part}", document)

    def report(self, document: Document, status: ExperimentStatus) -> Document:
        """Write a status; it must be accepted."""
        reply = self.replace(document | {"status": to_wire(status)}, "/status")
        assert reply.status == 200, reply.message
        return reply.body

    def read(self, name: str) -> StoredExperiment:
        """The experiment as it is stored; it must be readable."""
        found = read_experiment(self.access.get(f"{self.path}/{name}").body)
        assert isinstance(found, StoredExperiment), found
        return found


@pytest.fixture(scope="module")
def namespace(api_server: Cluster) -> Iterator[str]:
    """One namespace for this module; every test cleans up after itself."""
    install_crds(api_server)
    name = api_server.create_namespace("experiments")
    yield name
    api_server.delete_namespace(name)


@pytest.fixture
def experiments(api_server: Cluster, namespace: str) -> Iterator[Experiments]:
    """No experiment is there before, and none after."""
    found = Experiments(api_server.admin, namespace)
    yield found
    found.access.delete(found.path)


def run_block(plan: Plan, number: int) -> BlockRecord:
    """A finished block of the plan."""
    spec = plan.blocks[number]
    windows = tuple(make_window(Arm(letter), index) for index, letter in enumerate(spec.order))
    return make_record(plan, spec, windows, started_at_s=1763722708.1234567 + number, held_device_s=12.3)


@pytest.mark.parametrize("profile", list(ProfileName))
def test_a_plan_comes_back_with_its_hash(experiments: Experiments, profile: ProfileName) -> None:
    """Through JSON, Go and the store: the plan of every profile is equal, and hashes to the same digits."""
    plan = make_plan(make_constants(profile))
    stored = experiments.create(plan)

    assert experiments.read(plan.name).experiment.plan == plan
    assert stored["spec"]["planHash"] == plan.hash


@pytest.mark.parametrize("seed", range(5))
def test_odd_numbers_come_back_exactly(experiments: Experiments, seed: int) -> None:
    """Every digit, the sign of zero and the smallest number there is survive, because they travel as text."""
    draws = random.Random(seed)
    numbers = (*ODD, *(draws.uniform(-1, 1) * 10.0 ** draws.randint(-300, 300) for _ in range(4)))
    constants = make_constants(alphas=numbers[:14], floor=draws.choice(numbers), loss_tolerance=draws.choice(numbers))
    plan = make_plan(constants, max_slowdown=draws.choice(numbers), blocks=make_plan().blocks)

    experiments.create(plan)

    assert experiments.read(plan.name).experiment.plan.model_dump_json() == plan.model_dump_json()


def test_json_numbers_would_not_come_back(api_server: Cluster, namespace: str) -> None:
    """The reason for text: as JSON numbers, -0.0 and 2.0 come back as other values, and a hash over them changes."""
    path = f"{API}/{namespace}/trainingjobs"
    manifest = make_object("numbers")
    manifest["spec"]["template"]["spec"]["numbers"] = [-0.0, 2.0, 0.1]
    api_server.admin.post(path, manifest)

    stored = api_server.admin.get(f"{path}/numbers").body["spec"]["template"]["spec"]["numbers"]
    api_server.admin.delete(f"{path}/numbers")

    assert json.dumps(stored) != json.dumps([-0.0, 2.0, 0.1])


def test_facts_come_back_as_they_were(experiments: Experiments) -> None:
    """A whole life: blocks, a loss, the verdict, an application and a block after it, written one by one."""
    plan = make_plan()
    blocks = (*(run_block(plan, number) for number in range(4)), make_record(plan, plan.blocks[5], failure="evicted"))
    spec = holdout_block(plan.seed, 0)
    windows = tuple(make_window(Arm(letter), index) for index, letter in enumerate(spec.order))
    kept = BlockRecord(spec=spec, started_at_s=9e8, held_device_s=3.5, report=make_report(plan, spec, windows))
    loss = Loss(run=plan.run_name(plan.blocks[4]), started_at_s=1.5, held_device_s=0.25)
    verdict = Verdict(
        word=VerdictWord.WON, sentence="won: 20 %", effect=0.2231435513142097, interval=(0.1, 0.3), effect_se=1e-3
    )
    application = Application(
        job=plan.job, job_uid=plan.job_uid, fingerprint=plan.fingerprint, at_s=1763722999.5, kind=ApplicationKind.APPLIED,
        experiment=plan.name, declared=plan.baseline, knobs=plan.variant,
    )  # fmt: skip

    document, status = experiments.create(plan), ExperimentStatus(reserved=Reservation(run="job-e1-p0", device_s=480.0))
    for block in blocks:
        status = add_block(status, block)
        document = experiments.report(document, status)
    status = add_loss(status, loss)
    document = experiments.report(document, status)
    status = add_application(close(status, verdict, 1763722900.125), application)
    document = experiments.report(document, status)
    experiments.report(document, add_block(status, kept))

    stored = experiments.read(plan.name)
    assert stored.experiment.blocks == (*blocks, kept)
    assert (stored.experiment.losses, stored.experiment.verdict) == ((loss,), verdict)
    assert (stored.closed_at_s, stored.applications) == (1763722900.125, (application,))
    assert stored.status.saving == "20.0 %"
    assert stored.status.reserved == Reservation(run="job-e1-p0", device_s=480.0)


def test_the_largest_experiment_is_accepted(experiments: Experiments) -> None:
    """Every block of the longest profile reported in full, and 64 more: the server stores it, managed fields and all."""
    plan = make_plan(make_constants(ProfileName.THOROUGH))
    status = ExperimentStatus()
    for spec in (*plan.blocks, *(holdout_block(plan.seed, index) for index in range(64))):
        windows = tuple(full_window(Arm(letter), index) for index, letter in enumerate(spec.order))
        report = make_report(plan, spec, windows)
        record = BlockRecord(
            spec=spec, node="n" * 63, started_at_s=1763722708.1234567, held_device_s=12.5, report=report
        )
        status = add_block(status, record)

    stored = experiments.report(
        experiments.create(plan), close(status, Verdict(word=VerdictWord.WON, sentence="won"), 1.0)
    )

    assert len(json.dumps(stored)) <= 160 * 1024
    assert len(json.dumps(stored["metadata"])) <= 16 * 1024


IMMUTABLE = "spec is the plan, recorded before its first block; it never changes, delete the object instead"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 8),
        ("maxSlowdown", "3.0"),
        ("constants/floor", "0.0"),
        ("hypothesis/changes/0/after", "4"),
        ("blocks/0/order", "BA"),
        ("planHash", "0" * 16),
    ],
)
def test_a_plan_never_changes(experiments: Experiments, path: str, value: object) -> None:
    """No field of a recorded plan can be edited, by anybody, before or after it has run."""
    stored = experiments.create(make_plan())
    edited = copy.deepcopy(stored)
    *parents, last = path.split("/")
    place: Any = edited["spec"]
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[last] = value

    reply = experiments.replace(edited)

    assert reply.status == 422
    assert IMMUTABLE in reply.message
    assert experiments.read("job-e1").experiment.plan == make_plan()


def _with_blocks(experiments: Experiments) -> tuple[Document, ExperimentStatus]:
    plan = make_plan()
    status = add_block(add_block(ExperimentStatus(), run_block(plan, 0)), run_block(plan, 1))
    verdict = Verdict(word=VerdictWord.NO_GAIN, sentence="no gain", effect=0.01)
    status = close(status, verdict, 100.0)
    return experiments.report(experiments.create(plan), status), status


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["blocks"][0].update(heldDeviceSeconds="1.0"), "a finished block never changes; leave it as it is"),
        (lambda s: s["blocks"][1].pop("summary"), "a finished block never changes; leave it as it is"),
        (lambda s: s["blocks"].pop(), "a finished block is never removed; keep every entry of status.blocks"),
        (lambda s: s.pop("blocks"), "a finished block is never removed; keep every entry of status.blocks"),
        (lambda s: s["verdict"].update(word="Won"), "the verdict is final; leave it as it is"),
        (lambda s: (s.pop("verdict"), s.pop("closedAt")), "the verdict is final; leave it as it is"),
        (lambda s: s.pop("closedAt"), "verdict and closedAt come together; set both"),
        (lambda s: s.clear(), "the verdict is final; leave it as it is"),
        (lambda s: s["blocks"].append(s["blocks"][0]), "Duplicate value"),
        (lambda s: s["blocks"].append({"name": "x9"}), "status.blocks[2].name"),
        (lambda s: s.update(saving="x" * 17), "status.saving"),
    ],
)  # fmt: skip
def test_what_was_measured_never_changes(experiments: Experiments, change: Any, said: str) -> None:
    """Blocks are only added to, a verdict stands, and neither can be wiped out by whoever may write a status."""
    document, status = _with_blocks(experiments)
    edited = to_wire(status)
    change(edited)

    reply = experiments.replace(document | {"status": edited}, "/status")

    assert reply.status == 422
    assert said in reply.message


def test_a_status_cannot_be_taken_away(experiments: Experiments) -> None:
    """A write without any status is refused as well."""
    document, _ = _with_blocks(experiments)
    reply = experiments.replace({part: value for part, value in document.items() if part != "status"}, "/status")

    assert reply.status == 422
    assert "status holds what was measured and is never removed; leave it as it is" in reply.message


def test_a_status_is_written_apart_from_the_plan(experiments: Experiments) -> None:
    """Creating an Experiment with a verdict does not give it one."""
    plan = make_plan()
    verdict = to_wire(close(ExperimentStatus(), Verdict(word=VerdictWord.WON, sentence="won"), 1.0))
    reply = experiments.access.post(experiments.path, write_plan(plan) | {"status": verdict})

    assert "status" not in reply.body
    assert experiments.read(plan.name).experiment.verdict is None


@pytest.mark.parametrize(("length", "status"), [(52, 201), (53, 422)])
def test_names_leave_room_for_their_blocks(experiments: Experiments, length: int, status: int) -> None:
    """Fifty-two characters, so that every block's run has a name of at most 63."""
    plan = make_plan(name="x" * length)
    reply = experiments.access.post(experiments.path, write_plan(plan))

    assert reply.status == status
    assert status == 201 or "at most 52, because names of its blocks are longer; rename it" in reply.message


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("fingerprint", "F" * 16, "spec.fingerprint"),
        ("job", "other/job", "spec.job"),
        ("maxSlowdown", 1.05, "must be of type string"),
        ("maxSlowdown", "NaN", "spec.maxSlowdown"),
        ("blocks", [], "should have at least 1 items"),
        ("constants/alphas", ["0.1"] * 17, "Too many: 17: must have at most 16 items"),
        ("hypothesis/rationale", "x" * 501, "Too long: may not be more than 500 bytes"),
    ],
)
def test_a_faulty_plan_is_refused(experiments: Experiments, path: str, value: object, said: str) -> None:
    """A plan that could not be read back is never stored."""
    document = write_plan(make_plan())
    *parents, last = path.split("/")
    place: Any = document["spec"]
    for part in parents:
        place = place[part]
    place[last] = value

    reply = experiments.access.post(experiments.path, document)

    assert reply.status == 422
    assert said in reply.message


def test_experiments_are_found_by_what_they_are_about(experiments: Experiments) -> None:
    """Field selectors pick those of a job, of a kind of work, and the open ones, without reading all of them."""
    one, two = make_plan(name="one-e1", job="one"), make_plan(name="two-e1", job="two", fingerprint="0" * 16)
    experiments.create(one)
    closed = close(ExperimentStatus(), Verdict(word=VerdictWord.WON, sentence="won"), 1.0)
    experiments.report(experiments.create(two), closed)

    def found(selector: str) -> list[str]:
        listed = experiments.access.get(f"{experiments.path}?fieldSelector={selector}").body["items"]
        return [item["metadata"]["name"] for item in listed]

    assert found("spec.job=two") == ["two-e1"]
    assert found(f"spec.fingerprint={'f' * 16}") == ["one-e1"]
    assert found("status.verdict.word=") == ["one-e1"]
    assert found("status.verdict.word=Won") == ["two-e1"]
