"""[P] A job whose image holds no Python runs on as it was: on real nodes, seen by the operator's own passes."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from amdahl_loop.adapters.kube.loading import load_index
from amdahl_loop.adapters.kube.probe import pack_probe
from amdahl_loop.adapters.kube.scrape import fetch_metrics
from amdahl_loop.adapters.metrics import Metrics
from amdahl_loop.operate import Operator
from amdahl_loop.recollection import JobKey, Recollection
from amdahl_loop.settings import Settings
from cluster_builders import Scene, play
from kube_builders import see_job
from pods_on_nodes import template, until
from testbed.cluster import Cluster
from testbed.images import Image, programs

pytestmark = pytest.mark.slow

IMAGE = Image("amdahl-testbed/shell:1", (programs(Path("/bin/sh"), Path("/bin/sleep")),), environment={"PATH": "/bin"})
COMMAND = ["sh", "-c", "while true; do echo works on; sleep 1; done"]


@dataclass
class Clock:
    """The time of the machine, and what a test cannot wait for."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return time.time() + self.ahead_s


def said(document: dict[str, object], type_name: str) -> tuple[str, str, str]:
    """Status, reason and message of a condition; empty where it is not there."""
    status = document.get("status") or {}
    assert isinstance(status, dict)
    found = (c for c in status.get("conditions") or () if c["type"] == type_name)
    return next(((c["status"], c["reason"], c.get("message", "")) for c in found), ("", "", ""))


def test_an_image_without_python_runs_on_and_the_job_says_why_it_is_not_observed(
    cluster: Cluster, namespace: str
) -> None:
    """The probe's path hurts nobody; after ten minutes of silence: Observed=False, no trial, and the same pod as ever."""
    cluster.load_image(IMAGE)

    async def scenario(scene: Scene) -> None:
        pod = template(image=IMAGE.name, command=COMMAND, env=[], volumeMounts=[])
        await scene.create_job(spec={"template": pod, "knobs": {"dataloaderWorkers": 0}})
        clock, key = Clock(), JobKey(scene.namespace, "pydocs")
        operator = Operator(
            client=scene.client,
            settings=Settings(),
            probe=pack_probe(),
            recollection=Recollection(since_s=0.0, index=await load_index(scene.client, [scene.namespace])),
            clock=clock,
            metrics=Metrics(list, lambda: (0, 0.0)),
            fetch=fetch_metrics,
        )

        async def pass_until(type_name: str, status: str) -> tuple[str, str, str]:
            async def ask() -> tuple[str, str, str] | None:
                await operator.advance(key)
                found = said((await see_job(scene.client, scene.namespace)).document, type_name)
                return found if found[0] == status else None

            answer: tuple[str, str, str] = await until(ask)
            return answer

        await pass_until("Ready", "True")
        clock.ahead_s = 601.0
        _, reason, message = await pass_until("Observed", "False")
        assert reason == "NotMeasurable"
        assert "no counters for 10 min" in message
        assert said((await see_job(scene.client, scene.namespace)).document, "Ready")[0] == "True"
        assert said((await see_job(scene.client, scene.namespace)).document, "Experimenting")[0] == "False"

    play(cluster, namespace, scenario)
    pods = cluster.admin.kubectl("get", "pods", "--namespace", namespace, "--no-headers").splitlines()
    assert len(pods) == 1
    assert "Running" in pods[0]
    assert "works on" in cluster.admin.kubectl("logs", "--namespace", namespace, pods[0].split()[0])
