"""Does real Helm install, upgrade and remove the chart on a real API server, and does what it renders hold there?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import make_manifest
from chart.helm import CHART, NAMESPACE, OPERATOR, RELEASE, HelmError, read_values, render, run_helm
from chart.prometheus import fetch_definitions
from chart.release import DEFINITIONS, helm, remove_definitions, uninstall, wait_until_policies_hold
from testbed.cluster import Cluster, wait_for

pytestmark = pytest.mark.slow

CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/amdahl-loop"
TRAINING_JOBS = "/apis/amdahl-loop.io/v1alpha1/namespaces/team-a/trainingjobs"


@pytest.fixture(scope="module")
def monitored(chart_server: Cluster) -> Cluster:
    """The server also knows the kinds of the Prometheus operator."""
    for file in fetch_definitions():
        chart_server.admin.kubectl("apply", "--server-side", "-f", file)
    chart_server.admin.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    return chart_server


@pytest.fixture
def clean(chart_server: Cluster) -> Iterator[Cluster]:
    """Whatever a test installs is gone after it."""
    yield chart_server
    if RELEASE in run_helm("list", "--short", "--namespace", NAMESPACE, kubeconfig=chart_server.admin.kubeconfig):
        uninstall(chart_server)
    remove_definitions(chart_server)


@pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.stem)
def test_the_server_accepts_every_object_to_the_letter(monitored: Cluster, file: Path) -> None:
    """Server-side dry run with strict validation: an unknown or misplaced field of any object is an error."""
    said = run_helm("template", RELEASE, CHART, "--namespace", NAMESPACE, values=read_values(file))
    ran = monitored.admin.try_kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=said
    )
    assert (ran.returncode, ran.stderr.strip()) == (0, "")


def test_every_policy_is_in_force_and_fails_closed(clean: Cluster) -> None:
    """Seven policies; one with a broken expression would have failed the install."""
    helm(clean, "install")
    wait_until_policies_hold(clean)
    policies = clean.admin.get("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies").body["items"]
    assert len([p for p in policies if p["metadata"]["name"].startswith("amdahl-loop-")]) == 7
    assert {p["spec"]["failurePolicy"] for p in policies} == {"Fail"}


def test_install_upgrade_roll_back_uninstall(clean: Cluster) -> None:
    """Each step of a release's life, by the objects that are there after it."""
    helm(clean, "install")
    assert _env(clean)["AMDAHL_LOOP_TRIALS"] == "true"
    clean.admin.kubectl(
        "wait", "--for=condition=Established", *(f"crd/{name}" for name in DEFINITIONS), "--timeout=60s"
    )

    helm(clean, "upgrade", {"trials": {"enabled": False}, "workers": 3})
    assert (_env(clean)["AMDAHL_LOOP_TRIALS"], _env(clean)["AMDAHL_LOOP_WORKERS"]) == ("false", "3")

    with pytest.raises(HelmError, match="watchNamespaces is empty"):
        helm(clean, "upgrade", {"admission": {"enabled": False}})
    helm(clean, "upgrade", {"admission": {"enabled": False}, "watchNamespaces": ["team-a"]})
    assert _names(clean, "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies") == set()
    assert _env(clean)["AMDAHL_LOOP_TRIALS"] == "false"

    run_helm("rollback", RELEASE, "1", "--namespace", NAMESPACE, kubeconfig=clean.admin.kubeconfig)
    assert _env(clean)["AMDAHL_LOOP_TRIALS"] == "true"
    assert len(_names(clean, "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies")) == 7

    run_helm("uninstall", RELEASE, "--namespace", NAMESPACE, kubeconfig=clean.admin.kubeconfig)
    assert clean.admin.get(DEPLOYMENT).status == 404
    for collection in ("rbac.authorization.k8s.io/v1/clusterroles", "rbac.authorization.k8s.io/v1/clusterrolebindings", "scheduling.k8s.io/v1/priorityclasses", "admissionregistration.k8s.io/v1/validatingadmissionpolicies", "admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"):  # fmt: skip
        assert _names(clean, f"/apis/{collection}") == set()


def test_an_uninstall_keeps_definitions_and_jobs(clean: Cluster) -> None:
    """Nothing of the users' is lost, whether or not an operator ran; the same release takes the definitions over again."""
    helm(clean, "install")
    wait_until_policies_hold(clean)
    job = make_manifest() | {"metadata": {"name": "kept"}}
    assert clean.admin.post(TRAINING_JOBS, job).status == 201
    run_helm("uninstall", RELEASE, "--namespace", NAMESPACE, kubeconfig=clean.admin.kubeconfig)
    assert clean.admin.get(f"{TRAINING_JOBS}/kept").status == 200
    helm(clean, "install")
    assert clean.admin.get(f"{TRAINING_JOBS}/kept").status == 200


