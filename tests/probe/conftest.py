"""What the probe's tests share: the zip, the scripts, plans, and records."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amdahl_probe import bundle
from amdahl_probe.records import Save, Step
from amdahl_probe.spans import PHASES
from amdahl_probe.windows import RankLog
from probe import runs

SCRIPTS = Path(__file__).parent / "scripts"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which torch ran the scripts, and what it lacks of what they use: tests of that expected less."""
    if runs.look_at_torch.cache_info().currsize:
        torch = runs.look_at_torch()
        lacks = sorted(name for name, is_there in torch["has"].items() if not is_there)
        terminalreporter.write_line(
            f"scripts ran on torch {torch['version']}; it lacks: {', '.join(lacks) or 'nothing'}"
        )


@pytest.fixture(scope="session")
def probe_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip, built once."""
    return bundle.build(tmp_path_factory.mktemp("zip"))


@pytest.fixture(scope="session")
def bare_env() -> dict[str, str]:
    """This environment without anything that would enter or steer a probe."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AMDAHL_")}
    kept.pop("PYTHONPATH", None)
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def make_plan(tmp_path: Path, probe_zip: Path) -> Callable[..., dict[str, Any]]:
    """A plan around the fake trainer; a window is `(arm, behaviour, further fields)`."""

    def make(*windows: tuple[str, str, dict[str, Any]], **fields: Any) -> dict[str, Any]:
        listed = [
            {
                "arm": arm,
                "index": index,
                "scored": True,
                "knobs": {"dataloaderWorkers": index},
                "env": {"FAKE": behaviour},
                "offset": 64 * index,
                "seed": 7,
                "warmup_s": 0.02,
                "warmup_steps": 2,
                "measure_s": 0.05,
                "min_steps": 5,
                **changes,
            }
            for index, (arm, behaviour, changes) in enumerate(windows)
        ]
        return {
            "v": "amdahl.plan/1",
            "run": "block-1",
            "switch": "relaunch",
            "command": [sys.executable, str(SCRIPTS / "fake_trainer.py"), str(tmp_path), "$(FAKE)"],
            "cwd": str(tmp_path),
            "env": {},
            "probe": str(probe_zip),
            "dir": str(tmp_path / "run"),
            "startup_timeout_s": 15.0,  # a busy machine takes seconds to start Python
            "step_timeout_s": 6.0,
            "deadline_s": 90.0,
            "grace_s": 5.0,
            "mem_bytes": 4 << 30,
            "scratch_paths": [],
            "windows": listed,
            **fields,
        }

    return make


@pytest.fixture
def start_supervisor(
    tmp_path: Path, probe_zip: Path, bare_env: dict[str, str]
) -> Callable[..., "subprocess.Popen[str]"]:
    """Start the supervisor on a plan, as a pod would: from the zip."""

    def start(plan: dict[str, Any], **environment: str) -> "subprocess.Popen[str]":
        path = Path(f"{plan['dir']}.json")  # several may run at once, each with a directory of its own
        path.write_text(json.dumps(plan))
        return subprocess.Popen(
            [sys.executable, "-m", "amdahl_probe.supervise", str(path)],
            env={**bare_env, "PYTHONPATH": str(probe_zip), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def make_step() -> Callable[..., Step]:
    """A step record of 10 ms: 2 input, 7 compute, 1 other. `at` is its index, and its end is (at + 1) * 10 ms."""

    def make(at: int, wall_ms: float = 10, **changes: Any) -> Step:
        wall_ns = round(wall_ms * 1e6)
        spent = dict.fromkeys(PHASES, 0) | {"input": 2_000_000, "other": 1_000_000, "compute": wall_ns - 3_000_000}
        fields: dict[str, Any] = {
            "index": at,
            "end_ns": (at + 1) * 10_000_000,
            "wall_ns": wall_ns,
            "phases_ns": tuple(spent.values()),
            "samples": 8,
            "elements": 64,
            "sig": f"{at:08x}",
            "shape": "0000abcd",
            "ids": "00000001",
            "loss": 2.0,
            "seq": 0,
            "loader": (1, 2_000_000, 4_000_000),
            "tags": (),
        }
        return Step(**{**fields, **changes})

    return make


@pytest.fixture
def make_log(make_step: Callable[..., Step]) -> Callable[..., RankLog]:
    """A rank's log of `count` steps (or the given ones), each arriving 1 ms after its end."""

    def make(count: int = 20, steps: list[Step] | None = None, saves: tuple[Save, ...] = ()) -> RankLog:
        log = RankLog()
        for step in steps if steps is not None else [make_step(at) for at in range(count)]:
            log.add(step, step.end_ns + 1_000_000)
        for save in saves:
            log.add(save, save.end_ns)
        return log

    return make
