"""How is one script run? From a copy of its clone, once under probe and profiler, once bare, with the same options.

A run that is there is kept; another commit of the clone starts anew. The probe enters as in any job: its zip on
`PYTHONPATH`, a folder for its records, and nothing else. py-spy is the parent of the script; its own exit code says
nothing (it may fail to reap a script that has ended well), so what a watched run printed and saved is held against
the bare run's.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from catalog import Script

RATE_HZ = 200
LOSS = re.compile(r"loss:? +(-?[0-9.]+(?:e-?\d+)?)", re.IGNORECASE)
LAG = re.compile(r"py-spy> ([0-9.]+)s behind in sampling")


@dataclass(frozen=True)
class Run:
    """One finished run: losses as printed, digest of the checkpoint, by how much the profiler was late at most."""

    losses: list[str]
    saved_sha: str
    lag_s: float


@dataclass(frozen=True)
class Pair:
    """Both runs of a script, and where the records of the watched one lie."""

    commit: str
    probe: str
    work: Path
    stacks: Path
    records: Path
    watched: Run
    bare: Run

    @property
    def is_same(self) -> bool:
        """Whether both printed the same losses and saved the same bytes."""
        ours, bare = self.watched, self.bare
        return bool(bare.losses) and (ours.losses, ours.saved_sha) == (bare.losses, bare.saved_sha)


def run_both(script: Script, clone: Path, home: Path, packages: Path, probe: Path) -> Pair:
    """Run what has not been run of one script. Ends the program when a run fails."""
    commit = find_commit(script, clone)
    work, kept, stacks, telemetry = home / "work", home / "kept.json", home / "stacks.json", home / "telemetry"
    if not kept.is_file() or json.loads(kept.read_text())["commit"] != commit:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(clone, work, ignore=shutil.ignore_patterns(".git"))
        if script.prepare is not None:
            script.prepare(work)
        kept.write_text(json.dumps({"commit": commit}))
    base = [str(packages), str(work)]
    content = json.loads(kept.read_text())
    if "watched" not in content:
        shutil.rmtree(telemetry, ignore_errors=True)
        telemetry.mkdir()
        profiler = [str(packages / "bin" / "py-spy"), "record", "--rate", str(RATE_HZ), "--idle"]
        profiler += ["--format", "speedscope", "--output", str(stacks), "--"]
        env = {"AMDAHL_TELEMETRY_DIR": str(telemetry), "PYTHONPATH": os.pathsep.join([str(probe), *base])}
        watched = run(script, work, home / "watched.log", profiler, env)
        content |= {"probe": probe.name, "watched": asdict(watched)}
        kept.write_text(json.dumps(content))
    if "bare" not in content:
        content["bare"] = asdict(run(script, work, home / "bare.log", [], {"PYTHONPATH": os.pathsep.join(base)}))
        kept.write_text(json.dumps(content))
    both = (Run(**content["watched"]), Run(**content["bare"]))
    return Pair(commit, content["probe"], work, stacks, telemetry / "rank-0.jsonl", *both)


def find_commit(script: Script, clone: Path) -> str:
    """The commit of a clone. Ends the program unless the script is as it was committed."""
    git = ["git", "-C", str(clone)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run([*git, "diff", "--quiet", "HEAD", "--", script.folder], check=True)
    except (subprocess.CalledProcessError, NotADirectoryError):
        sys.exit(f"{clone}: not an unmodified clone that holds {script.folder}; clone it again")
    return commit


def run(script: Script, work: Path, log: Path, profiler: list[str], told: dict[str, str]) -> Run:
    """Run a script to its end. Ends the program when it fails."""
    saves = work / script.folder / script.saves
    saves.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AMDAHL_", "PYTHON"))}
    env = {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1", **told}
    command = [*profiler, sys.executable, *script.command]
    with log.open("w") as text:
        done = subprocess.run(
            command, check=False, cwd=work / script.folder, env=env, stdout=text, stderr=subprocess.STDOUT
        )
    if (done.returncode != 0 and not profiler) or not saves.is_file():
        sys.exit(
            f"{script.name} ended with {done.returncode}, {script.saves} or an exit code of 0 is missing: see {log}"
        )
    said = log.read_text()
    lag_s = max(map(float, LAG.findall(said)), default=0.0)
    return Run(LOSS.findall(said), hashlib.sha256(saves.read_bytes()).hexdigest(), lag_s)