def test_definitions_go_when_they_are_not_to_be_kept(clean: Cluster) -> None:
    """crds.keep=false removes the definitions, and every object with them."""
    helm(clean, "install", {"crds": {"keep": False}})
    clean.admin.kubectl(
        "wait", "--for=condition=Established", *(f"crd/{name}" for name in DEFINITIONS), "--timeout=60s"
    )
    assert clean.admin.post(TRAINING_JOBS, make_manifest() | {"metadata": {"name": "lost"}}).status == 201
    run_helm("uninstall", RELEASE, "--namespace", NAMESPACE, kubeconfig=clean.admin.kubeconfig)
    wait_for(
        lambda: (
            clean.admin.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{DEFINITIONS[0]}").status == 404
        ),
        60,
        "they are gone",
    )


def test_an_upgrade_brings_new_definitions(clean: Cluster) -> None:
    """The reason why definitions are templates: Helm never upgrades what lies in a chart's crds folder."""
    helm(clean, "install")
    where = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{DEFINITIONS[1]}"
    older = {"spec": {"names": {"kind": "TrainingJob", "plural": "trainingjobs", "shortNames": ["older"]}}}
    assert clean.admin.request("PATCH", where, older, "application/merge-patch+json").status == 200
    helm(clean, "upgrade", None, "--force-conflicts")
    assert clean.admin.get(where).body["spec"]["names"]["shortNames"] != ["older"]


def test_the_operators_pod_passes_the_restricted_standard(clean: Cluster) -> None:
    """The namespace enforces it: the API server takes the operator's pod and the pod of `helm test`."""
    helm(clean, "install")
    template = clean.admin.get(DEPLOYMENT).body["spec"]["template"]
    operator = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": template["spec"]}
    for pod in (operator, render(hooks=True).one("Pod")):
        reply = clean.admin.post(f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All", pod)
        assert reply.status == 201, reply.message


def test_an_administrator_and_a_team_share_one_cluster(clean: Cluster) -> None:
    """The administrator installs the cluster-scoped part and grants the rights; then a team installs the operator.

    The cap on trials is the administrator's: a team may neither make nor lift it.
    """
    capped = {"trials": {"quota": {"hard": {"pods": 4}}}}
    admin_part = {"operator": {"enabled": False}, "namespacedOperators": [{"namespace": "team-a"}]} | capped
    helm(clean, "install", admin_part)
    wait_until_policies_hold(clean)
    quota = "/api/v1/namespaces/team-a/resourcequotas/amdahl-loop-trials"
    assert clean.admin.get(quota).body["spec"]["hard"] == {"pods": "4"}
    team = _team_lead(clean)
    team_part = {"scope": "Namespaced", "admission": {"installedByAdmin": True}, "rbac": {"create": False}}
    run_helm("install", RELEASE, CHART, "--namespace", "team-a", values=team_part, kubeconfig=team)
    operator = clean.service_account("team-a", "amdahl-loop")
    label = {"amdahl-loop.io/job": "x"}
    mine, theirs = (f"/api/v1/namespaces/{namespace}/configmaps" for namespace in ("team-a", "team-b"))
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": label}}
    wait_for(
        lambda: operator.post(f"{mine}?dryRun=All", item).status == 201, 30, "the operator may write where it lives"
    )
    assert operator.post(f"{theirs}?dryRun=All", item).status == 403
    run_helm("uninstall", RELEASE, "--namespace", "team-a", kubeconfig=team)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"crds": {"enabled": False}}, id="the cluster-scoped part"),
        pytest.param({"scope": "Namespaced"}, id="rights that the team does not hold"),
        pytest.param(
            {"scope": "Namespaced", "rbac": {"create": False}, "trials": {"quota": {"hard": {"pods": 4}}}},
            id="a quota, which is the administrator's",
        ),
    ],
)
def test_a_team_cannot_take_more_than_it_has(clean: Cluster, values: dict[str, Any]) -> None:
    """What belongs to the administrator is refused to a team by RBAC, so that the split is more than a convention."""
    helm(clean, "install", {"operator": {"enabled": False}})
    lead = _team_lead(clean)
    with pytest.raises(HelmError, match="forbidden"):
        run_helm("install", "own", CHART, "--namespace", "team-a", values=values, kubeconfig=lead)
    run_helm("uninstall", "own", "--ignore-not-found", "--namespace", "team-a", kubeconfig=lead)


