"""Our trainer in two pods: one job of two ranks over the headless Service, on real nodes, with real collectives."""

import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.adapters.kube.experiments import render
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.render_running import render_service
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.telemetry import Phase
from cluster_builders import Scene, play
from cluster_operator import CONFINED, Object, operator, read, wait_for_condition
from judge_builders import make_constants, make_plan
from pods_on_nodes import Loop
from testbed.cluster import Cluster, wait_for
from testbed.images import Entry, shared_libraries
from testbed.python_images import python_image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
IMAGE = "amdahl-testbed/torch-ranks:1"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
TIMEOUT_S = 1800.0
"""A bound on hanging; at a load of 20 on two cores it took nine minutes."""

STARTUP_S = 60.0
"""What an observation would have said of PyTorch's start in a pod: a launch is given ten times that."""

MODEL = [
    "--model.n_layers",
    "2",
    "--model.d_model",
    "64",
    "--model.d_ff",
    "176",
    "--model.n_heads",
    "2",
    "--model.n_kv_heads",
    "1",
]
DATA = ["--data.max_documents", "40", "--data.seq_len", "64", "--data.cache_dir", "/tmp/rows"]
RUN = ["--run.max_steps", "1000000", "--run.out_dir", "/out", "--run.torch_threads", "1"]


@pytest.fixture(scope="module")
def torch_image(cluster: Cluster) -> str:
    """An interpreter and system libraries; PyTorch and the trainer come from claims."""
    packages = Path(sysconfig.get_path("purelib"))
    built = [packages / "torch/lib" / f"lib{name}.so" for name in ("torch_cpu", "torch_python", "torch_global_deps")]
    system = [library for library in shared_libraries(*built) if not library.is_relative_to(packages)]
    cluster.load_image(python_image(IMAGE, tuple(Entry(library.resolve(), str(library)) for library in system)))
    return IMAGE


@pytest.fixture
def namespace(cluster_with_definitions: Cluster, torch_image: str, tmp_path: Path) -> Iterator[str]:
    """A namespace that offers PyTorch, the trainer, and a folder for checkpoints that both nodes see."""
    cluster, out = cluster_with_definitions, tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    name = cluster.create_namespace("ranks", RESTRICTED)
    cluster.share_folder(name, "packages", Path(sysconfig.get_path("purelib")))
    cluster.share_folder(name, "trainer", ROOT / "trainer_image")
    cluster.share_folder(name, "out", out, is_writable=True)
    yield name
    cluster.delete_namespace(name)


def two_ranks() -> Object:
    """A TrainingJob of two pods, a rank each, that only SIGTERM makes save."""
    folders = {"packages": "/packages", "trainer": "/trainer", "out": "/out"}
    trainer = {
        "name": "trainer",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "-m", "amdahl_trainer.launch", "--", *RUN, *MODEL, *DATA],
        "env": [{"name": "PYTHONPATH", "value": "/packages:/trainer"}, {"name": "OMP_NUM_THREADS", "value": "1"}],
        "securityContext": CONFINED | {"runAsUser": 65532},
        "volumeMounts": [
            {"name": name, "mountPath": path, "readOnly": name != "out"} for name, path in folders.items()
        ],
    }
    volumes = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in folders]
    return {
        "apiVersion": "amdahl-loop.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "pair"},
        "spec": {
            "replicas": 2,
            "knobs": {"microBatch": 2, "bucketMb": 25, "dataParallel": "ddp"},
            "template": {"spec": {"containers": [trainer], "volumes": volumes, "terminationGracePeriodSeconds": 120}},
            "tuning": {"mode": "Observe", "profile": "quick", "trial": {"scratchPaths": ["/out"]}},
        },
    }


