"""Runs as local processes: they report, end, leave nothing behind and change no file of the user's."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.adapters.local.keeper import Charge
from amdahl_loop.adapters.local.machine import Machine
from amdahl_loop.adapters.local.processes import identify
from amdahl_loop.adapters.local.programs import run_module
from amdahl_loop.adapters.local.runner import LocalRunner, RunnerUnavailableError, RunRefusedError, default_state_dir
from amdahl_loop.domain.experiments import Loss
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Absent, Finished, Running, RunRequest, RunState, WindowRequest
from amdahl_loop.domain.telemetry import Arm, BlockReport, WindowOutcome, parse_block_summary
from builders import make_manifest

TRAIN = """
import json, os, sys, time

exec(sys.argv[1])
now = time.monotonic_ns
told = open(os.environ["AMDAHL_TELEMETRY_DIR"] + "/rank-0.jsonl", "a", buffering=1)
say = lambda **record: told.write(json.dumps(record) + "\\\\n")
say(k="start", v="amdahl.step/1", rank=0, world=1, pid=os.getpid(), t=now(), t0=now(), device="cpu", live=False, by="x")
say(k="startup", t=now(), ns=1, parts={})
step, before = 0, now()
while True:
    time.sleep(0.002)
    end = now()
    say(k="step", i=step, t=end, w=end - before, ph={"compute": end - before}, n=8, el=8, sig=f"{step:08x}",
        shape="0" * 8, ids=f"{step:08x}", loss=1.0, seq=0, lb=[0, 0, 0], tags=[])
    step, before = step + 1, end
"""
"""A training that takes no torch: it does a deed, then reports steps until it is stopped."""

NODE = Machine(node="here", cpus=2, mem_bytes=2**33)


def make_job(deed: str = "", tuning: dict[str, Any] | None = None, **container: Any) -> TrainingJob:
    """A job whose training does `deed` before its first step."""
    manifest = make_manifest(tuning=tuning)
    trainer = manifest["spec"]["template"]["spec"]["containers"][0]
    trainer.update({"command": [sys.executable, "train.py", deed], **container})
    return parse_training_job(manifest)


def make_request(run: str = "pydocs-d0", windows: int = 2, plan_hash: str = "h", **fields: Any) -> RunRequest:
    """A block of short windows, A and B in turn."""
    knobs = make_job().spec.knobs
    arms = [Arm.BASELINE, Arm.VARIANT] * windows
    return RunRequest(
        run=run,
        plan_hash=plan_hash,
        live=False,
        windows=tuple(
            WindowRequest(
                arm=arm, index=n, knobs=knobs, seed=1, offset=n, warmup_s=0, warmup_steps=1, measure_s=0.02, min_steps=3
            )
            for n, arm in enumerate(arms[:windows])
        ),
        **{"startup_timeout_s": 60, "step_timeout_s": 60, "deadline_s": 120, **fields},
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of the user's manifest, with files to be left alone."""
    base = tmp_path / "job"
    (base / "data" / "inner").mkdir(parents=True)
    (base / "train.py").write_text(TRAIN.replace("\\\\n", "\\n"))
    (base / "data" / "precious.txt").write_text("precious")
    (base / "data" / "inner" / "deep.bin").write_bytes(bytes(range(256)))
    (base / "link").symlink_to("data/precious.txt")
    return base


@pytest.fixture
def runner(tmp_path: Path, base: Path) -> Iterator[LocalRunner]:
    """A runner whose runs are swept at the end, whatever the test did."""
    runner = LocalRunner(tmp_path / "state", base, "test", machine=NODE)
    yield runner
    asyncio.run(runner.sweep(()))


@pytest.fixture
def token() -> str:
    """A word that shows in the command lines of processes started for this test alone."""
    return uuid.uuid4().hex


async def wait_for_end(runner: LocalRunner, run: str) -> RunState:
    """The state of a run once it no longer runs."""
    while isinstance(state := await runner.find(run), Running):
        await asyncio.sleep(0.02)
    return state