RIGHTS = [
    ("get", "amdahl-loop.io", "trainingjobs", True),
    ("patch", "amdahl-loop.io", "trainingjobs", True),
    ("create", "amdahl-loop.io", "trainingjobs", False),
    ("delete", "amdahl-loop.io", "trainingjobs", False),
    ("delete", "amdahl-loop.io", "experiments", False),
    ("patch", "amdahl-loop.io", "tuningpolicies", False),
    ("create", "batch", "jobs", True),
    ("create", "", "pods", False),
    ("delete", "", "pods", False),
    ("create", "", "pods/exec", False),
    ("get", "", "secrets", False),
    ("list", "", "secrets", False),
    ("delete", "", "services", False),
    ("list", "", "nodes", False),
    ("list", "", "namespaces", False),
    ("create", "", "serviceaccounts/token", False),
    ("patch", "rbac.authorization.k8s.io", "roles", False),
    ("impersonate", "", "users", False),
]


@pytest.mark.parametrize(
    ("values", "namespace", "has_rights"),
    [
        ({}, "team-a", True),
        ({"watchNamespaces": ["team-a"]}, "team-a", True),
        ({"watchNamespaces": ["team-a"]}, "team-b", False),
        ({"watchNamespaces": ["team-a"]}, NAMESPACE, False),
        ({"scope": "Namespaced"}, NAMESPACE, True),
        ({"scope": "Namespaced"}, "team-a", False),
        ({"scope": "Namespaced", "watchNamespaces": ["team-a"]}, "team-a", True),
        ({"scope": "Namespaced", "watchNamespaces": ["team-a"]}, NAMESPACE, False),
    ],
)
def test_the_server_grants_the_operator_this_much(
    clean: Cluster, values: dict[str, Any], namespace: str, has_rights: bool
) -> None:
    """The API server's own answer for each verb, in namespaces that are looked after and in others."""
    helm(clean, "install", {"crds": {"enabled": False}} | values)
    answers = [
        (verb, group, resource, _may(clean, namespace, verb, group, resource)) for verb, group, resource, _ in RIGHTS
    ]
    expected = [(verb, group, resource, allowed and has_rights) for verb, group, resource, allowed in RIGHTS]
    if expected != answers:  # the authorizer learns of new roles a moment later
        wait_for(lambda: _may(clean, namespace, "create", "batch", "jobs") is has_rights, 30, "the roles are in force")
        answers = [
            (verb, group, resource, _may(clean, namespace, verb, group, resource))
            for verb, group, resource, _ in RIGHTS
        ]
    assert answers == expected


def _may(cluster: Cluster, namespace: str, verb: str, group: str, resource: str) -> bool:
    plural, _, subresource = resource.partition("/")
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": plural, "subresource": subresource}
    groups = ["system:serviceaccounts", "system:authenticated"]
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": OPERATOR, "groups": groups, "resourceAttributes": attributes},
    }
    reply = cluster.admin.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(reply.body["status"]["allowed"])


def _team_lead(cluster: Cluster) -> Path:
    """Who may do in team-a what the role `admin` allows there, and nothing elsewhere: no right to our kinds, so none to grant."""
    where = "/apis/rbac.authorization.k8s.io/v1/namespaces/team-a"
    everything = ["get", "list", "watch", "create", "update", "patch", "delete"]
    resources = {
        "": ["configmaps", "events", "pods", "secrets", "serviceaccounts", "services", "persistentvolumeclaims"],
        "apps": ["deployments"],
        "batch": ["jobs"],
        "networking.k8s.io": ["networkpolicies"],
        "rbac.authorization.k8s.io": ["roles", "rolebindings"],
    }
    rules = [{"apiGroups": [group], "resources": plurals, "verbs": everything} for group, plurals in resources.items()]
    subject = {"kind": "User", "name": "lead", "apiGroup": "rbac.authorization.k8s.io"}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "lead"}
    role = cluster.admin.post(f"{where}/roles", {"metadata": {"name": "lead"}, "rules": rules})
    bound = cluster.admin.post(
        f"{where}/rolebindings", {"metadata": {"name": "lead"}, "roleRef": reference, "subjects": [subject]}
    )
    assert {role.status, bound.status} <= {201, 409}, role.message + bound.message
    lead = cluster.user("lead")
    wait_for(lambda: lead.get("/api/v1/namespaces/team-a/secrets").status == 200, 30, "the role is in force")
    return lead.kubeconfig


def _env(cluster: Cluster) -> dict[str, str]:
    containers = cluster.admin.get(DEPLOYMENT).body["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable.get("value", "") for variable in containers[0]["env"]}


def _names(cluster: Cluster, collection: str) -> set[str]:
    """Names of our objects in a collection of the cluster."""
    items = cluster.admin.get(collection).body["items"]
    return {item["metadata"]["name"] for item in items if item["metadata"]["name"].startswith("amdahl-loop")}
