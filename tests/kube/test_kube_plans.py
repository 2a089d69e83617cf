"""A block's plan on its way through the kubelet to the supervisor: what the user's program gets in each window."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amdahl_loop.adapters.kube.plans import MAX_PLAN_BYTES
from amdahl_loop.adapters.kube.render_block import Unfit
from amdahl_loop.domain.commands import expand
from amdahl_probe import plan as supervisor
from pod_builders import env_of, make_cluster_job, make_request, make_template, pod_of, render_for, texts, trainer_in

NAMES = ["A", "B", "C"]
REFERENCES = ["AMDAHL_DATALOADER_WORKERS", "AMDAHL_REPLICAS", "A", "B", "NOBODY", "POD"]
values = st.lists(texts | st.sampled_from(REFERENCES).map(lambda name: f"$({name})"), max_size=3).map("".join)


def kubelet_environment(container: dict[str, Any], known: dict[str, str]) -> dict[str, str]:
    """What a kubelet makes of a container's variables; `known` are the values of those that come from elsewhere."""
    found: dict[str, str] = {}
    for item in container.get("env", []):
        found[item["name"]] = known[item["name"]] if "valueFrom" in item else expand(item.get("value", ""), found)
    return found


def read_plan(body: Any) -> tuple[supervisor.Plan, dict[str, str]]:
    """The plan as the supervisor parses it, and the environment that it was started in."""
    environment = kubelet_environment(trainer_in(body), {"POD": "pod-7", "PET_NODE_RANK": "0"})
    text = environment.pop("AMDAHL_PLAN")
    return supervisor.parse(text), environment


def window_environment(plan: supervisor.Plan, environment: dict[str, str], window: supervisor.Window) -> dict[str, str]:
    """What a window's program inherits, by the supervisor's own rule."""
    return {**environment, **plan.env, **window.env}


