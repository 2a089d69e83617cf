"""Is the testbed's API server a real one? What later suites lean on is shown once here."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed import processes, starter
from testbed.audit import read_requests
from testbed.cluster import Cluster, plan_for_session, wait_for
from testbed.layout import Folder, Plan, read_process

pytestmark = pytest.mark.slow

GROUP = "testbed.amdahl-loop.io"
CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"widgets.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {"size": {"type": "integer"}},
                                "x-kubernetes-validations": [
                                    {"rule": "self.size < 10", "message": "size must be below 10"}
                                ],
                            }
                        },
                    }
                },
            }
        ],
    },
}


@pytest.fixture(scope="module")
def widgets(api_server: Cluster) -> None:
    """The CRD is established, and the server serves it."""
    api_server.admin.kubectl("apply", "--server-side", "-f", "-", stdin=CRD)
    api_server.admin.kubectl("wait", "--for=condition=Established", f"crd/widgets.{GROUP}", "--timeout=30s")
    wait_for(lambda: api_server.admin.get(f"/apis/{GROUP}/v1/widgets").status == 200, 30, "the server lists widgets")


def widget(namespace: str, size: int) -> dict[str, Any]:
    """A valid widget called `one`, unless it is too big."""
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Widget",
        "metadata": {"name": "one", "namespace": namespace},
        "spec": {"size": size},
    }


def path_of(namespace: str) -> str:
    """Where the widget called `one` lives."""
    return f"/apis/{GROUP}/v1/namespaces/{namespace}/widgets/one"


def test_a_cel_rule_refuses_with_its_own_message(api_server: Cluster, api_namespace: str, widgets: None) -> None:
    """A rule of the CRD is judged by the server itself, and its message is what the user reads."""
    ran = api_server.admin.try_kubectl("apply", "-f", "-", stdin=widget(api_namespace, 11))
    assert ran.returncode == 1
    assert "size must be below 10" in ran.stderr


def test_a_second_field_manager_meets_a_conflict_until_it_forces(
    api_server: Cluster, api_namespace: str, widgets: None
) -> None:
    """Server-side apply: 409 naming the owner of the field; with force the field changes hands."""
    path = path_of(api_namespace)
    assert api_server.admin.apply(path, widget(api_namespace, 1), manager="first").status == 201
    refused = api_server.admin.apply(path, widget(api_namespace, 2), manager="second")
    assert refused.status == 409
    assert [cause["reason"] for cause in refused.body["details"]["causes"]] == ["FieldManagerConflict"]
    assert '"first"' in refused.message
    forced = api_server.admin.apply(path, widget(api_namespace, 2), manager="second", force=True)
    assert (forced.status, forced.body["spec"]["size"]) == (200, 2)


def test_users_have_the_rights_that_are_bound_to_them_and_no_others(api_server: Cluster, api_namespace: str) -> None:
    """A certificate's group is bound to a role in one namespace: reading works there, writing and other namespaces do not."""
    alice = api_server.user("alice", ["viewers"])
    pods = f"/api/v1/namespaces/{api_namespace}/pods"
    assert alice.get(pods).status == 403
    # Not the aggregated `view`: the controller manager fills that one, and there is none here.
    api_server.admin.kubectl(
        "create", "role", "viewers", "--verb=get,list", "--resource=pods", "--namespace", api_namespace
    )
    api_server.admin.kubectl(
        "create", "rolebinding", "viewers", "--role=viewers", "--group=viewers", "--namespace", api_namespace
    )
    wait_for(lambda: alice.get(pods).status == 200, 30, "the binding is in force")
    assert alice.post(pods, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}).status == 403
    assert alice.get("/api/v1/namespaces/default/pods").status == 403
    assert '"alice" cannot create' in alice.try_kubectl("create", "configmap", "c", "--namespace", api_namespace).stderr


