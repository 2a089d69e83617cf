"""The supervisor around real processes: one word for each way to end, and nothing left behind."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amdahl_probe import summary


def run(start: Callable[..., Any], plan: dict[str, Any], **environment: str) -> tuple[int, dict[str, Any]]:
    """Run a block to its end: exit code and summary."""
    return finish(start(plan, **environment), plan)


def finish(process: Any, plan: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Wait for the end of a block: exit code and summary."""
    _, errors = process.communicate(timeout=120)
    assert errors == ""
    data = Path(plan["dir"], "summary.json").read_bytes()
    assert summary.check(data)
    return process.returncode, json.loads(data)


def find_processes(token: str) -> list[int]:
    """Living processes that have `token` among their arguments."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdecimal() else []
            alive = folder.name.isdecimal() and (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            continue
        if token.encode() in arguments and alive:
            found.append(int(folder.name))
    return found


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait for something that must happen; the time only bounds a failing test."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


class TestRelaunch:
    def test_a_block_measures_each_window_in_a_fresh_launch(
        self, make_plan: Any, start_supervisor: Any, tmp_path: Path
    ) -> None:
        """ABBA: four ok windows with their own seeds and offsets, exact counts, and the log of each."""
        term = tmp_path / "termination-log"
        term.write_text("x" * 3000)  # the kubelet's file exists before, and may hold anything
        plan = make_plan(("A", "", {}), ("B", "", {}), ("B", "", {}), ("A", "", {"steps": 4}))

        code, block = run(start_supervisor, plan, AMDAHL_TERMINATION_LOG=str(term))

        assert code == 0
        assert (block["v"], block["state"], block["run"], block["live"]) == ("amdahl.block/1", "done", "block-1", 0)
        assert [(w["a"], w["i"], w["x"]) for w in block["w"]] == [
            ("A", 0, "ok"),
            ("B", 1, "ok"),
            ("B", 2, "ok"),
            ("A", 3, "ok"),
        ]
        assert [w["n"] >= 5 for w in block["w"]] == [True, True, True, False]
        proof = block["w"][3]
        assert (proof["n"], proof["s"], proof["id"], proof["di"]) == (4, 32, f"{0 + 1 + 2 + 3:08x}", 1000)
        assert proof["lm"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
        assert all(sum(w["ph"]) == 1000 and w["s"] == 8 * w["n"] and w["el"] == 8.0 for w in block["w"])
        assert json.loads(term.read_bytes()) == block
        assert sorted(path.name for path in Path(plan["dir"]).glob("*.log")) == [
            f"window-{n}.log" for n in ("A0", "A3", "B1", "B2")
        ]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "expected",
        [
            {"crash": ("crash", 1), "cuda_oom": ("oom", 1), "short": ("no_steps", 0)},
            {"hang": ("hang", None), "vanish": ("no_report", None), "disable": ("no_report", None), "nan": ("void", None)},
            {"idle": ("hang", None), "busy": ("no_steps", None), "silent": ("no_report", None), "lonely": ("void", None)},
        ],
        ids=", ".join,
    )  # fmt: skip
    def test_each_way_to_fail_has_its_word_and_the_block_goes_on(
        self, expected: dict[str, tuple[str, int | None]], make_plan: Any, start_supervisor: Any, tmp_path: Path
    ) -> None:
        """A window that is lost is recorded with its reason, and the next one is run. Blocks wait side by side."""
        plans = [make_plan(("B", way, {}), ("A", "", {}), dir=str(tmp_path / f"run-{way}")) for way in expected]
        processes = [start_supervisor(plan) for plan in plans]

        for (way, lost), process, plan in zip(expected.items(), processes, plans, strict=True):
            code, block = finish(process, plan)

            assert (code, block["state"]) == (0, "done"), way
            assert [(w["x"], w.get("xc")) for w in block["w"]] == [lost, ("ok", None)], way
            assert block["w"][0]["why"], way

    def test_memory_above_the_bound_is_oom(self, make_plan: Any, start_supervisor: Any) -> None:
        """The tree is killed, and the block goes on."""
        _, block = run(start_supervisor, make_plan(("B", "oom", {}), ("A", "", {}), mem_bytes=300 << 20))

        assert [(w["x"], w.get("xc")) for w in block["w"]] == [("oom", -9), ("ok", None)]
        assert block["w"][0]["mem"] > 300

    def test_ranks_are_summed_and_counted(self, make_plan: Any, start_supervisor: Any) -> None:
        """Two ranks: two devices, samples of both."""
        _, block = run(start_supervisor, make_plan(("A", "pair", {"steps": 6})))

        (window,) = block["w"]
        assert (window["x"], window["d"], window["n"], window["s"]) == ("ok", 2, 6, 96)

    def test_a_process_that_reports_a_tenth_of_its_time_is_found_out(
        self, make_plan: Any, start_supervisor: Any
    ) -> None:
        """The outside clock differs by nine tenths, whatever the machine's load: load only adds to our own clock."""
        _, block = run(start_supervisor, make_plan(("B", "crawl", {"warmup_s": 0, "measure_s": 0.01, "min_steps": 20})))

        assert block["w"][0]["ck"] < -800

    def test_a_command_that_cannot_run_is_a_crash(self, make_plan: Any, start_supervisor: Any) -> None:
        """Exit code 127, with the system's reason."""
        _, block = run(start_supervisor, make_plan(("A", "", {}), command=["/nowhere/python"]))

        assert (block["w"][0]["x"], block["w"][0]["xc"]) == ("crash", 127)
        assert "cannot run" in block["w"][0]["why"]

    def test_a_stubborn_process_and_a_daemon_are_gone_afterwards(
        self, make_plan: Any, start_supervisor: Any, tmp_path: Path
    ) -> None:
        """SIGTERM ignored, session left, parent gone: all ended by the end of the window."""
        plan = make_plan(("A", "stubborn", {}), ("A", "daemon", {}), ("A", "chatty", {}), grace_s=0.2)

        _, block = run(start_supervisor, plan)

        assert [w["x"] for w in block["w"]] == ["ok", "ok", "ok"]
        assert find_processes(str(tmp_path)) == []
        daemon = Path("/proc", (tmp_path / "daemon").read_text())
        assert wait_until(lambda: not daemon.exists())  # what was killed is there until its parent has looked
        log = Path(plan["dir"], "window-A2.log").read_text()
        assert log.startswith("first line\n")
        assert log.endswith("last line\n")
        assert len(log) < 1_100_000

    def test_scratch_is_emptied_between_windows(self, make_plan: Any, start_supervisor: Any, tmp_path: Path) -> None:
        """The second window finds no directory from the first (it would fail on one)."""
        plan = make_plan(("A", "scratch", {}), ("B", "scratch", {}), scratch_paths=[str(tmp_path / "scratch")])

        _, block = run(start_supervisor, plan)

        assert [w["x"] for w in block["w"]] == ["ok", "ok"]
        assert not (tmp_path / "scratch").exists()