async def wait_for_daemon(token: str) -> None:
    """Return when the daemon of `linger` runs."""
    while not find_processes(f"daemon-{token}"):
        await asyncio.sleep(0.02)


def run_block(runner: LocalRunner, job: TrainingJob, request: RunRequest | None = None) -> Finished:
    """Run a block to its end."""

    async def run() -> RunState:
        await runner.submit(job, request or make_request())
        return await wait_for_end(runner, (request or make_request()).run)

    state = asyncio.run(run())
    assert isinstance(state, Finished)
    return state


def read_report(finished: Finished, run: str = "pydocs-d0") -> BlockReport:
    """The report, which must be one."""
    report = parse_block_summary(finished.summary, run)
    assert isinstance(report, BlockReport), (report, finished)
    return report


def outcomes(finished: Finished) -> list[WindowOutcome]:
    return [window.outcome for window in read_report(finished).windows]


def find_processes(token: str) -> list[int]:
    """Processes with the token among their arguments; never this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if token.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def digest_tree(folder: Path) -> str:
    """Names, kinds, modes, times and contents of everything in a folder."""
    digest = hashlib.sha256()
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        digest.update(repr((str(path), status.st_mode, status.st_mtime_ns, status.st_size, content)).encode())
    return digest.hexdigest()


def daemonise(token: str) -> str:
    """A deed: leave a daemon behind that left its parent, its session and its environment."""
    sleeper = "'import time; time.sleep(600) # daemon' + " + repr(f"-{token}")
    return (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        os.execve(sys.executable, [sys.executable, '-c', {sleeper}], {{}})\n    os._exit(0)\n"
    )


def linger(token: str) -> str:
    """A deed: leave a daemon behind, then take ten minutes over the first step."""
    return daemonise(token) + "import time; time.sleep(600)"


VANDAL = """
import pathlib, shutil
if pathlib.Path("made.txt").exists(): sys.exit("the view of an earlier window is still here")
pathlib.Path("made.txt").write_text("x")
pathlib.Path("data/precious.txt").write_text("spoilt")
pathlib.Path("train.py").unlink()
pathlib.Path("link").unlink()
shutil.move("data/inner", "data/moved")
os.chmod("data", 0o700)
os.mkdir("locked"); pathlib.Path("locked/file").write_text("x"); os.chmod("locked", 0)
pathlib.Path(os.path.expanduser("~/amdahl-leak")).write_text("x")
pathlib.Path("/tmp/amdahl-leak").write_text("x")
pathlib.Path("/var/tmp/amdahl-leak").write_text("x")
pathlib.Path("/dev/shm/amdahl-leak").write_text("x")
try:
    pathlib.Path("/usr/amdahl-leak").write_text("x")
except OSError:
    pass
else:
    sys.exit("what is no folder of the job's can be written to")
"""
"""Writes, deletes, renames and re-modes whatever it can reach; insists that each window starts afresh."""

LEAKS = (
    "~/amdahl-leak",
    "/tmp/amdahl-leak",
    "/var/tmp/amdahl-leak",
    "/dev/shm/amdahl-leak",
    "/usr/amdahl-leak",
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


LOOP = """
import asyncio, json, sys
sys.path[:0] = sys.argv[4].split(":")
from pathlib import Path
import test_local_runner as t

async def run():
    runner = t.LocalRunner(Path(sys.argv[1]), Path(sys.argv[2]), "test", machine=t.NODE)
    tuning = json.loads(sys.argv[5])
    job = t.make_job(sys.argv[3], tuning)
    kind = runner._choose_view(job).kind
    try:
        await runner.submit(job, t.make_request())
    except (t.RunRefusedError, t.RunnerUnavailableError) as error:
        return print(json.dumps([kind, "refused", str(error)]))
    state = await t.wait_for_end(runner, "pydocs-d0")
    await runner.stop("pydocs-d0")
    print(json.dumps([kind, state.summary, state.failure]))

