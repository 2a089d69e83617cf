"""Runs as local processes: they report, end, leave nothing behind and change no file of the user's."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amdahl_loop.adapters.local.processes import identify
from amdahl_loop.adapters.local.runner import LocalRunner
from amdahl_loop.domain.experiments import Loss
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.runs import Absent, Finished, Running, RunState
from local_builders import (
    LEAKS,
    NODE,
    VANDAL,
    digest_tree,
    find_processes,
    linger,
    make_job,
    make_request,
    outcomes,
    read_report,
    run_block,
    wait_for_daemon,
    wait_for_end,
)


class TestRunning:
    def test_a_block_runs_to_its_summary(self, runner: LocalRunner) -> None:
        """Both windows are measured under the requested arms; devices are held for as long as the run took."""
        finished = run_block(runner, make_job())
        report = read_report(finished)
        assert [(w.arm, w.index, w.outcome) for w in report.windows] == [("A", 0, "ok"), ("B", 1, "ok")]
        assert (finished.node, finished.failure) == ("here", "")
        assert finished.held_device_s >= sum(window.wall_s for window in report.windows)

    def test_the_environment_is_the_contract_s(self, runner: LocalRunner, base: Path) -> None:
        """Knobs come first, the user's variables may refer to them, commands are expanded, keys are not passed on."""
        check = (
            "env = os.environ; seen = (env['AMDAHL_DATALOADER_WORKERS'], env['SAID'], sys.argv[2], sys.argv[3], "
            "env['AMDAHL_RUN_ID'], env['WANDB_MODE'], 'ANTHROPIC_API_KEY' in env, os.getcwd())\n"
            f"assert seen == ('0', 'w=0 $(NOBODY)', 'a 0', '$(SAID)', 'pydocs-d0', 'disabled', False, {str(base)!r}), seen"
        )
        job = make_job(
            command=[sys.executable, "train.py"],
            args=[check.replace("$", "$$"), "a $(AMDAHL_DATALOADER_WORKERS)", "$$(SAID)"],
            env=[{"name": "SAID", "value": "w=$(AMDAHL_DATALOADER_WORKERS) $(NOBODY)"}],
        )
        keyed = LocalRunner(
            runner._state_dir, base, "test", environ=os.environ | {"ANTHROPIC_API_KEY": "secret"}, machine=NODE
        )
        assert outcomes(run_block(keyed, job)) == ["ok", "ok"]

    def test_files_are_as_they_were(self, runner: LocalRunner, base: Path) -> None:
        """Whatever a job does to its folder, home, /tmp or the machine, byte for byte nothing has happened."""
        before = digest_tree(base)
        assert outcomes(run_block(runner, make_job(VANDAL))) == ["ok", "ok"]
        assert digest_tree(base) == before
        assert [leak for leak in LEAKS if Path(leak).expanduser().exists()] == []
        assert not (runner._runs_dir / "pydocs-d0" / "view").exists()

    def test_scratch_paths_elsewhere_are_copy_on_write_too(self, runner: LocalRunner, tmp_path: Path) -> None:
        """A checkpoint folder outside of the job's is written to, and unchanged."""
        scratch = tmp_path / "checkpoints"
        scratch.mkdir()
        (scratch / "last").write_text("step 9")
        job = make_job(
            f"import pathlib; p = pathlib.Path({str(scratch)!r}); assert (p / 'last').read_text() == 'step 9'; "
            "(p / 'last').write_text('step 10'); (p / 'new').write_text('x')",
            tuning={"trial": {"scratchPaths": [str(scratch)]}},
        )
        assert outcomes(run_block(runner, job)) == ["ok", "ok"]
        assert [(path.name, path.read_text()) for path in scratch.iterdir()] == [("last", "step 9")]

    def test_failures_are_told_in_words(self, runner: LocalRunner) -> None:
        """A crash is the window's outcome; a plan that the supervisor refuses is the run's failure, in its words."""
        assert outcomes(run_block(runner, make_job("sys.exit(3)"))) == ["crash", "crash"]
        asyncio.run(runner.stop("pydocs-d0"))
        assert outcomes(run_block(runner, make_job(command=["no-such-program"]))) == ["crash", "crash"]
        asyncio.run(runner.stop("pydocs-d0"))
        twice = make_request()
        refused = run_block(runner, make_job(), twice.model_copy(update={"windows": twice.windows[:1] * 2}))
        assert refused.summary == ""
        assert "exit code 2: amdahl_probe.supervise: plan.windows" in refused.failure

    def test_what_windows_printed_is_kept(self, runner: LocalRunner) -> None:
        """After a run's traces are dropped its output can still be read; of old runs it is forgotten."""
        for number in range(22):
            (runner.logs_dir / f"old-{number}").mkdir(parents=True)
            os.utime(runner.logs_dir / f"old-{number}", (number, number))
        run_block(runner, make_job("sys.exit('no such data set')"))
        asyncio.run(runner.stop("pydocs-d0"))
        assert (runner.logs_dir / "pydocs-d0" / "window-A0.log").read_text() == "no such data set\n"
        assert len(list(runner.logs_dir.iterdir())) == 20

    def test_runs_take_turns(self, runner: LocalRunner) -> None:
        """Two runs of one machine are never held at once, whoever submits them."""
        other = LocalRunner(runner._state_dir, runner._base_dir, "other", machine=NODE)

        async def run_both() -> list[RunState]:
            await runner.submit(make_job(), make_request("one", windows=1))
            await other.submit(make_job(), make_request("two", windows=1))
            states = [await wait_for_end(runner, "one"), await wait_for_end(other, "two")]
            await other.sweep(())
            return states

        spans = []
        for state in asyncio.run(run_both()):
            assert isinstance(state, Finished)
            spans.append((state.started_at_s, state.started_at_s + state.held_device_s))
        first, second = sorted(spans)
        assert first[1] <= second[0] + 0.5  # wall clock against monotonic clock


