"""Does the operator use every right that the chart grants, and need none that it does not? The API server's audit log says.

The real operator under its own account lives through everything that a right is for: a win, a roll-forward of the spec,
a revert by the owner, a pause, a new template, a job deleted in the middle of an experiment, and a probe of an older
version. The same in both scopes.
"""

from pathlib import Path

import pytest

from chart.helm import CHART, NAMESPACE, run_helm
from cluster_operator import Object, read, wait_for_condition
from fakes import Truth, loader_bound
from hollow import HollowNodes
from security.rights import ROLE, granted_rights, read_uses, render_table, sum_up
from security.scene import ENABLED, TEAM, TIMEOUT_S, apply, merge, own_operator, training_job, training_path
from testbed.audit import read_requests
from testbed.cluster import Cluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

CLUSTER_ROLE = f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{ROLE}"
OLD_PROBE: Object = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "amdahl-probe-0000000000", "labels": {"amdahl-loop.io/probe": "0000000000"}},
    "immutable": True,
}
CLAIM = {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}}]}


def knob(cluster: Cluster, namespace: str) -> int:
    """The declared value."""
    return int(read(cluster, namespace, "trainingjobs", "waits")["spec"]["knobs"]["dataloaderWorkers"])


def names(cluster: Cluster, namespace: str, kind: str) -> list[str]:
    """Names of the objects of a kind."""
    return [item["metadata"]["name"] for item in read(cluster, namespace, kind)["items"]]


def live_through_everything(plane: Cluster, namespace: str, home: str, log: Path, **settings: str) -> None:
    """One job's life, with everything that an operator ever asks the server for."""
    admin, where = plane.admin, training_path(namespace, "waits")
    plane.share_folder(namespace, "data", log.parent)
    account = plane.service_account(home, "amdahl-loop")
    wait_for(
        lambda: account.post(f"/api/v1/namespaces/{namespace}/configmaps", OLD_PROBE).status in (201, 409),
        TIMEOUT_S,
        "the account may write where it acts",
    )
    apply(admin, namespace, training_job("waits", CLAIM))
    with (
        HollowNodes(admin, Truth(phases_s=loader_bound), prefix=home),
        own_operator(plane, log, home, **settings),
    ):
        wait_for_condition(plane, namespace, "waits", "Tuned", "True", log, TIMEOUT_S)
        wait_for(lambda: knob(plane, namespace) == 3, TIMEOUT_S, "the spec is patched")
        assert OLD_PROBE["metadata"]["name"] not in names(plane, namespace, "configmaps")

        assert merge(admin, where, {"spec": {"suspend": True}}).status == 200
        wait_for_condition(plane, namespace, "waits", "Suspended", "True", log, TIMEOUT_S)
        assert merge(admin, where, {"spec": {"suspend": False}}).status == 200
        wait_for_condition(plane, namespace, "waits", "Ready", "True", log, TIMEOUT_S)
        assert names(plane, namespace, "jobs") == ["waits-r1"], "resumed with the value that it won"

        assert merge(admin, where, {"spec": {"knobs": {"dataloaderWorkers": 0}}}).status == 200
        wait_for(
            lambda: "SpecReverted" in [event["reason"] for event in read(plane, namespace, "events")["items"]],
            TIMEOUT_S,
            "the owner's revert is told",
        )

        changed = training_job("waits", CLAIM, image="example/train:2")
        assert merge(admin, where, {"spec": {"template": changed["spec"]["template"]}}).status == 200
        wait_for(lambda: names(plane, namespace, "jobs") == ["waits-r2"], TIMEOUT_S, "the new program is started")

        queued = training_job("leaves", image="example/other:1")
        queued["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "fast"}
        apply(admin, namespace, queued)
        wait_for(lambda: len(names(plane, namespace, "experiments")) == 2, TIMEOUT_S, "another job is tried")
        admin.kubectl("delete", "trainingjob", "leaves", "--namespace", namespace, "--wait=false")
        wait_for(
            lambda: all(
                "closedAt" in item.get("status", {}) for item in read(plane, namespace, "experiments")["items"]
            ),
            TIMEOUT_S,
            "the experiments of a job that is gone are closed",
        )


def check_rights(plane: Cluster, user: str) -> None:
    """Granted and used are the same set; nothing was forbidden, and nothing was let through by another role."""
    granted = granted_rights(plane.admin, CLUSTER_ROLE)
    requests = read_uses(plane.audit_log, user)
    uses = sum_up(requests)
    table = render_table(granted, uses)
    print(table)
    forbidden = {
        (r.verb, r.group, r.resource, r.namespace) for r in read_requests(plane.audit_log, user) if r.is_forbidden
    }
    assert forbidden == set(), table
    assert {use.right for use in uses} == granted, table
    assert [request for request in requests if ROLE not in request.granted_by] == []


def test_the_operator_of_a_cluster_uses_what_it_is_granted_and_no_more(secured: Cluster, tmp_path: Path) -> None:
    """Scope Cluster: one operator for every enabled namespace. It watches the cluster and writes in namespaces."""
    namespace = secured.create_namespace("audited", ENABLED)
    live_through_everything(secured, namespace, NAMESPACE, tmp_path / "operator.log")
    check_rights(secured, f"system:serviceaccount:{NAMESPACE}:amdahl-loop")
    secured.delete_namespace(namespace)


def test_the_operator_of_a_team_uses_what_it_is_granted_and_asks_nothing_of_the_cluster(
    secured: Cluster, tmp_path: Path
) -> None:
    """Scope Namespaced: the same rights by a binding in the team's namespace; no request goes beyond it."""
    values = {"scope": "Namespaced", "rbac": {"create": False}, "admission": {"installedByAdmin": True}}
    run_helm("install", "amdahl-loop", CHART, "--namespace", TEAM, values=values, kubeconfig=secured.admin.kubeconfig)
    live_through_everything(secured, TEAM, TEAM, tmp_path / "operator.log", NAMESPACES=TEAM)
    user = f"system:serviceaccount:{TEAM}:amdahl-loop"
    check_rights(secured, user)
    assert {request.namespace for request in read_uses(secured.audit_log, user)} == {TEAM}
    run_helm("uninstall", "amdahl-loop", "--namespace", TEAM, kubeconfig=secured.admin.kubeconfig)