@settings(max_examples=80)
@given(
    env=st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=3, unique_by=lambda pair: pair[0]),
    command=st.lists(values.filter(bool), min_size=1, max_size=3),
)
def test_a_window_runs_what_a_kubelet_would_have_run(env: list[tuple[str, str]], command: list[str]) -> None:
    """For each window: the user's variables and command are those of a pod with that window's knobs, to the letter.

    References to what only the kubelet knows are left to the container's environment.
    """
    own = [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    own += [{"name": name, "value": value} for name, value in env]
    body = render_for(make_cluster_job(make_template(env=own, command=command)))
    if isinstance(body, Unfit):
        assert "depends on a knob and on something that only the kubelet knows" in body.why
        return
    plan, environment = read_plan(body)
    for window, workers in zip(plan.windows, ("0", "2", "2", "0"), strict=True):
        knobs = [{"name": "AMDAHL_DATALOADER_WORKERS", "value": workers}, {"name": "AMDAHL_REPLICAS", "value": "1"}]
        there = kubelet_environment({"env": knobs + own}, {"POD": "pod-7"})
        got = window_environment(plan, environment, window)
        assert {name: got[name] for name in there} == there
        inherited = {name: environment[name] for name in plan.inherit if name in environment}
        visible = {**inherited, **plan.env, **window.env}
        assert [supervisor.expand(word, visible) for word in plan.command] == [expand(word, there) for word in command]


def test_a_plan_survives_the_kubelet() -> None:
    """Dollars, quotes and line ends of the user's command arrive as they were written."""
    command = ["sh", "-c", 'echo "$HOME" $(date) $$ $$(X) \n "é"', "$(AMDAHL_DATALOADER_WORKERS)"]
    plan, _ = read_plan(render_for(make_cluster_job(make_template(command=command))))
    assert list(plan.command) == command


@pytest.mark.parametrize(
    ("working_dir", "cwd"), [("/app", "/app"), ("", "/proc/self/cwd"), ("relative", "/proc/self/cwd")]
)
def test_the_program_starts_where_the_container_does(working_dir: str, cwd: str) -> None:
    """The image's own folder, which nobody but the container knows, is the supervisor's own."""
    more = {"workingDir": working_dir} if working_dir else {}
    plan, _ = read_plan(render_for(make_cluster_job(make_template(**more))))
    assert str(plan.cwd) == cwd


@pytest.mark.parametrize(
    ("resources", "mem_bytes"),
    [
        pytest.param({"limits": {"memory": "8Gi"}}, 8 * 2**30, id="limit"),
        pytest.param({"requests": {"memory": "8Gi"}}, supervisor.NO_LIMIT_BYTES, id="a request is no limit"),
        pytest.param({"limits": {"memory": "1e9"}}, 10**9, id="an exponent"),
    ],
)
def test_the_memory_limit_is_the_containers(resources: Any, mem_bytes: int) -> None:
    """A window that exceeds it is out of memory before the kernel kills the supervisor with it."""
    plan, _ = read_plan(render_for(make_cluster_job(make_template(resources=resources))))
    assert plan.mem_bytes == mem_bytes


def test_trackers_are_off_over_the_users_own_values() -> None:
    """In the container, and in what windows are given on top of it."""
    own = [{"name": "WANDB_MODE", "value": "online"}, {"name": "LATER", "value": "$(WANDB_MODE)"}]
    plan, environment = read_plan(render_for(make_cluster_job(make_template(env=own))))
    for window in plan.windows:
        assert window_environment(plan, environment, window)["WANDB_MODE"] == "disabled"


def test_a_users_own_rendezvous_stands() -> None:
    """Whoever names a port keeps it in every window."""
    own = [{"name": "MASTER_PORT", "value": "1234"}]
    plan, environment = read_plan(render_with_ranks(own))
    ports = {window_environment(plan, environment, window)["MASTER_PORT"] for window in plan.windows}
    assert ports == {"1234"}


def render_with_ranks(own: list[dict[str, str]]) -> Any:
    body = render_for(make_cluster_job(make_template(env=own), replicas=2))
    trainer_in(body)["env"] = [item for item in trainer_in(body)["env"] if item["name"] != "PET_NODE_RANK"]
    return body


def test_a_variable_of_two_worlds_is_refused() -> None:
    """A knob and a Secret in one text: nobody can expand it for a window."""
    secret = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    mixed = {"name": "M", "value": "$(KEY)-$(AMDAHL_DATALOADER_WORKERS)"}
    body = render_for(make_cluster_job(make_template(env=[secret, mixed])))
    assert isinstance(body, Unfit)
    assert "env M" in body.why


def test_a_command_that_no_variable_holds_is_refused() -> None:
    """Linux refuses a variable beyond 128 KiB; the trial says so instead."""
    body = render_for(make_cluster_job(make_template(command=["python", "-c", "x" * MAX_PLAN_BYTES])))
    assert isinstance(body, Unfit)
    assert "put long texts into a ConfigMap" in body.why


def test_time_limits_lie_within_each_other() -> None:
    """Supervisor, then pod, then Job: the one that can tell most about it ends a block first."""
    body = render_for(make_cluster_job(), make_request({"dataloaderWorkers": 0}, {"dataloaderWorkers": 2}))
    plan, _ = read_plan(body)
    assert plan.deadline_s < pod_of(body)["activeDeadlineSeconds"] < body["spec"]["activeDeadlineSeconds"]
    assert plan.grace_s < pod_of(body)["terminationGracePeriodSeconds"] <= 30


def test_a_live_block_is_switched_and_a_relaunched_one_is_not() -> None:
    """As the request says."""
    arms = {"dataloaderWorkers": 0}, {"dataloaderWorkers": 2}
    found = [
        read_plan(render_for(make_cluster_job(), make_request(*arms, live=live)))[0].is_live for live in (True, False)
    ]
    assert found == [True, False]


def test_the_plan_is_last_and_sees_no_other_variable() -> None:
    """A variable of the user's cannot be expanded into the plan: every dollar in it is escaped."""
    body = render_for(make_cluster_job(make_template(env=[{"name": "A", "value": '"}'}], command=["$(A)", "$$(A)"])))
    assert list(env_of(trainer_in(body)))[-1] == "AMDAHL_PLAN"
    raw = env_of(trainer_in(body))["AMDAHL_PLAN"]
    assert json.loads(expand(raw, {"A": '"}'}))["command"] == ["$(A)", "$$(A)"]


@pytest.mark.parametrize(
    ("fields", "inherited"),
    [
        pytest.param({}, ["JOB_COMPLETION_INDEX", "TRAINING_SERVICE_HOST"], id="what Kubernetes tells every container"),
        pytest.param(
            {"env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]},
            ["JOB_COMPLETION_INDEX", "POD", "TRAINING_SERVICE_HOST"],
            id="what the template names",
        ),
        pytest.param(
            {"envFrom": [{"configMapRef": {"name": "c"}}]},
            ["JOB_COMPLETION_INDEX", "PATH", "POD", "TRAINING_SERVICE_HOST"],
            id="anything, where a ConfigMap is poured in",
        ),
    ],
)
def test_the_command_may_refer_to_what_a_kubelet_knows(fields: dict[str, Any], inherited: list[str]) -> None:
    """Filled in by the supervisor; a variable of the image alone stays as it is written."""
    command = ["python", "$(JOB_COMPLETION_INDEX)", "$(POD)", "$(PATH)", "$(TRAINING_SERVICE_HOST)", "$$(ESCAPED)"]
    plan, _ = read_plan(render_for(make_cluster_job(make_template(command=command, **fields))))
    assert list(plan.inherit) == inherited


def test_supervisors_of_several_pods_meet_at_the_first() -> None:
    """By the block's own name in the job's Service, whatever subdomain its owner chose; alone, there is nobody to meet."""
    alone, _ = read_plan(render_for(make_cluster_job()))
    assert alone.peers is None
    body = render_for(make_cluster_job(make_template({"subdomain": "mine"}), replicas=3))
    plan, _ = read_plan(body)
    assert pod_of(body)["subdomain"] == "pydocs-ranks"
    assert plan.peers == supervisor.Meeting(pods=3, host="pydocs-0123456789-d0-0.pydocs-ranks", port=29399, wait_s=600)