def test_two_pods_train_as_one_job_and_go_on_where_they_stopped(
    cluster_with_definitions: Cluster, namespace: str, tmp_path: Path
) -> None:
    """They meet, and what they wait for each other is seen; told to stop, they save one step; resumed, they go on from it."""
    cluster, log = cluster_with_definitions, tmp_path / "operator.log"
    cluster.admin.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=two_ranks())
    with operator(cluster.admin.kubeconfig, log, NAMESPACES=namespace):
        seen = wait_for_condition(cluster, namespace, "pair", "Observed", "True", log, TIMEOUT_S)
        shares = seen["status"]["phaseShares"]
        assert shares["comm"] > 0, shares
        assert shares["compute"] > 0, shares
        assert knobs_of(cluster, namespace) == {
            "AMDAHL_MICRO_BATCH": "2",
            "AMDAHL_BUCKET_MB": "25",
            "AMDAHL_DATA_PARALLEL": "ddp",
        }
        assert saved_steps(tmp_path / "out") == [], "nothing but SIGTERM makes it save"

        suspend(cluster, namespace, is_suspended=True)
        wait_for(lambda: not pods(cluster, namespace), TIMEOUT_S, "the pods are gone")
        (step,) = saved_steps(tmp_path / "out")
        assert step > 0

        suspend(cluster, namespace, is_suspended=False)
        wait_for(lambda: last_step(first_log(cluster, namespace)) > step, TIMEOUT_S, "the job trains on")
        assert f"step {step}," in first_log(cluster, namespace), "it goes on from the step that was saved"


def test_both_arms_of_a_pass_size_run_in_two_pods(cluster_with_definitions: Cluster, namespace: str) -> None:
    """A block of the loop's own: four launches of two ranks over the Service, each arm with the knob as its trainer took it."""

    async def scenario(scene: Scene) -> None:
        job = await scene.create_job("pair", spec=two_ranks()["spec"])
        constants = make_constants(launch_warmup_s=0.5, warmup_steps=3, window_s=1.0, min_steps=10)
        plan = make_plan(
            constants, KnobName.MICRO_BATCH, before=1, after=8, others={KnobName.BUCKET_MB: 25}, live=False,
            name="pair-0123456789", job="pair", job_uid=job.metadata.uid, replicas=2,
        )  # fmt: skip
        await scene.client.create(
            Kind.SERVICE, scene.namespace, render_service(job)
        )  # the running job has made it before
        await scene.client.create(Kind.EXPERIMENT, scene.namespace, render(plan, scene.namespace))
        state, report = await Loop(scene, job, plan).run_block(2, STARTUP_S)
        assert report is not None, state
        assert [(window.outcome, window.devices) for window in report.windows] == [("ok", 2)] * 4, state.summary
        assert {window.samples_per_step for window in report.windows} == {16.0}
        assert all(window.share(Phase.COMM) > 0 for window in report.windows)
        assert not any(window.ignored for window in report.windows)

    play(cluster_with_definitions, namespace, scenario)


def pods(cluster: Cluster, namespace: str) -> list[Object]:
    """The job's pods that are there, by rank."""
    index = "batch.kubernetes.io/job-completion-index"
    found: list[Object] = read(cluster, namespace, "pods")["items"]
    return sorted(found, key=lambda pod: int(pod["metadata"]["annotations"][index]))


def knobs_of(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """Knobs of the step in the first pod's environment."""
    (trainer,) = pods(cluster, namespace)[0]["spec"]["containers"]
    asked = ("AMDAHL_MICRO_BATCH", "AMDAHL_BUCKET_MB", "AMDAHL_DATA_PARALLEL")
    return {item["name"]: item["value"] for item in trainer["env"] if item["name"] in asked}


def saved_steps(out: Path) -> list[int]:
    """Steps of the checkpoints that are whole."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in out.glob("checkpoints/step-*/meta.json"))


def suspend(cluster: Cluster, namespace: str, *, is_suspended: bool) -> None:
    """As `kubectl patch` does it."""
    patch = json.dumps({"spec": {"suspend": is_suspended}})
    cluster.admin.kubectl("patch", "trainingjob", "pair", "--namespace", namespace, "--type=merge", "-p", patch)


def first_log(cluster: Cluster, namespace: str) -> str:
    """What rank 0 has said; nothing where it does not run yet."""
    ready = [pod for pod in pods(cluster, namespace) if pod["status"].get("phase") == "Running"]
    return cluster.admin.kubectl("logs", ready[0]["metadata"]["name"], "--namespace", namespace) if ready else ""


def last_step(text: str) -> int:
    """The step of the last line of the console; 0 before the first."""
    steps = re.findall(r"^step +(\d+)", text, flags=re.MULTILINE)
    return int(steps[-1]) if steps else 0
