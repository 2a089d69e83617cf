"""Can a tenant read, influence or use what is another's, or get more from the operator than its own rights give?

Two teams share a cluster and one operator. Each user holds one of the cluster's own roles in one namespace.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from amdahl_loop.domain.api.plans import write_plan
from chart.helm import NAMESPACE
from cluster_operator import Object, condition, read, wait_for_condition
from fakes import Truth, loader_bound
from hollow import HollowNodes
from judge_builders import make_plan
from security.scene import ACCOUNT, ENABLED, TIMEOUT_S, apply, merge, own_operator, people, training_job
from testbed.access import Access
from testbed.cluster import Cluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

OURS = "/apis/amdahl-loop.io/v1alpha1"


class Tenants(NamedTuple):
    """Two teams: a namespace each, and a user who may edit there."""

    a: str
    b: str
    alice: Access
    bob: Access


@pytest.fixture(scope="module")
def tenants(secured: Cluster) -> Iterator[Tenants]:
    """Alice in one namespace, Bob in another."""
    a, b = (secured.create_namespace(f"tenant-{name}", ENABLED) for name in "ab")
    yield Tenants(a, b, people(secured, a, "edit", "alice"), people(secured, b, "edit", "bob"))
    for name in (a, b):
        secured.delete_namespace(name)


def may(access: Access, namespace: str, verb: str, resource: str, group: str = "amdahl-loop.io") -> bool:
    """The server's own answer."""
    plural, _, part = resource.partition("/")
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": plural, "subresource": part}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    return bool(access.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).body["status"]["allowed"])


READS, WRITES = ("get", "list", "watch"), ("create", "update", "patch", "delete", "deletecollection")
HELD = {
    # resource: what view, edit and admin may do with it
    "trainingjobs": (READS, READS + WRITES, READS + WRITES),
    "trainingjobs/status": ((), (), ()),
    "experiments": (READS, READS, (*READS, "delete")),
    "experiments/status": ((), (), ()),
    "tuningpolicies": (READS, READS, READS + WRITES),
}


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_a_role_gives_this_and_no_more(secured: Cluster, tenants: Tenants, role: str) -> None:
    """Jobs are their editors', caps their administrators', the ledger and every status the operator's alone; nothing reaches next door.

    Of the ledger an administrator may delete an entry, one at a time, and nobody else: what it spent goes with it.
    """
    user = people(secured, tenants.a, role, f"someone-{role}")
    wait_for(
        lambda: may(user, tenants.a, "patch", "tuningpolicies") is (role == "admin"),
        TIMEOUT_S,
        "the roles are aggregated",
    )
    for resource, held in HELD.items():
        verbs = {verb for verb in READS + WRITES if may(user, tenants.a, verb, resource)}
        assert verbs == set(held[("view", "edit", "admin").index(role)]), resource
        assert [verb for verb in READS + WRITES if may(user, tenants.b, verb, resource)] == []


def test_real_requests_are_refused_as_the_reviews_say(tenants: Tenants) -> None:
    """By their status: 403 for the ledger, for caps and for statuses, in the own namespace as well."""
    a, b, alice, bob = tenants
    policy = {"apiVersion": "amdahl-loop.io/v1alpha1", "kind": "TuningPolicy", "metadata": {"name": "p"}, "spec": {}}
    refused = [
        bob.get(f"{OURS}/namespaces/{a}/trainingjobs"),
        bob.get(f"{OURS}/namespaces/{a}/experiments"),
        bob.get(f"{OURS}/trainingjobs"),
        bob.get(f"/api/v1/namespaces/{a}/configmaps"),
        bob.get(f"/apis/batch/v1/namespaces/{a}/jobs"),
        bob.get(f"/apis/events.k8s.io/v1/namespaces/{a}/events"),
        bob.post(f"{OURS}/namespaces/{a}/trainingjobs", training_job("mine")),
        alice.post(f"{OURS}/namespaces/{a}/tuningpolicies", policy),
        alice.request(
            "PATCH",
            f"{OURS}/namespaces/{a}/trainingjobs/x/status",
            {"status": {"observedGeneration": 1}},
            "application/merge-patch+json",
        ),
        alice.delete(f"{OURS}/namespaces/{a}/experiments"),
        alice.delete(f"{OURS}/namespaces/{a}/experiments/x"),
    ]
    assert [reply.status for reply in refused] == [403] * len(refused)
    assert alice.get(f"{OURS}/namespaces/{a}/experiments").status == 200
    assert bob.get(f"{OURS}/namespaces/{b}/experiments").status == 200


