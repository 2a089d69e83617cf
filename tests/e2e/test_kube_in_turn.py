"""Job and trial in turn on a real node that has room for one of them: scheduler, kubelet and garbage collector do the rest."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.runs import Absent, Finished, Running, block_request
from amdahl_loop.domain.telemetry import BlockReport, WindowOutcome, parse_block_summary
from cluster_builders import Scene, play
from pods_on_nodes import Loop, template
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow

LIMIT_S = 1200
"""A bound on hanging."""


def saving_template() -> dict[str, Any]:
    """The user's pods on the only device of the cluster, their checkpoints on a claim."""
    made = template({"terminationGracePeriodSeconds": 2})
    pod = made["spec"]
    (trainer,) = pod["containers"]
    trainer["env"].append({"name": "SAVES", "value": "1"})
    trainer["resources"]["limits"]["nvidia.com/gpu"] = "1"
    trainer["volumeMounts"].append({"name": "out", "mountPath": "/out"})
    pod["volumes"].append({"name": "out", "persistentVolumeClaim": {"claimName": "out"}})
    return made


def test_a_job_makes_way_and_goes_on_from_its_checkpoint(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """The block takes the job's device and begins from its checkpoint; the job is back, further than before."""
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    cluster.share_folder(namespace, "out", out, is_writable=True)
    node = cluster.node_names[0]

    async def scenario(scene: Scene) -> None:
        tuning = {"trial": {"scratchPaths": ["/out"], "placement": "InTurn"}}
        loop = await Loop.begin(scene, template=saving_template(), tuning=tuning)
        request = block_request(loop.plan, loop.plan.blocks[2], startup_s=0.5, step_s=0.06)
        began_s, state, before = time.time(), Running(), 0
        for _ in range(LIMIT_S * 2):
            if not (await loop.running.ensure()).acted:
                found = await loop.runner.find(request.run)
                if isinstance(found, Absent):
                    await loop.runner.submit(loop.job, request)
                elif isinstance(found, Finished):
                    state = found
                    break
            pods = await scene.objects(Kind.POD)
            assert len({_owner(pod) for pod in pods.values() if pod["status"].get("phase") == "Running"}) <= 1
            before = before or _read(out / "step")
            await asyncio.sleep(0.5)
        assert isinstance(state, Finished), state
        assert (state.failure, state.node) == ("", node)
        report = parse_block_summary(state.summary, request.run)
        assert isinstance(report, BlockReport), state.summary
        assert {window.outcome for window in report.windows} == {WindowOutcome.OK}, state.summary
        assert 4 < state.held_device_s <= time.time() - began_s + 60
        await loop.runner.stop(request.run)
        saved = _read(out / "step")
        for _ in range(LIMIT_S * 2):
            standing = (await loop.running.ensure()).note.reason
            if standing is Reason.AS_DECLARED and _read(out / "step") > saved:
                break
            await asyncio.sleep(0.5)
        assert standing is Reason.AS_DECLARED
        assert _read(out / "step") > saved > 0

    with cluster.lend_gpus({node: 1}):
        play(cluster, namespace, scenario)


def _owner(pod: Any) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["name"])


def _read(path: Path) -> int:
    """The step of a checkpoint; 0 while there is none."""
    return int(path.read_text()) if path.exists() else 0
