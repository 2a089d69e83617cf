"""The steps of a release's life on a server: install or upgrade, wait until its policies hold, remove it all."""

from chart.helm import CHART, NAMESPACE, RELEASE, Values, run_helm
from testbed.cluster import Cluster, wait_for

DEFINITIONS = tuple(f"{plural}.amdahl-loop.io" for plural in ("experiments", "trainingjobs", "tuningpolicies"))


def helm(cluster: Cluster, verb: str, values: Values | None = None, *more: str) -> str:
    """Install or upgrade the release."""
    arguments = (verb, RELEASE, CHART, "--namespace", NAMESPACE, *more)
    return run_helm(*arguments, values=values or {}, kubeconfig=cluster.admin.kubeconfig)


def wait_until_policies_hold(cluster: Cluster) -> None:
    """A policy takes a moment from its creation to its first refusal, and all of the chart's are created together."""
    forged = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"generateName": "forged-", "labels": {"amdahl-loop.io/job": "x"}},
    }
    maps = "/api/v1/namespaces/team-a/configmaps?dryRun=All"
    wait_for(lambda: cluster.admin.post(maps, forged).status == 403, 60, "the policies are in force")


def uninstall(cluster: Cluster) -> None:
    """Remove the release and what it keeps on purpose."""
    run_helm("uninstall", RELEASE, "--namespace", NAMESPACE, kubeconfig=cluster.admin.kubeconfig)
    remove_definitions(cluster)


def remove_definitions(cluster: Cluster) -> None:
    """Delete our definitions and wait until they are gone: the server tries again, later each time, what a policy in its last moments refused."""
    cluster.admin.kubectl("delete", "crd", *DEFINITIONS, "--ignore-not-found", "--wait=false")
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    wait_for(
        lambda: all(cluster.admin.get(f"{path}/{name}").status == 404 for name in DEFINITIONS),
        600,
        "definitions are gone",
    )