class TestLive:
    def test_windows_are_switched_through_the_knob_file(
        self, make_plan: Any, start_supervisor: Any, tmp_path: Path
    ) -> None:
        """One process for all windows; a proof window gets a fresh one; a window that kills it is its own loss."""
        plan = make_plan(
            ("A", "live", {}),
            ("B", "live", {"save_every": None}),
            ("B", "live", {"knobs": {"dataloaderWorkers": 9}}),
            ("A", "live", {"steps": 4}),
            ("A", "live", {}),
            switch="live",
        )

        code, block = run(start_supervisor, plan)

        assert (code, block["live"]) == (0, 1)
        assert [(w["x"], w.get("xc")) for w in block["w"]] == [
            ("ok", None),
            ("ok", None),
            ("crash", 9),
            ("ok", None),
            ("ok", None),
        ]
        assert json.loads((tmp_path / "seen-2").read_text()) == {
            "seq": 2, "knobs": {"dataloaderWorkers": 1}, "window": {"offset": 64, "seed": 7}
        }  # fmt: skip
        assert sorted(path.name for path in Path(plan["dir"]).glob("telemetry-*")) == [
            "telemetry-1-A0", "telemetry-2-A3", "telemetry-3-A4"
        ]  # fmt: skip
        assert find_processes(str(tmp_path)) == []

    def test_a_process_that_cannot_switch_is_named(self, make_plan: Any, start_supervisor: Any) -> None:
        """A live plan around a relaunch-only process loses its windows at once, with the fix."""
        _, block = run(start_supervisor, make_plan(("A", "", {}), switch="live"))

        assert block["w"][0]["x"] == "no_report"
        assert "relaunch" in block["w"][0]["why"]


