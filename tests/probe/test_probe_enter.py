"""The supervisor as a pod starts it: the zip run as a script, in an environment that belongs to the image."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amdahl_probe.base import Base

TELL = "import json, os, sys; json.dump([sys.argv[2:], os.environ['PYTHONPATH']], open(sys.argv[1], 'w'))"


def run_as_a_pod_does(plan: dict[str, Any], probe_zip: Path, env: dict[str, str]) -> int:
    """The rendered command, with the plan in a variable."""
    command = [sys.executable, "-S", str(probe_zip), "--plan-env", "AMDAHL_PLAN"]
    ran = subprocess.run(command, env={**env, "AMDAHL_PLAN": json.dumps(plan)}, check=False, timeout=60)
    return ran.returncode


def test_the_images_own_path_stays_behind_the_probe(
    make_plan: Callable[..., dict[str, Any]], probe_zip: Path, bare_env: dict[str, str], tmp_path: Path
) -> None:
    """A PYTHONPATH that only the image sets reaches the program, after the probe and nothing else."""
    told = tmp_path / "told"
    plan = make_plan(("A", "", {}), command=[sys.executable, "-c", TELL, str(told)])

    assert run_as_a_pod_does(plan, probe_zip, {**bare_env, "PYTHONPATH": "/image/lib:/image/app"}) == 0

    _, path = json.loads(told.read_text())
    assert path == os.pathsep.join([str(probe_zip), "/image/lib", "/image/app"])


def test_the_command_sees_what_the_kubelet_would_have_put_there(
    make_plan: Callable[..., dict[str, Any]], probe_zip: Path, bare_env: dict[str, str], tmp_path: Path
) -> None:
    """Named variables of the container are filled in; the image's own, unknown and escaped ones stay as they are."""
    told = tmp_path / "told"
    words = ["--rank=$(JOB_COMPLETION_INDEX)", "$(WORKERS)", "$$(WORKERS)", "$(NOBODY)", "$(HOME)", "$(SECRET)"]
    plan = make_plan(
        ("A", "", {"env": {"WORKERS": "2"}}),
        command=[sys.executable, "-c", TELL, str(told), *words],
        inherit=["JOB_COMPLETION_INDEX", "NOBODY", "SECRET", "WORKERS"],
    )
    container = {"JOB_COMPLETION_INDEX": "3", "SECRET": "$(WORKERS)", "WORKERS": "0", "HOME": "/root"}

    assert run_as_a_pod_does(plan, probe_zip, {**bare_env, **container}) == 0

    arguments, _ = json.loads(told.read_text())
    assert arguments == ["--rank=3", "2", "$(WORKERS)", "$(NOBODY)", "$(HOME)", "$(WORKERS)"]


SAVE = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
seen = sorted(f"{path.name} {path.read_text()}" for path in folder.iterdir())
with open(sys.argv[2], "a") as told:
    told.write(" ".join(seen) + "\\n")
(folder / "step").write_text("0")
(folder / "more").write_text("x")
"""


def save_twice(plan: dict[str, Any], probe_zip: Path, env: dict[str, str]) -> list[str]:
    """Two windows of a program that writes to its folder; what each found there at its start."""
    assert run_as_a_pod_does(plan, probe_zip, env) == 0
    return Path(plan["command"][-1]).read_text().splitlines()


def test_every_launch_begins_from_the_jobs_checkpoint(
    make_plan: Callable[..., dict[str, Any]], probe_zip: Path, bare_env: dict[str, str], tmp_path: Path
) -> None:
    """A copy each time; the original is as it was, and nothing that a window wrote reaches the next."""
    scratch, base = tmp_path / "scratch" / "0", tmp_path / "base"
    scratch.mkdir(parents=True)
    base.mkdir()
    (base / "step").write_text("41")
    os.mkfifo(base / "pipe")
    windows = [(arm, "", {}) for arm in "AB"]
    command = [sys.executable, "-c", SAVE, str(scratch), str(tmp_path / "told")]
    plan = make_plan(*windows, command=command, scratch_paths=[str(scratch)], base_paths=[str(base)])

    assert save_twice(plan, probe_zip, bare_env) == ["step 41", "step 41"]
    assert (base / "step").read_text() == "41"
    assert list(scratch.iterdir()) == []


def test_without_a_checkpoint_a_launch_begins_from_nothing(
    make_plan: Callable[..., dict[str, Any]], probe_zip: Path, bare_env: dict[str, str], tmp_path: Path
) -> None:
    """The job has saved nothing yet, or its folder is not on storage that lasts."""
    scratch = tmp_path / "scratch" / "0"
    scratch.mkdir(parents=True)
    command = [sys.executable, "-c", SAVE, str(scratch), str(tmp_path / "told")]
    fields = {"command": command, "scratch_paths": [str(scratch)]}
    plan = make_plan(("A", "", {}), ("B", "", {}), **fields, base_paths=[str(tmp_path / "nothing")])

    assert save_twice(plan, probe_zip, bare_env) == ["", ""]


def test_a_checkpoint_too_large_for_scratch_storage_is_not_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so, and the launch begins from nothing."""
    scratch, source = tmp_path / "scratch", tmp_path / "base"
    source.mkdir()
    (source / "weights").write_bytes(bytes(2 << 20))

    Base([scratch], [source], max_bytes=1 << 20).restore()
    assert not scratch.exists()
    assert "begins without the checkpoint: 2 MiB" in capsys.readouterr().err

    Base([scratch], [source], max_bytes=4 << 20).restore()
    assert (scratch / "weights").stat().st_size == 2 << 20


def test_a_copy_is_as_the_original(tmp_path: Path) -> None:
    """Folders, links and times: a program that looks for its newest checkpoint finds the same one."""
    scratch, source = tmp_path / "scratch", tmp_path / "base"
    (source / "step-7").mkdir(parents=True)
    (source / "step-7" / "weights").write_text("x")
    (source / "latest").symlink_to("step-7")
    os.utime(source / "step-7" / "weights", (1e9, 1e9))
    os.utime(source / "step-7", (2e9, 2e9))

    Base([scratch], [source]).restore()

    assert (scratch / "latest" / "weights").read_text() == "x"
    assert (scratch / "latest").readlink() == Path("step-7")
    assert (scratch / "step-7" / "weights").stat().st_mtime == 1e9
    assert (scratch / "step-7").stat().st_mtime == 2e9


def test_a_target_of_another_user_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubelet makes the folder of a mount, and it is root's: nobody else may change its times or mode."""
    scratch, source = tmp_path / "scratch", tmp_path / "base"
    source.mkdir()
    scratch.mkdir()
    (source / "step").write_text("41")
    real = os.utime

    def refuse(path: Any, *arguments: Any, **more: Any) -> None:
        if Path(path) == scratch:
            raise PermissionError(1, "Operation not permitted")
        real(path, *arguments, **more)

    monkeypatch.setattr(os, "utime", refuse)
    Base([scratch], [source]).restore()
    assert (scratch / "step").read_text() == "41"