def test_an_administrator_of_a_namespace_deletes_an_experiment(secured: Cluster, tenants: Tenants) -> None:
    """As conditions ask for it; its editors may not, nor may the administrator next door, nor change it."""
    operator = secured.service_account(NAMESPACE, ACCOUNT)
    where, plan = f"{OURS}/namespaces/{tenants.a}/experiments", write_plan(make_plan())
    name = plan["metadata"]["name"]
    assert operator.post(where, plan).status == 201
    admin, stranger = (people(secured, at, "admin", f"admin-of-{at}") for at in (tenants.a, tenants.b))
    wait_for(lambda: may(admin, tenants.a, "delete", "experiments"), TIMEOUT_S, "the roles are aggregated")
    refused = [
        tenants.alice.delete(f"{where}/{name}"),
        stranger.delete(f"{where}/{name}"),
        admin.delete(where),
        merge(admin, f"{where}/{name}", {"metadata": {"labels": {"amdahl-loop.io/closed": "true"}}}),
    ]
    assert [reply.status for reply in refused] == [403] * len(refused)
    assert admin.delete(f"{where}/{name}").status == 200


def test_what_one_team_has_learned_stays_with_it(secured: Cluster, tenants: Tenants, tmp_path: Path) -> None:
    """A win of the family is the first idea in its own namespace, and unknown next door, to the very same program.

    Nothing that the operator writes for Bob names anything of Alice's.
    """
    a, b, alice, bob = tenants
    log = tmp_path / "operator.log"
    with HollowNodes(secured.admin, Truth(phases_s=loader_bound), prefix="tenants"), own_operator(secured, log):
        apply(alice, a, training_job("aurora"))
        wait_for_condition(secured, a, "aurora", "Tuned", "True", log, TIMEOUT_S)
        apply(alice, a, training_job("borealis", image="example/train:2"))
        apply(bob, b, training_job("cassini"))
        wait_for_condition(secured, a, "borealis", "Tuned", "True", log, TIMEOUT_S)
        wait_for_condition(secured, b, "cassini", "Tuned", "True", log, TIMEOUT_S)
    sources = {
        item["spec"]["job"]: item["spec"]["hypothesis"]["source"]
        for namespace in (a, b)
        for item in read(secured, namespace, "experiments")["items"]
    }
    assert sources == {"aurora": "rule", "borealis": "prior", "cassini": "rule"}
    for kind in ("trainingjobs", "experiments", "configmaps", "jobs", "events"):
        text = str(read(secured, b, kind)["items"])
        assert not [word for word in (a, "aurora", "borealis-r") if word in text], kind


POWERS: dict[str, tuple[dict[str, str], Object, Object, str]] = {
    "the namespace takes restricted pods only": (
        {"pod-security.kubernetes.io/enforce": "restricted"},
        {"hostNetwork": True},
        {},
        "violates PodSecurity",
    ),
    "the namespace takes no privileged pods": (
        {"pod-security.kubernetes.io/enforce": "baseline"},
        {},
        {"securityContext": {"privileged": True}},
        "violates PodSecurity",
    ),
    "the namespace has no room": ({}, {}, {"resources": {"requests": {"cpu": "8"}}}, "exceeded quota"),
}


@pytest.mark.parametrize("case", POWERS)
def test_the_operator_makes_no_pod_that_its_owner_could_not(secured: Cluster, tmp_path: Path, case: str) -> None:
    """Pod security and quota bind the running job's pods as they bind the owner's own; the job says what it waits for."""
    labels, pod, trainer, why = POWERS[case]
    namespace, log = secured.create_namespace("powers", ENABLED | labels), tmp_path / "operator.log"
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q"},
        "spec": {"hard": {"requests.cpu": "4"}},
    }
    apply(secured.admin, namespace, quota)
    user = people(secured, namespace, "edit", f"owner-{namespace}")
    job = training_job("greedy", pod, **({"resources": {"requests": {"cpu": "1"}}} | trainer))
    own_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own"}, "spec": job["spec"]["template"]["spec"]}
    wait_for(
        lambda: "hard" in read(secured, namespace, "resourcequotas", "q").get("status", {}),
        TIMEOUT_S,
        "the quota is counted",
    )
    refused = user.post(f"/api/v1/namespaces/{namespace}/pods", own_pod)
    assert (refused.status, why in refused.message) == (403, True), refused.message
    with HollowNodes(secured.admin, Truth(phases_s=loader_bound), prefix="powers"), own_operator(secured, log):
        apply(user, namespace, job)
        events: list[Any] = []

        def is_refused() -> bool:
            events[:] = read(secured, namespace, "events")["items"]
            return any(event["reason"] == "FailedCreate" and why in event["message"] for event in events)

        wait_for(is_refused, TIMEOUT_S, "the server refuses the job's pods")
        wait_for(
            lambda: condition(read(secured, namespace, "trainingjobs", "greedy"), "Ready").get("status") == "False",
            TIMEOUT_S,
            "the job says that it is not ready",
        )
        assert read(secured, namespace, "pods")["items"] == []
        assert read(secured, namespace, "experiments")["items"] == []
    secured.delete_namespace(namespace)
