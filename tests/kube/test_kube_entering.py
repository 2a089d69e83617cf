"""Does the probe keep a program from running? Ends that speak against it, and those that do not."""

from typing import Any

import pytest

from amdahl_loop.adapters.kube.entering import EARLY_S, count_early_ends, names_path
from amdahl_loop.adapters.kube.objects import ContainerFacts, Ended, PodFacts, read_job, read_pod
from amdahl_loop.adapters.kube.present import have_failed_before, is_older, is_well, others_since_s, read_revision
from amdahl_loop.adapters.kube.render_running import CHANGED_ANNOTATION, VALUES_ANNOTATION, render_job
from amdahl_loop.adapters.kube.revisions import SURE_S
from pod_builders import PROBE, make_cluster_job, make_template


def end(lasted_s: float = 3.0, exit_code: int = 1, **more: Any) -> Ended:
    return Ended(exit_code=exit_code, started_at_s=100.0, finished_at_s=100.0 + lasted_s, **more)


def pod(index: int = 0, disruption: str = "", **trainer: Any) -> PodFacts:
    container = ContainerFacts(name="trainer", **trainer)
    return PodFacts(name="pydocs-r0-0-x7x7x", index=index, disruption=disruption, trainer=container)


@pytest.mark.parametrize(
    ("pods", "count"),
    [
        pytest.param([], 0, id="nothing there"),
        pytest.param([pod(running_since_s=100.0)], 0, id="it runs"),
        pytest.param([pod(ended=end(exit_code=0))], 0, id="it is done"),
        pytest.param([pod(ended=end())], 1, id="once"),
        pytest.param([pod(ended=end()), pod(ended=end())], 2, id="again"),
        pytest.param([pod(ended=end()), pod(running_since_s=120.0)], 1, id="once, and then it runs"),
        pytest.param([pod(index, ended=end()) for index in range(8)], 1, id="every rank once is once"),
        pytest.param([pod(0, ended=end()), pod(1, ended=end()), pod(1, ended=end())], 2, id="one rank twice"),
        pytest.param([pod(ended=end(EARLY_S)), pod(ended=end(EARLY_S - 1))], 1, id="late is not early"),
        pytest.param([pod(ended=end(exit_code=137, reason="OOMKilled"))] * 2, 0, id="memory"),
        pytest.param([pod(ended=end(), disruption="EvictionByEvictionAPI")] * 2, 0, id="taken away"),
        pytest.param([pod(ended=Ended(exit_code=1))] * 2, 0, id="of no known length"),
        pytest.param([pod(waiting="CrashLoopBackOff", last_ended=end(), restarts=1)], 1, id="restarted in place"),
        pytest.param([pod(running_since_s=120.0, last_ended=end(), restarts=2)], 2, id="restarted in place again"),
        pytest.param([pod(ended=end(), last_ended=end(), restarts=1)], 2, id="restarted, and ended"),
    ],
)
def test_ends_soon_after_the_start_are_counted(pods: list[PodFacts], count: int) -> None:
    """By rank: a program of eight ranks that dies of a missing module once has died once."""
    assert count_early_ends(pods) == count


@pytest.mark.parametrize(
    ("env", "is_named"),
    [
        ([], False),
        ([{"name": "PATH", "value": "/x"}], False),
        ([{"name": "PYTHONPATH", "value": "/app"}], True),
        ([{"name": "PYTHONPATH", "value": ""}], True),
        ([{"name": "PYTHONPATH", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}], True),
    ],
)
def test_a_template_that_names_the_path_hides_it_itself(env: list[dict[str, Any]], is_named: bool) -> None:
    """Its value replaces the image's with and without the probe; what `envFrom` brings cannot be seen from outside."""
    assert names_path(make_cluster_job(make_template(env=env))) is is_named


