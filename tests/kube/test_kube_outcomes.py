"""Every way in which a block can end or fail to begin has its own word, read from what a server says."""

from typing import Any

import pytest

from amdahl_loop.adapters.kube.objects import read_job, read_pod
from amdahl_loop.adapters.kube.outcomes import judge_block, lost
from amdahl_loop.domain.runs import Finished, Running, Unplaced
from amdahl_loop.domain.summaries import render_block_summary
from amdahl_loop.domain.telemetry import MAX_SUMMARY_BYTES, BlockReport
from builders import make_window
from pod_statuses import (
    BAD_FOLDER,
    CREATED_S,
    EXEC_NOT_FOUND,
    GATED,
    UNSCHEDULABLE,
    disrupted,
    ended,
    job_condition,
    make_job,
    make_pod,
    never_started,
    running,
    waiting,
)

RUN = "pydocs-0123456789-d0"
SUMMARY = render_block_summary(BlockReport(run=RUN, state="done", windows=(make_window(),))) or ""
CUT = render_block_summary(BlockReport(run=RUN, state="running", running_arm="B", running_index=1)) or ""
FAILED = {"failed": 1, "conditions": [job_condition("Failed", "BackoffLimitExceeded", "Job has reached the limit")]}
LATE = {"failed": 1, "conditions": [job_condition("Failed", "DeadlineExceeded", "Job was active longer than deadline")]}


def judge(job: Any, *pods: Any, after_s: float = 30.0, devices: int = 4) -> Running | Unplaced | Finished:
    """The state of a block so long after its Job was made."""
    return judge_block(RUN, read_job(job), [read_pod(pod) for pod in pods], devices, CREATED_S + after_s)


@pytest.mark.parametrize(
    ("job", "pods", "after_s"),
    [
        pytest.param(make_job(), [], 5, id="no pod yet"),
        pytest.param(make_job(suspend=True, status={}), [], 60, id="not admitted by its queue yet"),
        pytest.param(make_job(), [make_pod("Pending", node=None, conditions=[UNSCHEDULABLE])], 599, id="no node yet"),
        pytest.param(make_job(), [make_pod("Pending", waiting("ContainerCreating"))], 600, id="image and volumes"),
        pytest.param(make_job(), [make_pod("Pending", waiting("ErrImagePull", "timeout"))], 60, id="a registry that fails"),
        pytest.param(make_job(), [make_pod("Pending", waiting("CreateContainerConfigError"))], 20, id="a map on its way"),
        pytest.param(make_job(), [make_pod("Pending", init=[{"name": "i", "state": running()}])], 5000, id="init at work"),
        pytest.param(make_job(), [make_pod("Running", running())], 300, id="at work"),
        pytest.param(
            make_job(replicas=2), [make_pod("Succeeded", ended(0, message=SUMMARY)), make_pod("Running", running(), index=1)],
            300, id="one rank ahead of the other",
        ),
        pytest.param(make_job(replicas=2), [make_pod("Running", running())], 30, id="one pod of two"),
    ],
)  # fmt: skip
def test_a_block_goes_on(job: Any, pods: list[Any], after_s: float) -> None:
    """What may still come right is waited for."""
    assert judge(job, *pods, after_s=after_s) == Running()


