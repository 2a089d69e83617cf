"""What the operator tells the pods of a job is what our launcher reads: no numbers in the command."""

from amdahl_loop.adapters.kube.render_running import render_job
from amdahl_trainer import launch
from amdahl_trainer.launch import Layout
from pod_builders import PROBE, env_of, make_cluster_job, trainer_in


def test_the_launcher_finds_its_place_in_an_indexed_job() -> None:
    """Replicas, devices a replica and where they meet by the operator, the index by Kubernetes."""
    job = make_cluster_job(replicas=3, knobs={"gpusPerReplica": 2})
    told = env_of(trainer_in(render_job(job, 2, PROBE)))

    for index in range(3):
        found = launch.parse(["--", "--config", "x"], told | {"JOB_COMPLETION_INDEX": str(index)})
        assert found.layout == Layout(2, 3, index, "pydocs-r2-0.pydocs-ranks", int(told["MASTER_PORT"]))
        assert [found.layout.environ(local)["RANK"] for local in range(2)] == [str(2 * index), str(2 * index + 1)]


def test_a_job_of_one_pod_meets_on_its_own_machine() -> None:
    """The launcher takes a free port there."""
    told = env_of(trainer_in(render_job(make_cluster_job(knobs={"gpusPerReplica": 4}), 0, PROBE)))

    assert launch.parse(["--", "--config", "x"], told | {"JOB_COMPLETION_INDEX": "0"}).layout == Layout(4)
