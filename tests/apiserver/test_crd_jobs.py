"""What does a real API server make of TrainingJobs and TuningPolicies?"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from amdahl_loop.domain.api.conditions import ConditionStatus, JobCondition, JobConditionType
from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.api.training_job import MAX_STATUS_BYTES, TrainingJobStatus, VerdictReport
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.parsing import ManifestError, parse_training_job
from amdahl_loop.domain.verdicts import VerdictWord
from crd_builders import REFUSALS, Document, Refusal, install_crds, make_object, put
from testbed.access import Access, Reply
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

API = "/apis/amdahl-loop.io/v1alpha1/namespaces"


class Jobs:
    """TrainingJobs of one namespace, as its administrator sees them."""

    def __init__(self, access: Access, namespace: str) -> None:
        self.access, self.namespace = access, namespace
        self.path = f"{API}/{namespace}/trainingjobs"

    def create(self, document: Document) -> Reply:
        """Create without the strict check of unknown fields, as most clients do."""
        return self.access.post(self.path, document)

    def get(self, name: str = "pydocs") -> Document:
        """The object as it is stored; it must be there."""
        reply = self.access.get(f"{self.path}/{name}")
        assert reply.status == 200, reply
        return reply.body

    def replace(self, document: Document, part: str = "") -> Reply:
        """Update the object, or its status."""
        return self.access.request("PUT", f"{self.path}/{document['metadata']['name']}{part}", document)

    def delete(self, name: str = "pydocs") -> None:
        """Delete the object where it is there."""
        self.access.delete(f"{self.path}/{name}")


@pytest.fixture(scope="module")
def namespace(api_server: Cluster) -> Iterator[str]:
    """One namespace for this module; every test cleans up after itself."""
    install_crds(api_server)
    name = api_server.create_namespace("jobs")
    yield name
    api_server.delete_namespace(name)


@pytest.fixture
def jobs(api_server: Cluster, namespace: str) -> Iterator[Jobs]:
    """No job is there before, and none after."""
    found = Jobs(api_server.admin, namespace)
    yield found
    found.access.delete(found.path)


def test_a_legal_job_is_accepted(jobs: Jobs) -> None:
    """The table of refusals is about one fault each: without it the job is fine."""
    assert jobs.create(make_object()).status == 201


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_a_faulty_job_is_refused(jobs: Jobs, refusal: Refusal) -> None:
    """Created or updated, it is refused with field, value and fix; and where there is no server the parser refuses it too."""
    created = jobs.create(refusal.document())
    legal = jobs.create(make_object()).body
    faulty = refusal.document()
    is_name = faulty["metadata"]["name"] != legal["metadata"]["name"]
    faulty["metadata"] = legal["metadata"]
    updated = created if is_name else jobs.replace(faulty)

    assert (created.status, updated.status) == (422, 422)
    assert refusal.server_says in created.message
    assert refusal.server_says in updated.message
    assert jobs.get()["spec"] == legal["spec"]
    if refusal.parser_says is not None:
        with pytest.raises(ManifestError) as refused:
            parse_training_job(refusal.document())
        assert refusal.parser_says in str(refused.value)


def test_several_faults_are_told_at_once(jobs: Jobs) -> None:
    """Nobody mends a manifest one error at a time."""
    document = make_object()
    put("spec/tuning/mode", "Turbo")(document)
    put("spec/replicas", 0)(document)
    put("spec/template/spec/containers", [{"name": "main"}])(document)

    said = jobs.create(document).message

    assert "spec.tuning.mode" in said
    assert "spec.replicas" in said


def test_the_servers_defaults_are_the_parsers(jobs: Jobs) -> None:
    """A job that says nothing is filled in to what the parser would assume, and shows it."""
    manifest = make_object()
    del manifest["spec"]["knobs"]
    jobs.create(manifest)
    stored = jobs.get()

    assert {name: part for name, part in stored["spec"].items() if name != "template"} == {
        "replicas": 1,
        "suspend": False,
        "deviceResource": "nvidia.com/gpu",
        "tuning": {
            "mode": "Auto",
            "objective": "DeviceHours",
            "maxSlowdown": "1.05",
            "budget": {"parallelTrials": 1},
            "checkpoint": {"maxLostWork": "30m", "meanTimeBetweenInterruptions": "24h"},
            "profile": "standard",
            "trial": {"placement": "Spare", "isolated": False, "python": "python3"},
            "apply": {"when": "Live"},
        },
    }
    assert parse_training_job(stored).spec == parse_training_job(manifest).spec


def test_knobs_and_template_are_never_filled_in(jobs: Jobs) -> None:
    """What is declared is stored as written: an empty set of knobs stays empty, a container gets nothing."""
    manifest = make_object()
    manifest["spec"]["knobs"] = {}
    jobs.create(manifest)

    stored = jobs.get()["spec"]
    assert (stored["knobs"], stored["template"]) == ({}, manifest["spec"]["template"])


def test_unknown_fields_go_and_the_template_stays(jobs: Jobs) -> None:
    """A field that nobody knows is dropped from our parts, and kept in the user's pod template, whatever it is."""
    manifest = make_object()
    manifest["spec"]["tuning"]["turbo"] = True
    pod = {
        "metadata": {"labels": {"team": "a"}},
        "spec": {
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "docs"}}],
            "somethingNewer": {"deep": [1, {"er": "x"}]},
            "containers": [
                manifest["spec"]["template"]["spec"]["containers"][0]
                | {
                    "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "resources": {"limits": {"cpu": 0.5, "memory": "1Gi", "nvidia.com/gpu": 2}, "claims": [{"name": "gpu"}]},
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }
            ],
        },
    }  # fmt: skip
    manifest["spec"]["template"] = pod
    jobs.create(manifest)

    stored = jobs.get()["spec"]
    assert "turbo" not in stored["tuning"]
    assert stored["template"] == pod