@pytest.mark.parametrize(
    ("job", "pods", "after_s", "word"),
    [
        pytest.param(make_job(), [], 601, "unschedulable: no pod could be made", id="quota lets no pod in"),
        pytest.param(make_job(suspend=True, status={}), [], 601, "unschedulable: its queue", id="never admitted"),
        pytest.param(
            make_job(), [make_pod("Pending", node=None, conditions=[UNSCHEDULABLE])], 602,
            "unschedulable: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu", id="no devices",
        ),
        pytest.param(
            make_job(), [make_pod("Pending", node=None, conditions=[GATED])], 602, "unschedulable: SchedulingGated", id="gated"
        ),
        pytest.param(make_job(), [make_pod("Pending", node=None)], 602, "unschedulable: no scheduler", id="no scheduler"),
        pytest.param(
            make_job(FAILED), [make_pod("Failed", reason="OutOfnvidia.com/gpu", message="Pod was rejected: Node didn't have")],
            9, "unschedulable: Pod was rejected", id="a node that was full already",
        ),
        pytest.param(
            make_job(FAILED), [make_pod("Failed", reason="UnexpectedAdmissionError", message="Allocate failed")], 9,
            "unschedulable: Allocate failed", id="a device plugin that failed",
        ),
        pytest.param(
            make_job(), [make_pod("Pending", waiting("ImagePullBackOff", 'Back-off pulling image "x": not found'))], 183,
            "image_pull: trainer: Back-off pulling", id="no such image",
        ),
        pytest.param(
            make_job(), [make_pod("Pending", waiting("InvalidImageName", 'couldn\'t parse image name "X"'))], 5,
            "image_pull: trainer: couldn't parse", id="an image that cannot be named",
        ),
        pytest.param(
            make_job(), [make_pod("Pending", waiting("ErrImageNeverPull"))], 5, "image_pull: trainer: ErrImageNeverPull",
            id="not on the node, and never pulled",
        ),
        pytest.param(
            make_job(), [make_pod("Pending", waiting("PodInitializing"), init=[{"name": "i", "state": waiting("ImagePullBackOff")}])],
            183, "image_pull: i: ImagePullBackOff", id="an init container's image",
        ),
        pytest.param(
            make_job(), [make_pod("Pending", waiting("CreateContainerConfigError", 'secret "s" not found'))], 63,
            'config_error: trainer: secret "s" not found', id="a Secret that is gone",
        ),
        pytest.param(
            make_job(), [make_pod("Pending", waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"))],
            63, "config_error: trainer: container has runAsNonRoot", id="a user that is not allowed",
        ),
        pytest.param(
            make_job(), [make_pod("Pending", waiting("ContainerCreating"))], 783, "config_error: its containers have not started",
            id="a volume that never comes",
        ),
        pytest.param(
            make_job(FAILED), [make_pod("Failed", init=[{"name": "fetch", "state": ended(3)}])], 30,
            "config_error: init container fetch ended with 3", id="an init container that fails",
        ),
        pytest.param(
            make_job(FAILED), [make_pod("Failed", never_started(EXEC_NOT_FOUND))], 30,
            'no_python: exec: "python3": executable file not found', id="an image without Python",
        ),
        pytest.param(
            make_job(), [make_pod("Pending", waiting("RunContainerError", EXEC_NOT_FOUND))], 70, "no_python: trainer",
            id="an image without Python, as other runtimes say it",
        ),
        pytest.param(
            make_job(FAILED), [make_pod("Failed", never_started(BAD_FOLDER))], 30, "config_error: error during container init",
            id="a folder that cannot be",
        ),
        pytest.param(
            make_job(FAILED), [make_pod("Failed", ended(1))], 90, "no_summary", id="an interpreter that cannot read the probe"
        ),
        pytest.param(make_job(), [make_pod("Succeeded", ended(0))], 90, "no_summary", id="an end without a word"),
        pytest.param(
            make_job(FAILED), [make_pod("Failed", ended(137, message=CUT), reason="Evicted", message="The node was low on memory")],
            90, "evicted: The node was low on memory", id="a node under pressure",
        ),
        pytest.param(
            make_job(), [make_pod("Running", running(), conditions=[disrupted("EvictionByEvictionAPI", "Eviction API")], deleted=True)],
            45, "evicted: EvictionByEvictionAPI", id="a drained node",
        ),
        pytest.param(
            make_job(), [make_pod("Failed", ended(143), conditions=[disrupted("TerminationByKubelet")], reason="Terminated",
                                  message="Pod was terminated in response to imminent node shutdown.")],
            45, "evicted: Pod was terminated in response", id="a node that shuts down",
        ),
        pytest.param(make_job(), [make_pod("Running", running(), deleted=True)], 45, "evicted: its pod was deleted", id="deleted by hand"),
        pytest.param(
            make_job(), [make_pod("Running", running(), conditions=[disrupted("PreemptionByScheduler")], deleted=True)], 45,
            "preempted: PreemptionByScheduler", id="made way for others",
        ),
        pytest.param(
            make_job(), [make_pod("Running", running(), conditions=[disrupted("DeletionByTaintManager")], deleted=True)], 345,
            "node_lost: DeletionByTaintManager", id="a node that fell silent",
        ),
        pytest.param(make_job(FAILED), [], 345, "node_lost: its pod is gone", id="nothing left of it"),
        pytest.param(make_job(), [make_pod("Unknown", running())], 345, "node_lost", id="a kubelet that cannot tell"),
        pytest.param(
            make_job(), [make_pod("Failed", ended(143, message=CUT), reason="DeadlineExceeded", message="Pod was active on the node longer")],
            900, "deadline: Pod was active", id="the pod's deadline",
        ),
        pytest.param(make_job(LATE), [], 900, "deadline: Job was active", id="the Job's deadline"),
        pytest.param(
            make_job(LATE), [make_pod("Running", running())], 900, "deadline: Job was active", id="the Job's deadline, a pod still there"
        ),
    ],
)  # fmt: skip
def test_every_trouble_has_its_word(job: Any, pods: list[Any], after_s: float, word: str) -> None:
    """The word first, then what the cluster said; nothing of it says anything about an arm, so no summary is kept.

    A block that no node takes has not run: it is no finished block, and is tried again.
    """
    state = judge(job, *pods, after_s=after_s)
    if word.startswith("unschedulable"):
        assert isinstance(state, Unplaced)
        assert state.why.startswith(word)
    else:
        assert isinstance(state, Finished)
        assert state.failure.startswith(word)
        assert state.summary == ""


def test_a_whole_block_is_its_summary() -> None:
    """The termination message word for word, the node, and the devices for as long as they were held."""
    job = make_job({"succeeded": 1, "conditions": [job_condition("Complete", "CompletionsReached", "")]})
    state = judge(job, make_pod("Succeeded", ended(0, message=SUMMARY, started=5, finished=65)), after_s=500)
    assert state == Finished(summary=SUMMARY, node="node-a", started_at_s=CREATED_S + 5, held_device_s=4 * (65 - 2))


def test_a_sidecar_that_runs_on_holds_up_nothing() -> None:
    """The trainer has ended: the block is over, whatever else is in the pod."""
    pod = make_pod("Running", ended(0, message=SUMMARY))
    pod["status"]["containerStatuses"].append({"name": "sidecar", "state": running()})
    assert judge(make_job(), pod) == judge(make_job(), make_pod("Succeeded", ended(0, message=SUMMARY)))


def test_a_container_that_ran_out_of_memory_still_says_which_arm() -> None:
    """The summary was rewritten before the window; a variant that dies of it has lost, it is no missing data."""
    state = judge(make_job(FAILED), make_pod("Failed", ended(137, "OOMKilled", CUT)))
    assert isinstance(state, Finished)
    assert state.summary == CUT
    assert state.failure.startswith("oom")


def test_a_loader_that_was_killed_for_memory_is_the_supervisors_to_tell() -> None:
    """Runtimes mark the container although it ended in good order: its own summary counts."""
    state = judge(make_job(), make_pod("Succeeded", ended(0, "OOMKilled", SUMMARY)))
    assert isinstance(state, Finished)
    assert (state.summary, state.failure) == (SUMMARY, "")


def test_what_comes_after_a_good_end_changes_nothing() -> None:
    """The node was drained when the block was over."""
    pod = make_pod(
        "Succeeded", ended(0, message=SUMMARY), conditions=[disrupted("EvictionByEvictionAPI")], deleted=True
    )
    state = judge(make_job(), pod)
    assert isinstance(state, Finished)
    assert (state.summary, state.failure) == (SUMMARY, "")


@pytest.mark.parametrize("message", ["x" * 100_000, "\0\x1b[31m", "é" * 4000, "{" * 3000])
def test_garbage_is_cut_and_handed_on(message: str) -> None:
    """What the program wrote into the message is not ours to read here; the domain refuses it with a reason."""
    state = judge(make_job(), make_pod("Succeeded", ended(0, message=message)))
    assert isinstance(state, Finished)
    assert len(state.summary) <= MAX_SUMMARY_BYTES + 1
    assert state.failure == ""


def test_a_supervisor_that_gave_up_tells_why() -> None:
    """Exit code 1 with a summary: the summary says it all."""
    text = render_block_summary(BlockReport(run=RUN, state="error", why="no space left")) or ""
    state = judge(make_job(FAILED), make_pod("Failed", ended(1, message=text)))
    assert isinstance(state, Finished)
    assert (state.summary, state.failure) == (text, "")


def test_a_block_without_a_node_costs_nothing() -> None:
    """Given up after ten minutes, or what else was agreed, at no device-second."""
    job, pod = read_job(make_job()), read_pod(make_pod("Pending", node=None, conditions=[UNSCHEDULABLE]))
    assert judge_block(RUN, job, [pod], 4, CREATED_S + 130, pending_limit_s=150) == Running()
    assert isinstance(judge_block(RUN, job, [pod], 4, CREATED_S + 160, pending_limit_s=150), Unplaced)
    assert lost(RUN, job, [pod], 4, CREATED_S + 602).held_device_s == 0


@pytest.mark.parametrize(
    ("pods", "held_s"),
    [
        pytest.param([make_pod("Running", running())], 98, id="still running: up to now"),
        pytest.param([make_pod("Succeeded", ended(0, finished=65))], 63, id="to the trainer's end"),
        pytest.param([make_pod("Pending", waiting("ImagePullBackOff"))], 98, id="a node holds devices for its image"),
        pytest.param([make_pod("Pending", node=None)], 0, id="no node, nothing held"),
        pytest.param(
            [make_pod("Failed", conditions=[disrupted("DeletionByTaintManager", seconds=40)])], 38, id="taken away"
        ),
        pytest.param(
            [make_pod("Running", running()), make_pod("Running", running(), index=1)], 196, id="every pod holds its own"
        ),
    ],
)
def test_devices_are_charged_from_the_node_to_the_end(pods: list[Any], held_s: float) -> None:
    """Devices held by each pod times the time that it held them."""
    loss = lost(RUN, read_job(make_job(replicas=len(pods))), [read_pod(pod) for pod in pods], 4, CREATED_S + 100)
    assert loss.held_device_s == 4 * held_s
    assert loss.run == RUN


def test_the_worst_word_of_several_pods_counts() -> None:
    """One pod lost its node, so the other hung and was killed by the deadline: the node is the reason."""
    pods = [
        make_pod("Failed", ended(143), reason="DeadlineExceeded"),
        make_pod("Running", running(), index=1, conditions=[disrupted("DeletionByTaintManager")], deleted=True),
    ]
    state = judge(make_job(replicas=2), *pods, after_s=400)
    assert isinstance(state, Finished)
    assert state.failure.startswith("node_lost")
    assert state.node == "node-a"


def test_one_silent_pod_voids_the_block() -> None:
    """A missing report of any rank: there is no summary at all."""
    pods = [make_pod("Succeeded", ended(0, message=SUMMARY)), make_pod("Failed", ended(1), index=1)]
    state = judge(make_job(FAILED, replicas=2), *pods)
    assert isinstance(state, Finished)
    assert state.summary == ""
    assert state.failure == "no_summary: pod 1 left no termination message"
