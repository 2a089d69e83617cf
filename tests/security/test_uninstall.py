"""What does an uninstall leave, with an experiment running and the operator dead? Training, and nothing that hangs."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from chart.helm import CHART, NAMESPACE, RELEASE, run_helm
from chart.release import DEFINITIONS, helm, wait_until_policies_hold
from cluster_operator import Object, operator, read
from fakes import Truth, loader_bound
from hollow import HollowNodes
from security.scene import ACCOUNT, ENABLED, TIMEOUT_S, VALUES, apply, training_job
from testbed.cluster import Cluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

INSTALL = CHART.parents[1] / "docs" / "install.md"


class BusyNodes(HollowNodes):
    """Nodes on which no block ever ends."""

    def _run_block(self, pod: Object) -> None:
        self._report(pod, "Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "127.0.0.2")


def documented(heading: str) -> list[str]:
    """The commands that docs/install.md gives under a heading, without their comments."""
    section = INSTALL.read_text().partition(f"## {heading}")[2].partition("\n## ")[0]
    return [
        line.partition("  #")[0].removeprefix("$ ").strip() for line in section.splitlines() if line.startswith("$ ")
    ]


def run_as_written(cluster: Cluster, command: str) -> str:
    """A command of the documentation, by its user's shell."""
    words = command.replace("kubectl ", f"{cluster.admin.kubectl_binary} --kubeconfig {cluster.admin.kubeconfig} ")
    ran = subprocess.run(words, shell=True, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ran.returncode == 0, (command, ran.stderr)
    return ran.stdout


@pytest.fixture
def uninstalled(secured: Cluster, tmp_path: Path) -> Iterator[tuple[Cluster, str, BusyNodes]]:
    """An experiment runs, the operator is killed, the release is removed; all is put back for other tests."""
    namespace, log = secured.create_namespace("left", ENABLED), tmp_path / "operator.log"
    account = secured.service_account(NAMESPACE, ACCOUNT)
    apply(secured.admin, namespace, training_job("waits"))
    with BusyNodes(secured.admin, Truth(phases_s=loader_bound), prefix="busy") as nodes:
        with operator(account.kubeconfig, log) as process:
            wait_for(lambda: len(running_pods(secured, namespace)) == 2, TIMEOUT_S, "a block runs beside the job")
            process.kill()
        run_helm("uninstall", RELEASE, "--namespace", NAMESPACE, kubeconfig=secured.admin.kubeconfig)
        yield secured, namespace, nodes
    secured.delete_namespace(namespace)
    helm(secured, "install", VALUES)
    wait_until_policies_hold(secured)


def running_pods(cluster: Cluster, namespace: str) -> list[str]:
    """Names of the pods that run, less their random ends."""
    pods = read(cluster, namespace, "pods")["items"]
    running = [
        pod for pod in pods if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
    ]
    return sorted(pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] for pod in running)


def ours(cluster: Cluster) -> list[str]:
    """Everything in the cluster that bears our name or labels, but for what belongs to running training."""
    kinds = "crd,validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings,priorityclasses,configmaps"
    found = json.loads(cluster.admin.kubectl("get", kinds, "--all-namespaces", "-o", "json"))["items"]
    named = [f"{item['kind']} {item['metadata']['name']}" for item in found]
    return [name for name in named if re.search(r"amdahl(-loop|-probe)", name)]


def test_training_goes_on_and_the_rest_is_removed_by_one_command(uninstalled: tuple[Cluster, str, BusyNodes]) -> None:
    """Job and trial run on, every object can be listed as documented, and the documented commands leave training alone."""
    cluster, namespace, _ = uninstalled
    assert running_pods(cluster, namespace)[-1] == "waits-r0"
    (block,) = [
        j for j in read(cluster, namespace, "jobs")["items"] if "amdahl-loop.io/experiment" in j["metadata"]["labels"]
    ]
    assert block["spec"]["activeDeadlineSeconds"] > 0

    listing, (trials, keep, everything) = documented("Uninstall")[1:-3], documented("Uninstall")[-3:]
    listed = "\n".join(run_as_written(cluster, command) for command in listing)
    for name in ("waits", "waits-r0", "waits-ranks", "waits-knobs", "amdahl-probe-", block["metadata"]["name"]):
        assert name in listed, listed

    run_as_written(cluster, trials)
    wait_for(lambda: running_pods(cluster, namespace) == ["waits-r0"], TIMEOUT_S, "the trial is gone")
    run_as_written(cluster, keep)
    run_as_written(cluster, everything)
    wait_for(lambda: ours(cluster) == [], TIMEOUT_S, "nothing of ours is left")
    assert running_pods(cluster, namespace) == ["waits-r0"]
    assert [item["metadata"]["name"] for item in read(cluster, namespace, "jobs")["items"]] == ["waits-r0"]


def test_one_command_removes_everything(uninstalled: tuple[Cluster, str, BusyNodes]) -> None:
    """The last of the documented commands alone: definitions, jobs, pods, values and probes go; nothing hangs on a finalizer of ours."""
    cluster, namespace, _ = uninstalled
    run_as_written(cluster, documented("Uninstall")[-1])
    wait_for(
        lambda: all(
            cluster.admin.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}").status == 404
            for name in DEFINITIONS
        ),
        TIMEOUT_S,
        "the definitions are gone",
    )
    wait_for(lambda: running_pods(cluster, namespace) == [], TIMEOUT_S, "pods are collected")
    wait_for(lambda: read(cluster, namespace, "services")["items"] == [], TIMEOUT_S, "services are collected")
    assert ours(cluster) == []