def test_kubectl_names_an_unknown_field(jobs: Jobs) -> None:
    """`kubectl apply` is strict: a typo is refused before it is dropped."""
    manifest = make_object()
    manifest["spec"]["knobs"]["dataloaderWorker"] = 2
    ran = jobs.access.try_kubectl("apply", "-n", jobs.namespace, "-f", "-", stdin=manifest)

    assert ran.returncode == 1
    assert 'unknown field "spec.knobs.dataloaderWorker"' in ran.stderr


def make_status(**changes: Any) -> Document:
    """A status with something in every part that the tests look at."""
    condition = JobCondition(
        type=JobConditionType.READY,
        status=ConditionStatus.TRUE,
        reason="Tuned",
        message="runs with 2 workers",
        last_transition_time=to_timestamp(1763722708.0),
        observed_generation=1,
    )
    return to_wire(TrainingJobStatus(observed_generation=1, conditions=(condition,), message="all is well")) | changes


def test_status_and_spec_are_written_apart(jobs: Jobs) -> None:
    """Who writes the object cannot touch the status, who writes the status cannot touch the spec; only a spec has generations."""
    created = jobs.create(make_object() | {"status": make_status()}).body
    assert "status" not in created

    sneaky = created | {"status": make_status(), "spec": created["spec"] | {"replicas": 7}}
    reported = jobs.replace(sneaky, "/status").body
    assert (reported["spec"]["replicas"], reported["status"]["message"]) == (1, "all is well")
    assert reported["metadata"]["generation"] == 1

    changed = jobs.replace(
        reported | {"spec": reported["spec"] | {"replicas": 2}, "status": make_status(message="no")}
    ).body
    assert (changed["spec"]["replicas"], changed["status"]["message"]) == (2, "all is well")
    assert changed["metadata"]["generation"] == 2


