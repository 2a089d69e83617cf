"""A job and its blocks in turn: who waits for whom, what a block begins from, and what standing still costs."""

import json
from typing import Any

import pytest

from amdahl_loop.adapters.kube.in_turn import (
    FRESH_S,
    Turn,
    find_guest,
    idle_device_s,
    pending_limit_s,
)
from amdahl_loop.adapters.kube.objects import JobFacts, read_job, read_pod
from amdahl_loop.adapters.kube.placement import Placement
from amdahl_loop.adapters.kube.render_block import Unfit, render_block
from amdahl_loop.domain.children import read_run
from pod_builders import PROBE, env_of, make_cluster_job, make_request, make_template, pod_of, trainer_in
from pod_statuses import CREATED_S, ended, make_pod

TURN = Turn(nodes=("node-a",), devices=4, restart_s=12.34)
LABELS = {"amdahl-loop.io/experiment": "pydocs-0123456789"}


def guest(**fields: Any) -> JobFacts:
    """A block's Job that a job makes way for."""
    known: dict[str, Any] = {"labels": LABELS, "annotations": TURN.annotations, "created_at_s": CREATED_S}
    return JobFacts(name=fields.pop("name", "d0"), uid="u", **(known | fields))


@pytest.mark.parametrize(
    ("jobs", "has_stopped", "after_s", "name"),
    [
        pytest.param([guest()], False, 5, "d0", id="a fresh block"),
        pytest.param(
            [guest()], False, FRESH_S + 1, "", id="a block left by an operator that was away: the job works on"
        ),
        pytest.param([guest()], True, 9999, "d0", id="the job has stopped already: it waits for the end"),
        pytest.param([guest(is_complete=True)], True, 5, "", id="a block that is done"),
        pytest.param([guest(failure_reason="DeadlineExceeded")], True, 5, "", id="a block that failed"),
        pytest.param([guest(is_deleting=True)], True, 5, "", id="a block that is given up"),
        pytest.param([guest(annotations={})], True, 5, "", id="a block beside the job"),
        pytest.param([guest(labels={})], True, 5, "", id="no block"),
        pytest.param([], True, 5, "", id="nobody"),
    ],
)
def test_for_whom_a_job_makes_way(jobs: list[JobFacts], has_stopped: bool, after_s: float, name: str) -> None:
    """Only what the API server holds decides, so that an operator may be killed at any instant."""
    assert find_guest(jobs, has_stopped, CREATED_S + after_s) == name


@pytest.mark.parametrize(
    ("pods", "after_s", "idle_s"),
    [
        pytest.param([], 50, 50 + 12.3, id="no pod came: all of it, and the way back"),
        pytest.param(
            [make_pod("Succeeded", ended(0, started=5, finished=65))], 80, 80 + 12.3 - 63, id="around the block"
        ),
        pytest.param([make_pod("Pending", node=None)], 150, 150 + 12.3, id="the devices were taken by somebody else"),
    ],
)
def test_standing_still_is_charged(pods: list[Any], after_s: float, idle_s: float) -> None:
    """From the checkpoint until the job trains again, on all its devices, but for what the block itself holds."""
    found = idle_device_s(guest(), [read_pod(pod) for pod in pods], CREATED_S + after_s)
    assert found == pytest.approx(4 * idle_s)
    assert idle_device_s(guest(annotations={}), [], CREATED_S + after_s) == 0


def test_a_job_stands_still_for_no_block_that_finds_no_node() -> None:
    """Two minutes after its pods had to be gone, instead of ten."""
    job = make_cluster_job()
    assert pending_limit_s(guest(), job) == 120 + 30
    assert (
        pending_limit_s(guest(), make_cluster_job(make_template({"terminationGracePeriodSeconds": 300}))) == 120 + 300
    )
    assert pending_limit_s(guest(annotations={}), job) == 600


def render(job: Any) -> Any:
    """A block in turn with this job."""
    request = make_request({"dataloaderWorkers": 0}, {"dataloaderWorkers": 2})
    block = read_run(request.run)
    assert block is not None
    placement = Placement(required=TURN.nodes, after="pydocs")
    body = render_block(job, request, block, "experiment-uid", PROBE, placement, TURN)
    assert not isinstance(body, Unfit), body
    return body


def test_block_and_job_never_share_a_node() -> None:
    """The block is bound to the job's node and waits there for the job's pods to be gone; its Job says for whom."""
    body = render(make_cluster_job())
    assert (
        read_job(body | {"metadata": body["metadata"] | {"uid": "u"}}).annotations.items() >= TURN.annotations.items()
    )
    affinity = pod_of(body)["affinity"]
    (term,) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchFields"][0]["values"] == ["node-a"]
    _, own = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert own == {
        "labelSelector": {
            "matchExpressions": [
                {"key": "amdahl-loop.io/job", "operator": "In", "values": ["pydocs"]},
                {"key": "amdahl-loop.io/revision", "operator": "Exists"},
            ]
        },
        "topologyKey": "kubernetes.io/hostname",
    }


def test_a_block_begins_from_the_jobs_checkpoint_and_cannot_touch_it() -> None:
    """Storage below each scratch path once more, read-only; what is not on lasting storage begins empty."""
    volumes = [
        {"name": "out", "persistentVolumeClaim": {"claimName": "out"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts = [
        {"name": "out", "mountPath": "/data"},
        {"name": "out", "mountPath": "/data/run", "subPath": "runs/7"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    job = make_cluster_job(
        make_template({"volumes": volumes}, volumeMounts=mounts),
        tuning={
            "trial": {
                "placement": "InTurn",
                "scratchPaths": ["/data/run/checkpoints", "/tmp/cache", "/data", "/elsewhere"],
            }
        },
    )
    body = render(job)
    found = {m["mountPath"]: m for m in trainer_in(body)["volumeMounts"] if m["mountPath"].startswith("/amdahl/base")}
    assert found == {
        "/amdahl/base/0": {"name": "out", "mountPath": "/amdahl/base/0", "readOnly": True, "subPath": "runs/7"},
        "/amdahl/base/2": {"name": "out", "mountPath": "/amdahl/base/2", "readOnly": True},
    }
    plan = _read_plan(body)
    assert plan["base_paths"] == ["/amdahl/base/0/checkpoints", "", "/amdahl/base/2", ""]
    assert len(plan["scratch_paths"]) == 4
    claim = next(v for v in pod_of(body)["volumes"] if v["name"] == "out")
    assert claim["persistentVolumeClaim"]["readOnly"] is True


def _read_plan(body: Any) -> Any:
    return json.loads(env_of(trainer_in(body))["AMDAHL_PLAN"].replace("$$", "$"))