class TestEnd:
    def test_sigterm_stops_everything_and_says_so(self, make_plan: Any, start_supervisor: Any, tmp_path: Path) -> None:
        """State error, the window in progress `signal`, exit code 143, nothing left."""
        plan = make_plan(("A", "", {}), ("B", "daemon", {"measure_s": 600}))
        process = start_supervisor(plan)
        assert wait_until((tmp_path / "daemon").exists)

        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

        block = json.loads(Path(plan["dir"], "summary.json").read_bytes())
        assert process.returncode == 143
        assert (block["state"], block["why"], block["at"]) == ("error", "signal 15", ["B", 1])
        assert [w["x"] for w in block["w"]] == ["ok", "signal"]
        assert find_processes(str(tmp_path)) == []

    def test_the_deadline_ends_the_block(self, make_plan: Any, start_supervisor: Any, tmp_path: Path) -> None:
        """A block that runs out of time says in which window."""
        code, block = run(start_supervisor, make_plan(("A", "", {"measure_s": 600}), deadline_s=1.0))

        assert (code, block["state"], block["w"][0]["x"]) == (1, "error", "signal")
        assert "deadline" in block["why"]
        assert find_processes(str(tmp_path)) == []

    @pytest.mark.parametrize("victim", ["supervisor", "guard"])
    def test_kill_9_leaves_no_process(self, victim: str, make_plan: Any, start_supervisor: Any, tmp_path: Path) -> None:
        """Whoever dies, the daemon of the command dies too."""
        process = start_supervisor(make_plan(("A", "daemon", {"measure_s": 600})))
        assert wait_until((tmp_path / "daemon").exists)
        status = Path("/proc", (tmp_path / "pid").read_text(), "stat").read_text()
        guard = int(status.rsplit(")", 1)[1].split()[1])

        os.kill(process.pid if victim == "supervisor" else guard, signal.SIGKILL)
        process.communicate(timeout=60)

        assert wait_until(lambda: not find_processes(str(tmp_path)))

    def test_the_summary_names_the_window_before_it_runs(
        self, make_plan: Any, start_supervisor: Any, tmp_path: Path
    ) -> None:
        """So that the death of the whole container still says which arm died."""
        plan = make_plan(("B", "hang", {}), step_timeout_s=600.0)
        process = start_supervisor(plan)
        assert wait_until((tmp_path / "pid").exists)

        block = json.loads(Path(plan["dir"], "summary.json").read_bytes())
        process.kill()
        process.communicate(timeout=60)

        assert (block["state"], block["at"], block["w"]) == ("running", ["B", 0], [])
        assert wait_until(lambda: not find_processes(str(tmp_path)))

    def test_a_plan_that_cannot_be_read_is_refused_in_words(
        self, make_plan: Any, start_supervisor: Any, tmp_path: Path
    ) -> None:
        """Exit code 2; the field, its value and the fix on stderr and in the termination message."""
        term = tmp_path / "term"
        process = start_supervisor({**make_plan(("A", "", {})), "switch": "hop"}, AMDAHL_TERMINATION_LOG=str(term))
        _, errors = process.communicate(timeout=60)

        assert process.returncode == 2
        assert "plan.switch='hop'" in errors
        assert json.loads(term.read_bytes())["state"] == "error"