_VERDICT = VerdictReport(experiment="e", word=VerdictWord.WON, change="a", sentence="b", closed_at=to_timestamp(1.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conditions": [*make_status()["conditions"] * 2]}, 'status.conditions[1]: Duplicate value: {"type":"Ready"}'),
        ({"conditions": [{"type": "Ready"}]}, "status.conditions[0].reason: Required value"),
        ({"conditions": [make_status()["conditions"][0] | {"type": "not a type"}]}, "status.conditions[0].type: Invalid value"),
        ({"conditions": [make_status()["conditions"][0] | {"type": "T" * 129}]}, "status.conditions[0].type: Too long"),
        ({"message": "x" * 501}, "status.message: Too long: may not be more than 500 bytes"),
        ({"lastVerdicts": [to_wire(_VERDICT)] * 11}, "status.lastVerdicts: Too many: 11: must have at most 10 items"),
        ({"phaseShares": {"input": 1001}}, "should be less than or equal to 1000"),
        ({"diagnosis": {"class": "Slow", "sentence": "x"}}, 'status.diagnosis.class: Unsupported value: "Slow"'),
        ({"bank": {"grossDeviceHours": 1.5}}, "must be of type string"),
        ({"effectiveKnobs": [{"name": "pinMemory", "value": "yes", "source": "Spec"}]}, "should match '^(true|false|none|block|selective|ddp|fsdp|[0-9]{1,8})$'"),
        ({"activeExperiment": "../other/secret"}, "status.activeExperiment: Invalid value: \"../other/secret\""),
    ],
)  # fmt: skip
def test_a_faulty_status_is_refused(jobs: Jobs, changes: Document, said: str) -> None:
    """The operator's own reports are held to their bounds too."""
    created = jobs.create(make_object()).body
    reply = jobs.replace(created | {"status": make_status(**changes)}, "/status")

    assert reply.status == 422
    assert said in reply.message


def test_conditions_of_other_controllers_have_room(jobs: Jobs) -> None:
    """Types are open, as the API conventions ask: four of others' stand beside all twelve of ours."""
    (ready,) = make_status()["conditions"]
    ours = [ready | {"type": name.value} for name in JobConditionType]
    theirs = [ready | {"type": name} for name in ("Checked", "example.com/Checked", "a.b-c.example/X_1.y", "9")]
    created = jobs.create(make_object()).body

    stored = jobs.replace(created | {"status": make_status(conditions=[*ours, *theirs])}, "/status")

    assert stored.status == 200, stored.message
    assert stored.body["status"]["conditions"] == [*ours, *theirs]


def test_the_largest_status_is_accepted(jobs: Jobs) -> None:
    """Every list full and every sentence at its limit: below 32 KiB, and the server takes it."""
    created = jobs.create(make_object()).body
    conditions = [
        make_status()["conditions"][0] | {"type": name.value, "message": "m" * 500, "reason": "R" * 64}
        for name in JobConditionType
    ]
    conditions += [conditions[0] | {"type": f"{index}{'t' * 127}"} for index in range(4)]
    verdict = to_wire(_VERDICT) | {"experiment": "e" * 63, "sentence": "s" * 500, "change": "c" * 160}
    status = make_status(conditions=conditions, message="m" * 500, lastVerdicts=[verdict] * 10)

    stored = jobs.replace(created | {"status": status}, "/status")

    assert stored.status == 200, stored.message
    assert len(json.dumps(stored.body["status"])) <= MAX_STATUS_BYTES


@pytest.mark.parametrize(("name", "status"), [("x" * 63, 201), ("x" * 64, 422), ("9-to-5", 201), ("a.b", 422)])
def test_names_are_labels(jobs: Jobs, name: str, status: int) -> None:
    """Sixty-three characters are enough for anybody, and one more is refused."""
    assert jobs.create(make_object(name)).status == status