def test_what_a_kubelet_says_of_an_earlier_end_is_read() -> None:
    """A container that was restarted in place: its present state, and the last one."""
    last = {"terminated": {"exitCode": 1, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:02Z"}}
    waits = {
        "name": "trainer",
        "restartCount": 2,
        "lastState": last,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    }
    raw = {"metadata": {"name": "p"}, "status": {"containerStatuses": [waits]}}
    assert count_early_ends([read_pod(raw)]) == 2


@pytest.mark.parametrize("probe", [PROBE, None])
def test_a_job_says_what_it_was_made_from(probe: str | None) -> None:
    """Its revision, the number of its values, and whether its pods have the probe: all read back from the object."""
    raw = render_job(make_cluster_job(), 3, probe, values=7)
    made = read_revision(read_job(raw))
    assert (made.number, made.values, made.has_probe) == (3, 7, probe is not None)
    assert raw["spec"]["template"]["metadata"]["annotations"][VALUES_ANNOTATION] == "7"


@pytest.mark.parametrize(
    ("made_with", "present", "since_s"),
    [
        pytest.param("7", "7", None, id="the same"),
        pytest.param("6", "7", 1000.0, id="changed since, were it in the same second"),
        pytest.param(None, "7", 1000.0, id="of an older operator, and older than the change"),
    ],
)
def test_numbers_tell_which_values_a_job_was_made_with(
    made_with: str | None, present: str, since_s: float | None
) -> None:
    """The Job's date says nothing: it was made in the very second of the change."""
    raw = render_job(make_cluster_job(), 0, PROBE) | {"status": {}}
    raw["metadata"] |= {"creationTimestamp": "1970-01-01T00:16:40Z" if made_with else "1970-01-01T00:16:39Z"}
    raw["metadata"]["annotations"][VALUES_ANNOTATION] = made_with
    if made_with is None:
        del raw["metadata"]["annotations"][VALUES_ANNOTATION]
    annotations = {VALUES_ANNOTATION: present, CHANGED_ANNOTATION: "1000"}
    assert others_since_s(read_revision(read_job(raw)), annotations) == since_s


@pytest.mark.parametrize(
    ("since_s", "is_old"),
    [(999.0, True), (1000.0, True), (1000.0 + SURE_S - 1, True), (1000.0 + SURE_S, False), (None, False)],
)
def test_a_container_has_new_values_if_it_started_well_after_them(since_s: float | None, is_old: bool) -> None:
    """Between the change and what a kubelet reads, and between two clocks, there are seconds; in doubt it is restarted."""
    assert is_older(pod(running_since_s=since_s), 1000.0) is is_old


@pytest.mark.parametrize(
    ("pods", "is_so"),
    [
        pytest.param([], False, id="nothing was there"),
        pytest.param([pod(ended=end())], True, id="failed with the values of before"),
        pytest.param([pod(ended=end()), pod(ended=end())], True, id="again and again"),
        pytest.param([pod(ended=end()), pod(ended=Ended(exit_code=1, started_at_s=101.0))], False, id="and once with the new ones"),
        pytest.param([pod(ended=end(exit_code=0))], False, id="done"),
        pytest.param([pod()], False, id="on its way"),
    ],
)  # fmt: skip
def test_a_program_that_is_down_is_started_with_new_values_at_once(pods: list[PodFacts], is_so: bool) -> None:
    """The values changed at 100: what failed before has not had them; what failed since is a crash loop of its own."""
    assert have_failed_before(pods, 100.0) is is_so


@pytest.mark.parametrize(
    ("status", "is_so"),
    [
        ({"active": 1, "ready": 1}, True),
        ({"active": 1}, False),
        ({"active": 1, "ready": 1, "failed": 1}, False),
        ({"succeeded": 1, "failed": 1, "conditions": [{"type": "Complete", "status": "True"}]}, True),
        ({"failed": 7, "conditions": [{"type": "Failed", "status": "True"}]}, False),
    ],
)
def test_only_what_is_not_well_is_looked_into(status: dict[str, Any], is_so: bool) -> None:
    """Pods of a job that runs as it should are not listed."""
    assert is_well(read_job(render_job(make_cluster_job(), 0, PROBE) | {"status": status})) is is_so
