"""Two supervisors of one block: windows begin together, end at the same step, and what one loses is lost in both."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amdahl_probe import summary
from probe.runs import PYTHON, SCRIPTS, find_port

Plan = dict[str, Any]


class Pair:
    """The supervisors of both pods, as their containers would start them."""

    def __init__(self, plan: Plan, home: Path, probe_zip: Path, env: dict[str, str]) -> None:
        self.dirs = [home / f"pod-{index}" for index in (0, 1)]
        self._plan, self._zip, self._env = plan, probe_zip, env
        self.processes = [self._start(index) for index in (0, 1)]

    def _start(self, index: int) -> "subprocess.Popen[bytes]":
        text = json.dumps({**self._plan, "dir": str(self.dirs[index])})
        pod = {"JOB_COMPLETION_INDEX": str(index), "RANK": str(index), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        command = [sys.executable, "-S", str(self._zip), "--plan-env", "AMDAHL_PLAN"]
        return subprocess.Popen(command, env={**self._env, **pod, "AMDAHL_REPLICAS": "2", "AMDAHL_PLAN": text})

    def finish(self) -> tuple[list[int], list[dict[str, Any]]]:
        """Exit codes and summaries."""
        codes = [process.wait(timeout=300) for process in self.processes]
        blocks = [(folder / "summary.json").read_bytes() for folder in self.dirs]
        assert all(summary.check(block) for block in blocks)
        return codes, [json.loads(block) for block in blocks]


@pytest.fixture
def start_pair(tmp_path: Path, probe_zip: Path, bare_env: dict[str, str]) -> Callable[[Plan], Pair]:
    """Start both supervisors of a plan."""
    return lambda plan: Pair(plan, tmp_path, probe_zip, bare_env)


@pytest.fixture
def plan_pair(make_plan: Callable[..., Plan]) -> Callable[..., Plan]:
    """A plan of two pods; a window's rendezvous is its own."""

    def make(*windows: tuple[str, str, dict[str, Any]], wait_s: float = 60.0, **fields: Any) -> Plan:
        meeting = {"pods": 2, "host": "127.0.0.1", "port": int(find_port()), "wait_s": wait_s}
        plan = make_plan(*windows, peers=meeting, **fields)
        for window in plan["windows"]:
            window["env"] |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": find_port()}
        return plan

    return make


@pytest.mark.slow
def test_ranks_in_two_pods_end_at_the_same_step(
    plan_pair: Callable[..., Plan], start_pair: Callable[[Plan], Pair]
) -> None:
    """Real DDP on gloo, one rank a pod: every window is whole in both, of the same steps, and nobody hangs or crashes."""
    fields = {"warmup_s": 0.1, "measure_s": 0.3, "min_steps": 10}
    proof = {"steps": 6, "warmup_s": 0.0, "warmup_steps": 0}
    plan = plan_pair(
        ("A", "", fields),
        ("B", "", proof),
        command=[PYTHON, str(SCRIPTS / "ddp_endless.py")],
        startup_timeout_s=120.0,
        step_timeout_s=60.0,
        deadline_s=280.0,
    )

    codes, (first, second) = start_pair(plan).finish()

    assert codes == [0, 0], (first, second)
    assert [w["x"] for w in first["w"] + second["w"]] == ["ok"] * 4, (first, second)
    assert [w["n"] for w in first["w"]] == [w["n"] for w in second["w"]]
    assert first["w"][0]["n"] >= 10
    assert first["w"][1]["n"] == 6
    assert [w["d"] for w in first["w"] + second["w"]] == [1] * 4


def test_windows_begin_and_end_together(plan_pair: Callable[..., Plan], start_pair: Callable[[Plan], Pair]) -> None:
    """Relaunched windows without collectives: the same steps are measured in both pods, by the first one's choice."""
    codes, (first, second) = start_pair(plan_pair(*[(arm, "", {}) for arm in "ABBA"])).finish()

    assert codes == [0, 0], (first, second)
    assert (first["state"], second["state"]) == ("done", "done")
    assert [(w["x"], w["n"], w["id"]) for w in first["w"]] == [(w["x"], w["n"], w["id"]) for w in second["w"]]


def test_what_one_pod_loses_is_given_up_in_both(
    plan_pair: Callable[..., Plan], start_pair: Callable[[Plan], Pair]
) -> None:
    """The pod that failed says how, the other one whose fault it was not; the next window begins in both again."""
    crash_in_the_second = [sys.executable, "-c", CRASH_IN_SECOND, str(SCRIPTS / "fake_trainer.py")]
    plan = plan_pair(("B", "", {}), ("A", "", {}), step_timeout_s=60.0, startup_timeout_s=60.0)
    plan["command"] = [*crash_in_the_second, *plan["command"][2:]]
    plan["windows"][0]["env"]["CRASH"] = "1"

    codes, (first, second) = start_pair(plan).finish()

    assert codes == [0, 0], (first, second)
    assert [w["x"] for w in second["w"]] == ["crash", "ok"]
    assert [w["x"] for w in first["w"]] == ["void", "ok"]
    assert first["w"][0]["why"] == "pod 1: crash"


CRASH_IN_SECOND = """
import os, runpy, sys
if os.environ.get("CRASH") and os.environ["JOB_COMPLETION_INDEX"] == "1":
    sys.exit(3)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("missing", [0, 1])
def test_a_pod_that_never_comes_ends_the_block_in_words(
    missing: int, plan_pair: Callable[..., Plan], tmp_path: Path, probe_zip: Path, bare_env: dict[str, str]
) -> None:
    """Nothing is launched, and the summary says who is missing; a stranger does not count."""
    plan = plan_pair(("A", "", {}), wait_s=1.0)
    text = json.dumps({**plan, "dir": str(tmp_path / "pod")})
    command = [sys.executable, "-S", str(probe_zip), "--plan-env", "AMDAHL_PLAN"]
    env = {**bare_env, "JOB_COMPLETION_INDEX": str(1 - missing), "AMDAHL_PLAN": text}
    with subprocess.Popen(command, env=env) as process:
        if missing == 1:
            knock(plan["peers"]["port"])
        assert process.wait(timeout=60) == 1
    block = json.loads((tmp_path / "pod" / "summary.json").read_bytes())
    assert (block["state"], block["w"]) == ("error", [])
    assert block["why"].startswith("pods [1] have not come" if missing else "pod 0 has not come")


def knock(port: int) -> None:
    """Somebody who is none of ours says hello in our form, with a key that is not ours."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                stranger.sendall(b'["hello", 1, "guess"]\n')
                stranger.settimeout(10)
                stranger.recv(1)
                return
        except OSError:
            time.sleep(0.02)


def test_a_pod_that_dies_ends_the_block_in_the_other(
    plan_pair: Callable[..., Plan], start_pair: Callable[[Plan], Pair]
) -> None:
    """The connection is gone with it: the window is void, and nothing more is run."""
    plan = plan_pair(("A", "", {"min_steps": 10_000_000}), ("B", "", {}), step_timeout_s=60.0, startup_timeout_s=60.0)
    pair = start_pair(plan)
    deadline_s = time.monotonic() + 60
    while not list(pair.dirs[1].glob("telemetry-*/rank-0.jsonl")):
        assert time.monotonic() < deadline_s, "the second pod's program never began"
        time.sleep(0.02)
    pair.processes[1].kill()
    pair.processes[1].wait(timeout=60)
    assert pair.processes[0].wait(timeout=120) == 1
    block = json.loads((pair.dirs[0] / "summary.json").read_bytes())
    assert block["state"] == "error"
    assert "gone" in block["why"]