asyncio.run(run())
"""
"""A loop of its own: run one block, print the view it had, its summary and failure."""


def start_loop(
    prefix: list[str], state: Path, base: Path, deed: str, tuning: dict[str, Any] | None = None
) -> subprocess.Popen[str]:
    """Start a loop below a command that changes what the machine allows."""
    folders = ":".join(str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[1]))
    arguments = [str(state), str(base), deed, folders, json.dumps(tuning or {})]
    return subprocess.Popen([*prefix, sys.executable, "-c", LOOP, *arguments], stdout=subprocess.PIPE, text=True)


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


BOUND = """
import pathlib, tempfile
assert not pathlib.Path("made.txt").exists()
pathlib.Path("made.txt").write_text("x")
pathlib.Path("data/precious.txt").write_text("spoilt")
pathlib.Path("data/inner/deep.bin").unlink()
tempfile.NamedTemporaryFile().write(b"x")
pathlib.Path("/dev/null").write_text("x")
for path in (os.path.expanduser("~/amdahl-leak"), "/tmp/amdahl-leak", "/usr/amdahl-leak"):
    try:
        pathlib.Path(path).write_text("x")
    except OSError:
        continue
    sys.exit(path + " can be written to")
"""
"""Writes in its working directory and its temporary folder; insists that it cannot write elsewhere."""


class TestRefusing:
    @pytest.mark.parametrize(
        ("job", "words"),
        [
            pytest.param(
                make_job(env=[{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
                "env TOKEN: valueFrom cannot be had on one machine; give it a value",
                id="valueFrom",
            ),
            pytest.param(make_job(envFrom=[{"secretRef": {"name": "s"}}]), "envFrom: cannot be had", id="envFrom"),
            pytest.param(
                make_job(env=[{"name": "AMDAHL_SEED", "value": "1"}]), "AMDAHL_SEED: names beginning with", id="ours"
            ),
            pytest.param(make_job(workingDir="nowhere"), "workingDir", id="no such folder"),
            pytest.param(make_job(resources={"limits": {"memory": "lots"}}), "'lots' is no resource", id="memory"),
            pytest.param(
                make_job(tuning={"trial": {"scratchPaths": ["/no/such/folder"]}}),
                "does not exist; create it",
                id="scratch",
            ),
        ],
    )
    def test_what_cannot_be_had_is_refused_with_the_fix(
        self, runner: LocalRunner, job: TrainingJob, words: str
    ) -> None:
        """Before anything is started, with field and fix."""
        assert any(words in line for line in runner.find_obstacles(job))
        with pytest.raises(RunRefusedError, match=words):
            asyncio.run(runner.submit(job, make_request()))
        assert not (runner._runs_dir / "pydocs-d0").exists()

    def test_several_replicas_are_refused(self, runner: LocalRunner) -> None:
        """One machine is one replica."""
        job = make_job()
        job = job.model_copy(update={"spec": job.spec.model_copy(update={"replicas": 2})})
        assert "set 1, or use a cluster" in runner.find_obstacles(job)[0]

    def test_a_state_folder_that_cannot_be_used_says_so(self, tmp_path: Path, base: Path) -> None:
        """A file where the folder should be stands for any storage that refuses."""
        (tmp_path / "state").write_text("")
        runner = LocalRunner(tmp_path / "state", base, "test", machine=NODE)
        with pytest.raises((RunnerUnavailableError, RunRefusedError), match="state"):
            asyncio.run(runner.submit(make_job(), make_request()))

    @pytest.mark.parametrize(
        ("environ", "folder"),
        [
            ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/amdahl-loop"),
            ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/amdahl-loop"),
            ({"HOME": "/h"}, "/h/.local/state/amdahl-loop"),
        ],
    )
    def test_the_state_folder_follows_the_xdg_convention(self, environ: dict[str, str], folder: str) -> None:
        """Relative values are ignored, as the convention demands."""
        assert default_state_dir(environ) == Path(folder)
