"""What does a run's folder say? It is the run's only trace, and read again by whoever comes after a crash."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from amdahl_loop.adapters.local.keeper import RESULT_FILE, RUN_FILE
from amdahl_loop.adapters.local.processes import ProcessId, remove_tree
from amdahl_loop.domain.runs import Finished
from amdahl_loop.domain.telemetry import MAX_SUMMARY_BYTES

KEPT_LOGS = 20
"""Runs whose output is kept; the supervisor bounds each window's to one MiB."""

MAX_TIME_LINE_BYTES = 64 * 2**20
"""Of one rank; its own limit is a third of that."""


class Kept(NamedTuple):
    """Who keeps a run, and since when; None while it waits for the machine's turn."""

    keeper: ProcessId
    started_at_s: float | None


class Traces:
    """The folder of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    @property
    def block_dir(self) -> Path:
        """What the supervisor and the training may write to."""
        return self.run_dir / "block"

    def note_request(self, plan_hash: str, devices: int) -> None:
        """Remember under which plan the run was started, and what it holds."""
        (self.run_dir / "request.json").write_text(json.dumps({"planHash": plan_hash, "devices": devices}))

    def is_of(self, plan_hash: str) -> bool:
        """Whether the run was started under this plan."""
        return (_read_json(self.run_dir / "request.json") or {}).get("planHash") == plan_hash

    @property
    def devices(self) -> int:
        """Devices that the run holds."""
        return int((_read_json(self.run_dir / "request.json") or {}).get("devices", 1))

    def read_kept(self) -> Kept | None:
        """The keeper as it noted itself; None when it has not, or there is no such run."""
        raw = _read_json(self.run_dir / RUN_FILE)
        return None if raw is None else Kept(ProcessId(*raw["keeper"]), raw["started_at_s"])

    @property
    def is_over(self) -> bool:
        """Whether the keeper noted an end."""
        return (self.run_dir / RESULT_FILE).exists()

    def read_finished(self, node: str) -> Finished | None:
        """How the run ended, if its keeper saw it end.

        Where the disk was full no summary is believed: it would blame an arm for the machine.
        """
        result = _read_json(self.run_dir / RESULT_FILE)
        if result is None:
            return None
        summary = "" if result["full"] else self.read_summary()
        why = str(result["full"] or result["why"])
        last = self._read_last_words()
        words = f"the supervisor ended with exit code {result['code']}" + (f": {last}" if last else "")
        return Finished(
            summary=summary,
            failure=why if why or summary else words[:200],
            node=node,
            started_at_s=result["started_at_s"],
            held_device_s=self.devices * result["held_s"],
        )

    def describe_lost_keeper(self) -> str:
        """Why a keeper may have ended without noting how its run did."""
        last = self._read_last_words()
        if last:
            return f"the run's keeper failed: {last}"[:200]
        return "the run's keeper was killed, most likely for want of memory; free some or lower the job's limit"

    def _read_last_words(self) -> str:
        """The last line that the keeper or the supervisor printed; they print errors only."""
        return (_read_tail(self.run_dir / "keeper.log").splitlines() or [""])[-1]

    def keep_logs(self, logs_dir: Path) -> None:
        """Move what the windows printed to `logs_dir/<run>`, and forget all but the newest runs' logs."""
        logs = sorted(self.block_dir.glob("window-*.log"))
        with contextlib.suppress(OSError):  # a full disk: the logs are lost, the end of the run is not
            target = logs_dir / self.run_dir.name
            target.mkdir(parents=True, exist_ok=True)
            for log in logs:
                log.replace(target / log.name)
            runs = sorted(logs_dir.iterdir(), key=lambda path: path.stat().st_mtime)
            for old in runs[:-KEPT_LOGS]:
                remove_tree(old)

    def read_summary(self) -> str:
        """What the supervisor left, at most one byte more than is allowed; the training could have written it too."""
        return _read_at_most(self.block_dir / "summary.json", MAX_SUMMARY_BYTES + 1).decode(errors="replace")


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Events of the time lines that the ranks left; the training could have written the files too."""
    return [event for path in sorted(run_dir.rglob("trace-*.json")) for event in _read_time_line(path)]


def _read_time_line(path: Path) -> list[dict[str, Any]]:
    """A JSON array with one event a line, whose end is missing when the program was killed; none if it is not that."""
    whole, _, _ = _read_at_most(path, MAX_TIME_LINE_BYTES).rpartition(b"\n")
    try:
        events = json.loads(whole if whole.endswith(b"]") else whole.rstrip(b",") + b"]")
    except (ValueError, RecursionError):
        return []
    return [event for event in events if isinstance(event, dict)] if isinstance(events, list) else []


def _read_at_most(path: Path, limit_bytes: int) -> bytes:
    """The beginning of a file that the training may have put there; nothing where it cannot be read."""
    with contextlib.suppress(OSError):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags), "rb") as file:
            return file.read(limit_bytes)
    return b""


def _read_json(path: Path) -> dict[str, Any] | None:
    """A file of ours, written in one step; None when it is not there."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _read_tail(path: Path) -> str:
    """The last 2,000 bytes of a log."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        return file.read().decode(errors="replace").strip()
    return ""