def test_a_service_account_is_known_by_its_token(api_server: Cluster, api_namespace: str) -> None:
    """The token helper yields the account's own name, with the account's rights: none."""
    account = api_server.service_account(api_namespace, "default")
    who = account.kubectl("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
    assert who == f"system:serviceaccount:{api_namespace}:default"
    assert account.get(f"/api/v1/namespaces/{api_namespace}/secrets").status == 403


def test_the_audit_log_holds_every_request_with_its_user(api_server: Cluster, api_namespace: str) -> None:
    """What a user asked for can be compared with what the user was granted: refused requests are there too."""
    bob = api_server.user("bob")
    assert bob.get(f"/api/v1/namespaces/{api_namespace}/configmaps/c").status == 403
    assert (
        bob.request(
            "PATCH", f"/apis/batch/v1/namespaces/{api_namespace}/jobs/j/status", {}, "application/merge-patch+json"
        ).status
        == 403
    )
    wait_for(lambda: len(list(read_requests(api_server.audit_log, "bob"))) == 2, 30, "both requests are in the log")
    assert [
        (request.right, request.namespace, request.status) for request in read_requests(api_server.audit_log, "bob")
    ] == [
        (("get", "", "configmaps"), api_namespace, 403),
        (("patch", "batch", "jobs/status"), api_namespace, 403),
    ]


def test_an_admission_policy_decides_by_what_the_user_may_do(
    api_server: Cluster, api_namespace: str, widgets: None
) -> None:
    """ValidatingAdmissionPolicy with the authorizer: who may create widgets but not jobs is refused, who may do both is let through."""
    rule = f"authorizer.group('batch').resource('jobs').namespace('{api_namespace}').check('create').allowed()"
    match = {
        "resourceRules": [
            {"apiGroups": [GROUP], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["widgets"]}
        ]
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": api_namespace}}
    policy = {
        "failurePolicy": "Fail",
        "matchConstraints": match,
        "validations": [{"expression": rule, "message": "may not create jobs"}],
    }
    binding = {
        "policyName": "jobs-too",
        "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": selector},
    }
    kinds = (("ValidatingAdmissionPolicy", policy), ("ValidatingAdmissionPolicyBinding", binding))
    documents = [
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "jobs-too"}, "spec": spec}
        for kind, spec in kinds
    ]
    api_server.admin.kubectl("apply", "-f", "-", stdin=documents)
    carol = api_server.user("carol")
    api_server.admin.kubectl(
        "create", "role", "widgets", "--verb=create,delete", f"--resource=widgets.{GROUP}", "--namespace", api_namespace
    )
    api_server.admin.kubectl(
        "create", "rolebinding", "widgets", "--role=widgets", "--user=carol", "--namespace", api_namespace
    )

    def create() -> str:
        reply = carol.post(path_of(api_namespace).rpartition("/")[0], widget(api_namespace, 1))
        if reply.status == 201:
            carol.delete(path_of(api_namespace))
        return "created" if reply.status == 201 else reply.message

    wait_for(lambda: "may not create jobs" in create(), 60, "the policy is in force")
    api_server.admin.kubectl(
        "create", "role", "jobs", "--verb=create", "--resource=jobs.batch", "--namespace", api_namespace
    )
    api_server.admin.kubectl(
        "create", "rolebinding", "jobs", "--role=jobs", "--user=carol", "--namespace", api_namespace
    )
    wait_for(lambda: create() == "created", 60, "the right to create jobs is seen")
    api_server.admin.kubectl("delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", "jobs-too")


def test_the_api_server_can_be_killed_and_the_store_put_back(
    api_server: Cluster, api_namespace: str, tmp_path: Path
) -> None:
    """Faults for the crash sweep: a killed API server comes back with its data; an older store comes back without what was written later."""
    maps = f"/api/v1/namespaces/{api_namespace}/configmaps"
    api_server.admin.post(maps, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "before"}})
    api_server.kill("kube-apiserver")
    api_server.start("kube-apiserver")
    assert api_server.admin.get(f"{maps}/before").status == 200
    api_server.snapshot_etcd(tmp_path / "snapshot")
    api_server.admin.post(maps, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "after"}})
    api_server.restore_etcd(tmp_path / "snapshot")
    assert (api_server.admin.get(f"{maps}/before").status, api_server.admin.get(f"{maps}/after").status) == (200, 404)


KILLED_STARTER = """
import os, signal, sys
from pathlib import Path
from testbed import starter
from testbed.cluster import plan_for_session
from testbed.layout import Folder
starter.up(Folder(Path(sys.argv[1])), plan_for_session(api_only=True))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_servers_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    """SIGKILL of a test session leaves no server behind: its keeper sees the end and removes everything."""
    state = tmp_path / "s"
    ran = subprocess.run(
        [sys.executable, "-c", KILLED_STARTER, state],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        check=False,
    )
    assert ran.returncode == -9, ran.stderr
    wait_for(lambda: "down" in (state / "logs" / "keeper.log").read_text(), 60, "the keeper has cleaned up")
    assert not list((state / "processes").iterdir())
    assert not (state / "etcd").exists()


def test_a_cluster_ends_when_its_time_is_over(tmp_path: Path) -> None:
    """Nobody has to remember to take it down."""
    folder = Folder(tmp_path / "s")
    starter.up(folder, Plan(api_only=True, nodes=0, time_limit_s=0.1, owner=None))
    wait_for(lambda: "its time is over" in folder.log("keeper").read_text(), 60, "the keeper has ended the cluster")
    wait_for(lambda: not folder.kubeconfig.exists(), 60, "everything is removed")
    assert starter.status(folder) is None


def test_servers_end_with_a_keeper_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the keeper ends its servers by the kernel's hand; taking the cluster down then removes the rest."""
    folder = Folder(tmp_path / "s")
    facts = starter.up(folder, plan_for_session(api_only=True))
    servers = [known for known in map(read_process, folder.processes.glob("*.json")) if known is not None]
    assert len(servers) == 2
    os.kill(facts.keeper.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(processes.is_alive, servers)), 60, "the servers have ended")
    starter.down(folder)
    assert not list(folder.processes.iterdir())
    assert not folder.etcd.exists()
