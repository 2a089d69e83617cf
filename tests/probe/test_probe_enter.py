"""The supervisor as a pod starts it: the zip run as a script, in an environment that belongs to the image."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