class TestFindingAgain:
    def test_unknown_runs_are_absent(self, runner: LocalRunner) -> None:
        """Finding, stopping and sweeping what never was is no error."""
        assert asyncio.run(runner.find("nobody")) == Absent()
        asyncio.run(runner.stop("nobody"))
        assert asyncio.run(runner.sweep(())) == ()

    def test_names_that_could_leave_the_folder_are_refused(self, runner: LocalRunner) -> None:
        """A run's name is a folder's name, and nothing else."""
        for name in ("../escape", "", "a/b", "."):
            with pytest.raises(ValueError, match="lower-case letters"):
                asyncio.run(runner.find(name))

    def test_a_running_run_is_adopted_or_replaced(self, runner: LocalRunner, token: str) -> None:
        """The same plan again is the same run; under another plan's hash the old run is stopped and replaced."""

        async def scenario() -> None:
            slow = make_job(linger(token))
            await runner.submit(slow, make_request())
            await wait_for_daemon(token)
            first = runner._read_kept("pydocs-d0")
            await runner.submit(slow, make_request())
            assert runner._read_kept("pydocs-d0") == first
            assert isinstance(await runner.find("pydocs-d0"), Running)
            await runner.submit(make_job(), make_request(plan_hash="other"))
            assert find_processes(token) == []
            assert isinstance(await wait_for_end(runner, "pydocs-d0"), Finished)
            await runner.submit(make_job("sys.exit(1)"), make_request(plan_hash="other"))
            state = await runner.find("pydocs-d0")
            assert isinstance(state, Finished)
            assert outcomes(state) == ["ok", "ok"]

        asyncio.run(scenario())

    def test_stop_and_sweep_leave_nothing(self, runner: LocalRunner, token: str) -> None:
        """A stopped run is absent, its daemons are dead, its files gone; sweeping spares what is kept."""

        async def scenario() -> None:
            for name in ("one", "two"):
                await runner.submit(make_job(linger(token)), make_request(name))
            await wait_for_daemon(token)
            assert [loss.run for loss in await runner.sweep(("one",))] == ["two"]
            assert isinstance(await runner.find("one"), Running)
            await runner.stop("one")
            assert [await runner.find(name) for name in ("one", "two")] == [Absent(), Absent()]

        asyncio.run(scenario())
        assert find_processes(token) == []
        assert list(runner._runs_dir.iterdir()) == []

    def test_what_a_stopped_run_had_held_is_told(self, runner: LocalRunner, token: str) -> None:
        """Running: devices times the time since it began. Over: what it held in all. Still waiting its turn: nothing."""

        async def scenario() -> tuple[Loss | None, ...]:
            request = make_request("first")
            two = request.windows[0].knobs.with_values({KnobName.GPUS_PER_REPLICA: 2})
            windows = tuple(window.model_copy(update={"knobs": two}) for window in request.windows)
            await runner.submit(make_job(linger(token)), request.model_copy(update={"windows": windows}))
            await wait_for_daemon(token)
            await runner.submit(make_job(), make_request("second"))
            waiting, running = await runner.stop("second"), await runner.stop("first")
            await runner.submit(make_job(), make_request("third"))
            ended = await wait_for_end(runner, "third")
            over, again = await runner.stop("third"), await runner.stop("third")
            assert isinstance(ended, Finished)
            assert over == Loss(run="third", started_at_s=ended.started_at_s, held_device_s=ended.held_device_s)
            return waiting, running, again

        before_s = time.time()
        waiting, running, again = asyncio.run(scenario())
        assert waiting is not None
        assert waiting.held_device_s == 0
        assert running is not None
        assert before_s <= running.started_at_s
        assert 0 < running.held_device_s <= 2 * (time.time() - running.started_at_s)
        assert again is None

    def test_a_finished_run_is_picked_up_by_the_next_loop(self, runner: LocalRunner, base: Path) -> None:
        """A loop that was killed after its block ended loses nothing."""
        finished = run_block(runner, make_job())
        heir = LocalRunner(runner._state_dir, base, "test", machine=NODE)
        assert asyncio.run(heir.find("pydocs-d0")) == finished

    def test_a_reused_pid_is_never_signalled(self, runner: LocalRunner) -> None:
        """A run whose keeper's pid belongs to another process by now is gone; that other process lives on."""
        with subprocess.Popen(["sleep", "600"]) as bystander:
            known = identify(bystander.pid)
            assert known is not None
            for stranger in (known._replace(start_ticks=known.start_ticks - 1), known._replace(boot="another boot")):
                run_dir = runner._runs_dir / "old"
                run_dir.mkdir(parents=True)
                (run_dir / "keeper.json").write_text(json.dumps({"keeper": stranger, "started_at_s": 1.0}))
                assert asyncio.run(runner.find("old")) == Absent()
                assert not run_dir.exists()
            assert bystander.poll() is None
            bystander.kill()
