"""What do the tests of security start from? The chart in force, the operator under its own account, and jobs as their owners write them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chart.helm import NAMESPACE
from cluster_operator import operator
from testbed.access import Access, Reply
from testbed.cluster import Cluster, wait_for

TEAM = "team-a"
"""A namespace whose team runs an operator of its own."""
ACCOUNT = "amdahl-loop"
VALUES = {"namespacedOperators": [{"namespace": TEAM}]}
ENABLED = {"amdahl-loop.io/enabled": "true"}
TIMEOUT_S = 1200.0
"""A bound on hanging."""

Object = dict[str, Any]


def training_job(
    name: str, pod: Mapping[str, Any] | None = None, tuning: Mapping[str, Any] | None = None, **trainer: Any
) -> Object:
    """A TrainingJob as a user applies it, short of workers; further fields of its pod, its tuning and its trainer."""
    container = {"name": "trainer", "image": "example/train:1", "command": ["python", "train.py"]} | trainer
    return {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "knobs": {"dataloaderWorkers": 0},
            "template": {"spec": {"containers": [container]} | dict(pod or {})},
            "tuning": {"profile": "quick", "budget": {"deviceHours": "100"}} | dict(tuning or {}),
        },
    }


def apply(access: Access, namespace: str, *objects: Object) -> None:
    """Apply objects as their owner does."""
    access.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=list(objects))


def merge(access: Access, path: str, change: Object) -> Reply:
    """A merge patch."""
    return access.request("PATCH", path, change, "application/merge-patch+json")


def training_path(namespace: str, name: str = "", part: str = "") -> str:
    """Where TrainingJobs live."""
    path = f"/apis/amdahl-loop.io/v1alpha1/namespaces/{namespace}/trainingjobs"
    return "/".join([path, *([name] if name else []), *([part] if part else [])])


@contextmanager
def own_operator(cluster: Cluster, log: Path, home: str = NAMESPACE, **settings: str) -> Iterator[Access]:
    """The operator's process under the account that the chart made in `home`, with that account's rights and no more."""
    account = cluster.service_account(home, ACCOUNT)
    with operator(account.kubeconfig, log, **settings) as process:
        yield account
        assert process.poll() is None, log.read_text()[-4000:]


def people(cluster: Cluster, namespace: str, role: str, user: str) -> Access:
    """A user who holds one of the cluster's own roles (view, edit, admin) in one namespace and nothing elsewhere."""
    cluster.admin.kubectl(
        "create", "rolebinding", f"{user}-{role}", f"--clusterrole={role}", f"--user={user}", "--namespace", namespace
    )
    access = cluster.user(user)
    wait_for(
        lambda: access.get(training_path(namespace)).status == 200,
        TIMEOUT_S,
        f"{user} holds the role {role} in {namespace}",
    )
    return access
