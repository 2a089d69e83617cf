"""Local runs whose loop, keeper or supervisor dies, on machines that allow little, or whose disk is full."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amdahl_loop.adapters.local.keeper import Charge
from amdahl_loop.adapters.local.programs import run_module
from amdahl_loop.adapters.local.runner import LocalRunner
from amdahl_loop.domain.runs import Absent, Finished
from amdahl_loop.domain.telemetry import Arm
from local_builders import (
    BOUND,
    LEAKS,
    NODE,
    VANDAL,
    daemonise,
    digest_tree,
    find_processes,
    linger,
    make_job,
    make_request,
    outcomes,
    read_report,
    start_loop,
    wait_for_daemon,
    wait_for_end,
)


class TestDying:
    """Whoever dies, however: nothing of the run is left, and the next loop knows how to go on."""

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_the_loop_dies(self, runner: LocalRunner, base: Path, token: str, number: signal.Signals) -> None:
        """Its run is ended by the keeper; to the next loop it is absent."""
        deed = linger(token)
        with start_loop([], runner._state_dir, base, deed) as loop:
            asyncio.run(wait_for_daemon(token))
            loop.send_signal(number)
            loop.wait()
            assert asyncio.run(wait_for_end(runner, "pydocs-d0")) == Absent()
        assert find_processes(token) == []
        assert not (runner._runs_dir / "pydocs-d0").exists()

    def test_the_keeper_dies(self, runner: LocalRunner, token: str) -> None:
        """The run has failed, says why, and is charged for."""

        async def scenario() -> None:
            await runner.submit(make_job(linger(token)), make_request())
            await wait_for_daemon(token)
            runner._keepers["pydocs-d0"].kill()
            state = await wait_for_end(runner, "pydocs-d0")
            assert isinstance(state, Finished)
            assert "keeper was killed" in state.failure
            assert state.held_device_s > 0
            assert find_processes(token) == []

        asyncio.run(scenario())

    def test_the_supervisor_dies(self, runner: LocalRunner, token: str) -> None:
        """Its last summary still says which arm ran; everything it started is dead."""

        async def scenario() -> None:
            await runner.submit(make_job(linger(token)), make_request())
            await wait_for_daemon(token)
            plan = str(runner._runs_dir / "pydocs-d0" / "plan.json")
            os.kill(min(find_processes(plan)), signal.SIGKILL)  # its guard, forked from it, came later
            state = await wait_for_end(runner, "pydocs-d0")
            assert isinstance(state, Finished)
            assert read_report(state).running_arm is Arm.BASELINE
            assert find_processes(token) == []

        asyncio.run(scenario())

    @pytest.mark.parametrize("patience_s", [0.2])
    def test_a_supervisor_that_hangs_meets_the_keeper_s_limit(
        self, tmp_path: Path, token: str, patience_s: float
    ) -> None:
        """The time limit holds even when the supervisor keeps none; the result says so."""
        charge = Charge(
            run_dir=str(tmp_path),
            supervisor=(sys.executable, "-c", f"import time; time.sleep(600) # {token}"),
            lock=str(tmp_path / "lock"),
            deadline_s=patience_s,
            loop_pid=os.getpid(),
            temporary=(),
        )
        (tmp_path / "charge.json").write_text(json.dumps(charge._asdict()))
        subprocess.run([*run_module("amdahl_loop.adapters.local.keeper"), str(tmp_path / "charge.json")], check=True)
        result = json.loads((tmp_path / "result.json").read_text())
        assert "exceeded its time limit" in result["why"]
        assert find_processes(token) == []


UNPRIVILEGED = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]


def without(limit: str) -> list[str]:
    """A machine that gives no more namespaces of a kind."""
    script = f'echo 0 > /proc/sys/user/max_{limit}_namespaces && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]


ON_OVERLAY = [
    *("unshare", "--user", "--map-root-user", "--mount", "sh", "-c"),
    (
        'cd "$0" && mkdir lower upper work && '
        'mount -t overlay amdahl-test -o lowerdir=lower,upperdir=upper,workdir=work,userxattr state && exec "$@"'
    ),
]
"""Followed by the folder in which `state` is to be an overlay, which cannot hold another one's layers."""


