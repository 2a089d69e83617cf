"""Runs as local processes for tests: jobs that do a deed, their reports, and loops on lesser machines."""

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from amdahl_loop.adapters.local.machine import Machine
from amdahl_loop.adapters.local.runner import LocalRunner
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Finished, Running, RunRequest, RunState, WindowRequest
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


LOOP = """
import asyncio, json, sys
sys.path[:0] = [sys.argv[4]]
from pathlib import Path
import local_builders as t
from amdahl_loop.adapters.local.runner import LocalRunner, RunnerUnavailableError, RunRefusedError

async def run():
    runner = LocalRunner(Path(sys.argv[1]), Path(sys.argv[2]), "test", machine=t.NODE)
    tuning = json.loads(sys.argv[5])
    job = t.make_job(sys.argv[3], tuning)
    kind = runner._choose_view(job).kind
    try:
        await runner.submit(job, t.make_request())
    except (RunRefusedError, RunnerUnavailableError) as error:
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
    arguments = [str(state), str(base), deed, str(Path(__file__).parent), json.dumps(tuning or {})]
    return subprocess.Popen([*prefix, sys.executable, "-c", LOOP, *arguments], stdout=subprocess.PIPE, text=True)