@pytest.mark.parametrize(
    ("mebibytes", "said"),
    [(1.75, "etcdserver: request is too large"), (4, "Request entity too large: limit is 3145728")],
)
def test_an_object_over_the_size_limits_is_refused(jobs: Jobs, mebibytes: float, said: str) -> None:
    """More than the store holds, or more than a request may: refused, and nothing is stored."""
    manifest = make_object()
    manifest["spec"]["template"]["spec"]["blob"] = "x" * int(mebibytes * 2**20)
    reply = jobs.create(manifest)

    assert reply.status in (413, 500)
    assert said in reply.message
    assert jobs.access.get(f"{jobs.path}/pydocs").status == 404


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("command", ["x"] * 65, "containers[0].command: Too many: 65: must have at most 64 items"),
        ("args", ["x" * 131_073], "containers[0].args[0]: Too long: may not be more than 131072 bytes"),
        ("env", [{"name": f"V{number}"} for number in range(1025)], "containers[0].env: Too many: 1025: must have at most 1024 items"),
        ("resources", {"limits": {f"example.com/r{n}": 1 for n in range(33)}}, "Too many: 33: must have at most 32 items"),
    ],
)  # fmt: skip
def test_lists_in_the_template_are_bounded(jobs: Jobs, path: str, value: object, said: str) -> None:
    """What the loop reads of a template is bounded field by field."""
    manifest = make_object()
    put(f"spec/template/spec/containers/0/{path}", value)(manifest)
    reply = jobs.create(manifest)

    assert reply.status == 422
    assert said in reply.message


def test_one_knob_can_be_applied_alone(jobs: Jobs) -> None:
    """Server-side apply of one field of `spec.knobs` meets a conflict, is forced, and leaves the other knobs to their owner."""
    jobs.access.apply(f"{jobs.path}/pydocs", make_object(), manager="user")
    one_field = {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "spec": {"knobs": {"dataloaderWorkers": 2}},
    }

    unforced = jobs.access.apply(f"{jobs.path}/pydocs", one_field, manager="amdahl-loop")
    forced = jobs.access.apply(f"{jobs.path}/pydocs", one_field, manager="amdahl-loop", force=True)

    assert unforced.status == 409
    assert unforced.body["details"]["causes"][0]["field"] == ".spec.knobs.dataloaderWorkers"
    assert forced.status == 200
    assert jobs.get()["spec"]["knobs"] == {"dataloaderWorkers": 2, "checkpointEverySteps": 50}


def test_a_value_beyond_its_owners_limit_cannot_be_applied_either(jobs: Jobs) -> None:
    """The rules hold for every writer: the operator cannot patch a value out of the owner's bounds."""
    jobs.access.apply(
        f"{jobs.path}/pydocs", make_object(tuning={"knobs": {"dataloaderWorkers": {"max": 2}}}), manager="user"
    )
    patch = {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "spec": {"knobs": {"dataloaderWorkers": 3}},
    }
    reply = jobs.access.apply(f"{jobs.path}/pydocs", patch, manager="amdahl-loop", force=True)

    assert reply.status == 422
    assert (
        "knobs.dataloaderWorkers is 3, outside tuning.knobs.dataloaderWorkers [none, 2]; widen one of them"
        in reply.message
    )


def make_policy(**spec: Any) -> Document:
    """A TuningPolicy."""
    return {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TuningPolicy",
        "metadata": {"name": "house"},
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"modes": []}, "spec.modes in body should have at least 1 items"),
        ({"modes": ["Auto", "Auto"]}, 'spec.modes[1]: Duplicate value: "Auto"'),
        ({"modes": ["Turbo"]}, 'spec.modes[0]: Unsupported value: "Turbo"'),
        ({"knobs": {"gpusPerReplica": {"min": 4, "max": 2}}}, "min 4 is above max 2; swap them or drop one"),
        ({"budget": {"deviceHours": "lots"}}, "'lots' is no decimal number; write digits as text"),
        ({"budget": {"parallelTrials": 0}}, "should be greater than or equal to 1"),
    ],
)
def test_a_faulty_policy_is_refused(api_server: Cluster, namespace: str, spec: Document, said: str) -> None:
    """An administrator's typo is refused with the same care."""
    reply = api_server.admin.post(f"{API}/{namespace}/tuningpolicies", make_policy(**spec))

    assert reply.status == 422
    assert said in reply.message


def test_a_policy_is_filled_in(api_server: Cluster, namespace: str) -> None:
    """An empty policy allows everything and says that nothing is paused; it has no status to write."""
    path = f"{API}/{namespace}/tuningpolicies"
    created = api_server.admin.post(path, make_policy())

    assert created.body["spec"] == {"paused": False}
    assert api_server.admin.request("PUT", f"{path}/house/status", created.body).status == 404
