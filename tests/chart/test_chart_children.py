"""Does everything that the operator renders pass the policies that bound it? The real objects, by its own account."""

from typing import Any

import pytest

from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.probe import pack_probe
from amdahl_loop.adapters.kube.render_running import render_job, render_knobs, render_service
from amdahl_loop.domain.resources import TrainingJob
from chart.helm import NAMESPACE, Object
from pod_builders import PROBE, make_cluster_job, make_template, render_for
from testbed.access import Access
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

CLAIM = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
PLAIN = make_template()
RICH = make_template(
    {
        "serviceAccountName": "trainer",
        "automountServiceAccountToken": True,
        "restartPolicy": "OnFailure",
        "priorityClassName": "system-cluster-critical",
        "volumes": [CLAIM, {"name": "scratch", "emptyDir": {}}],
        "initContainers": [{"name": "fetch", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
    },
    volumeMounts=[{"name": "data", "mountPath": "/data"}, {"name": "scratch", "mountPath": "/s"}],
    securityContext=SECURITY,
    ports=[{"containerPort": 80}],
)


@pytest.fixture(scope="module")
def namespace(installed: Cluster) -> str:
    """A namespace where jobs may run."""
    return installed.create_namespace("enabled", {"amdahl-loop.io/enabled": "true"})


@pytest.fixture(scope="module")
def operator(installed: Cluster) -> Access:
    """The operator's own account."""
    return installed.service_account(NAMESPACE, "amdahl-loop")


def post(access: Access, kind: Kind, namespace: str, rendered: Any) -> None:
    """Create a rendered object as the operator's client does, without keeping it."""
    assert isinstance(rendered, dict), rendered
    body: Object = kind.header | rendered
    body["metadata"] = body["metadata"] | {"namespace": namespace}
    reply = access.post(kind.path(namespace) + "?dryRun=All", body)
    assert reply.status == 201, reply.message


@pytest.mark.parametrize("template", [PLAIN, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_what_the_operator_renders_is_let_through(
    operator: Access, namespace: str, template: Object, replicas: int
) -> None:
    """Running Job, Service, values and probe; and a block, whatever account, priority and mounts the template asks for."""
    job: TrainingJob = make_cluster_job(
        template, replicas=replicas, tuning={"trial": {"isolated": True, "scratchPaths": ["/out"]}}
    )
    post(operator, Kind.JOB, namespace, render_job(job, 0, PROBE))
    post(operator, Kind.JOB, namespace, render_for(job))
    post(operator, Kind.SERVICE, namespace, render_service(job))
    post(operator, Kind.CONFIG_MAP, namespace, render_knobs(job, live=True, sequence=1, annotations={}))
    post(operator, Kind.CONFIG_MAP, namespace, pack_probe().render(namespace))