class TestLesserMachines:
    """What users have who are not root, or whose machine or container allows less."""

    @pytest.mark.parametrize(
        ("prefix", "view"),
        [
            pytest.param(UNPRIVILEGED, "overlay", id="not root"),
            pytest.param(without("pid"), "overlay", id="no PID namespaces"),
            pytest.param(ON_OVERLAY, "overlay", id="state folder on an overlay, as in containers"),
            pytest.param(without("mnt"), "copy", id="no mount namespaces: Landlock"),
        ],
    )
    def test_files_are_safe_and_nothing_is_left(
        self, prefix: list[str], view: str, tmp_path: Path, base: Path, token: str
    ) -> None:
        """The same promises: measured windows, untouched files, no process left."""
        before = digest_tree(base)
        deed = daemonise(token) + (VANDAL if view == "overlay" else BOUND)
        (tmp_path / "state").mkdir()
        place = [str(tmp_path)] if prefix is ON_OVERLAY else []
        with start_loop([*prefix, *place], tmp_path / "state", base, deed) as loop:
            assert loop.stdout is not None
            kind, summary, failure = json.loads(loop.stdout.read())
        assert kind == view
        assert outcomes(Finished(summary=summary, started_at_s=0, held_device_s=0)) == ["ok", "ok"], failure
        assert digest_tree(base) == before
        assert [leak for leak in LEAKS if Path(leak).expanduser().exists()] == []
        assert find_processes(token) == []

    def test_volumes_inside_the_folder_are_seen_and_safe(self, tmp_path: Path, base: Path) -> None:
        """Another file system mounted below the job's folder is copy-on-write too, not an empty folder."""
        volume = base / "data" / "inner"
        script = 'mount -t tmpfs v "$0" && echo precious > "$0/file" && "$@" && cat "$0/file"'
        prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(volume)]
        deed = (
            "f = open('data/inner/file', 'r+'); assert f.read() == 'precious\\n'; f.write('spoilt'); f.close(); "
            "open('data/inner/new', 'w').write('x')"
        )
        with start_loop(prefix, tmp_path / "state", base, deed) as loop:
            assert loop.stdout is not None
            told, after = loop.stdout.read().splitlines()
        kind, summary, failure = json.loads(told)
        assert kind == "overlay"
        assert outcomes(Finished(summary=summary, started_at_s=0, held_device_s=0)) == ["ok", "ok"], failure
        assert after == "precious"

    @pytest.mark.parametrize("victim", ["loop", "keeper"])
    def test_without_namespaces_whoever_dies_nothing_is_left(
        self, tmp_path: Path, base: Path, token: str, victim: str
    ) -> None:
        """Where the kernel does not do it, the keeper does; and after the keeper the next loop."""
        deed = linger(token)
        heir = LocalRunner(tmp_path / "state", base, "test", machine=NODE)
        with start_loop(without("pid"), tmp_path / "state", base, deed) as loop:
            asyncio.run(wait_for_daemon(token))
            if victim == "keeper":
                kept = heir._read_kept("pydocs-d0")
                assert kept is not None
                kept.keeper.send(signal.SIGKILL)
            loop.send_signal(signal.SIGKILL)
            loop.wait()
            assert asyncio.run(wait_for_end(heir, "pydocs-d0")) == Absent()
        assert find_processes(token) == []

    @pytest.mark.parametrize(
        ("isolated", "words"), [pytest.param(False, "set spec.tuning.trial.isolated: true", id="refused"), (True, "")]
    )
    def test_without_any_protection_a_job_is_refused(
        self, tmp_path: Path, base: Path, isolated: bool, words: str
    ) -> None:
        """Neither overlay nor a safe copy: refused with the fix, unless the owner declares the job isolated."""
        scratch = tmp_path / "full"
        scratch.mkdir()
        (scratch / "mine").write_text("mine")
        tuning = {"trial": {"isolated": isolated, "scratchPaths": [str(scratch)]}}
        with start_loop(without("mnt"), tmp_path / "state", base, "", tuning) as loop:
            assert loop.stdout is not None
            kind, summary, failure = json.loads(loop.stdout.read())
        assert kind == "plain"
        assert words in failure
        assert (summary == "refused") is not isolated
        assert (scratch / "mine").read_text() == "mine"


def small_disk(mebibytes: int) -> list[str]:
    """Followed by the folder that is to be a disk of this size."""
    script = f'mount -t tmpfs -o size={mebibytes}m amdahl-test "$0" && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]


class TestFullDisks:
    def test_too_little_space_to_begin_with(self, tmp_path: Path, base: Path) -> None:
        """Nothing is started; the message names the folder and the fix."""
        state = tmp_path / "state"
        state.mkdir()
        with start_loop([*small_disk(20), str(state)], state, base, "") as loop:
            assert loop.stdout is not None
            _, word, message = json.loads(loop.stdout.read())
        assert word == "refused"
        assert f"{state}: less than 256 MiB are free; free some space" in message

    def test_a_disk_that_fills_up_is_not_the_arm_s_fault(self, tmp_path: Path, base: Path) -> None:
        """The crash that follows is not reported as one: the run has failed for want of space, and says so."""
        state = tmp_path / "state"
        state.mkdir()
        deed = "f = open('fill', 'wb')\nwhile True: f.write(bytes(2**20))"
        with start_loop([*small_disk(300), str(state)], state, base, deed) as loop:
            assert loop.stdout is not None
            kind, summary, failure = json.loads(loop.stdout.read())
        assert (kind, summary) == ("overlay", "")
        assert "MiB are free at" in failure
        assert not (base / "fill").exists()
