"""Untrusted lines become frozen values or refusals; the recorder's own lines are all believed."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_probe import records
from amdahl_probe.emit import MAX_LINE_BYTES, Batches, Recorder, StepRecord, process_start_ns
from amdahl_probe.records import Disabled, Knobs, Offset, Other, Refused, Save, Start, Startup, Step
from amdahl_probe.tail import Tail

GOOD = {
    "k": "step", "t": 20, "i": 0, "w": 10, "ph": {"compute": 10}, "n": 8, "el": 64, "sig": "0000000a",
    "shape": "0000000b", "ids": "0000000c", "loss": 1.5, "seq": 0, "lb": [1, 2, 3], "tags": ["gc"],
}  # fmt: skip


def dump(**changes: Any) -> bytes:
    """A good step line with fields changed."""
    return json.dumps({**GOOD, **changes}).encode()


def test_a_good_line_is_a_step() -> None:
    """Phases in the contract's order; all else as written."""
    step = records.parse(dump())

    assert isinstance(step, Step)
    assert (step.phases_ns, step.loader, step.tags) == ((0, 0, 0, 0, 10, 0, 0, 0, 0), (1, 2, 3), ("gc",))


@pytest.mark.parametrize(
    "line",
    [
        dump(w=-1),
        dump(w=11),
        dump(w=10.0),
        dump(w=True),
        dump(n=float("nan")),
        dump(n=1 << 63),
        dump(i="0"),
        dump(loss=float("inf")),
        dump(loss="1"),
        dump(ph={"compute": 10, "magic": 0}),
        dump(ph=[10]),
        dump(sig="0000000A"),
        dump(sig="short"),
        dump(lb=[1, 2]),
        dump(lb=[1, -2, 3]),
        dump(k="start", v="amdahl.step/2"),
        dump(k="start", v="amdahl.step/1", rank=0, world=1, live=False, dtype="not a name"),
        dump(note="x" * MAX_LINE_BYTES),
        json.dumps({key: value for key, value in GOOD.items() if key != "w"}).encode(),
        b'{"k":"start","v":"amdahl.step/1","rank":9999999,"world":1,"live":false}',
        b"[" * 1500,
        b"null",
        b"\xff\xfe",
        b"",
    ],
)
def test_what_is_no_record_is_refused_with_a_reason(line: bytes) -> None:
    """NaN, negative, huge, mistyped, too long, too deep: never an exception, never a value."""
    refused = records.parse(line)

    assert isinstance(refused, Refused)
    assert refused.why


@given(st.binary(max_size=2100) | st.text(max_size=300).map(str.encode))
def test_no_bytes_raise(line: bytes) -> None:
    """Anything at all can be parsed."""
    records.parse(line)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_no_json_raises(value: Any) -> None:
    """Any JSON in any field can be parsed."""
    for name in GOOD:
        records.parse(json.dumps({**GOOD, name: value}).encode())


def test_the_recorder_and_the_parser_agree(tmp_path: Path) -> None:
    """Every kind of line the recorder writes is understood, in order, through the tail that the supervisor uses."""
    recorder = Recorder(str(tmp_path), rank=3, world=4, clock=lambda: 77)
    recorder.start("cpu", live=True, by="trainer", t0_ns=5, dtype="bfloat16")
    recorder.knob(0, {"dataloaderWorkers": 2, **{f"k{n}": "v" * 500 for n in range(30)}}, {"pinMemory": "r" * 500})
    recorder.offset(0, 64, 7, True)
    recorder.startup(12, {"import": 5})
    recorder.step(
        StepRecord(0, 50, {"compute": 7, "input": 3}, 8, 64, "0" * 8, "1" * 8, "2" * 8, float("nan"), tags=["eval"])
    )
    recorder.save(9, False, 1, at_ns=60)
    recorder.durable(9, False, 1, 11)
    recorder.disabled("d" * 5000)
    recorder.end(1, "exit")
    recorder.close()

    lines = (tmp_path / "rank-3.jsonl").read_bytes().splitlines()

    assert max(map(len, lines)) <= MAX_LINE_BYTES
    parsed = [records.parse(line) for line in lines]
    assert [type(record) for record in parsed] == [Start, Knobs, Offset, Startup, Step, Save, Save, Disabled, Other]
    assert parsed[:2] == [Start(3, 4, True, "bfloat16"), Knobs(0, ("pinMemory",))]
    step = parsed[4]
    assert isinstance(step, Step)
    assert (step.wall_ns, step.loss) == (10, None)
    assert parsed[5:7] == [Save(60, 1, 9, False), Save(77, 1, 9, True)]
    tail = Tail(tmp_path)
    assert tail.poll() == 9
    assert tail.logs[3].steps == [step]


def test_a_forked_child_has_no_say(tmp_path: Path) -> None:
    """It holds its parent's descriptor, and neither writes to it nor ends it."""
    recorder = Recorder(str(tmp_path))
    child = os.fork()
    if child == 0:
        recorder.end(1, "exit")
        recorder.close()
        os._exit(0)
    os.waitpid(child, 0)
    recorder.end(2, "exit")

    (line,) = (tmp_path / "rank-0.jsonl").read_bytes().splitlines()
    assert json.loads(line)["steps"] == 2


def test_what_is_written_too_late_is_nowhere(tmp_path: Path) -> None:
    """A descriptor that another thread is about to write to when the file ends is no other file's."""
    recorder = Recorder(str(tmp_path))
    written, write = [], os.write

    def close_first(fd: int, line: bytes) -> int:
        recorder.close()
        (tmp_path / "other").write_bytes(b"")
        with (tmp_path / "other").open("rb") as other:
            written.append(other.fileno() == fd)
            return write(fd, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", close_first)
        recorder.end(1, "exit")

    assert written == [False]
    assert ((tmp_path / "rank-0.jsonl").read_bytes(), (tmp_path / "other").read_bytes()) == (b"", b"")


@pytest.mark.parametrize("loss", [None, 1 / 3, -2.0, 1e-310, 5e300, float("nan"), float("-inf")])
@pytest.mark.parametrize("tags", [(), ("ckpt", "gc")])
def test_a_step_is_one_line_of_its_fields(loss: float | None, tags: tuple[str, ...], tmp_path: Path) -> None:
    """Numbers to the last bit; a loss that is no number is unknown."""
    recorder = Recorder(str(tmp_path))
    recorder.step(
        StepRecord(
            3, 50, {"other": 1, "compute": 7}, 8, 64, "0000000a", "fedcba98", "0" * 8, loss, 2, Batches(1, 2, 3), tags
        )
    )

    (line,) = (tmp_path / "rank-0.jsonl").read_bytes().splitlines()
    assert json.loads(line) == {
        "k": "step", "t": 50, "i": 3, "w": 8, "ph": {"other": 1, "compute": 7}, "n": 8, "el": 64, "sig": "0000000a",
        "shape": "fedcba98", "ids": "00000000", "loss": loss if loss is not None and math.isfinite(loss) else None,
        "seq": 2, "lb": [1, 2, 3], "tags": list(tags),
    }  # fmt: skip


def test_batches_add_up() -> None:
    """Count, sum in nanoseconds, squares in square microseconds."""
    assert Batches().plus(3_000_000).plus(1_500) == (2, 3_001_500, 9_000_001)


def test_a_disk_that_refuses_ends_the_recording_and_not_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr; later records are dropped."""
    (tmp_path / "rank-0.jsonl").symlink_to("/dev/full")
    recorder = Recorder(str(tmp_path))
    recorder.startup(1)
    recorder.end(0, "exit")

    assert capfd.readouterr().err.count("amdahl_probe: telemetry ends here") == 1


def test_a_process_began_before_now() -> None:
    """Nanoseconds of the same clock as all records; a process that is not there began now."""
    mine, nobody = process_start_ns(), process_start_ns(2**22 + 1)

    assert mine <= nobody


class TestTail:
    """Files that a job writes, read as they grow."""

    def test_half_a_line_waits_for_its_end(self, tmp_path: Path) -> None:
        """Records are whole lines."""
        path, tail = tmp_path / "rank-0.jsonl", Tail(tmp_path)
        path.write_bytes(dump() + b"\n" + dump(i=1)[:20])
        assert tail.poll() == 1
        path.write_bytes(dump() + b"\n" + dump(i=1) + b"\n")

        assert tail.poll() == 1
        assert [step.index for step in tail.logs[0].steps] == [0, 1]

    def test_a_file_that_shrinks_is_a_new_run(self, tmp_path: Path) -> None:
        """What the rank said before is forgotten."""
        path, tail = tmp_path / "rank-0.jsonl", Tail(tmp_path)
        path.write_bytes(dump() + b"\n" + dump(i=1) + b"\n")
        tail.poll()
        path.write_bytes(dump(i=0) + b"\n")
        tail.poll()

        assert [step.index for step in tail.logs[0].steps] == [0]

    def test_links_pipes_and_strangers_are_not_opened(self, tmp_path: Path) -> None:
        """A link could point anywhere, a pipe could block for ever."""
        (tmp_path / "secret").write_bytes(dump() + b"\n")
        (tmp_path / "rank-0.jsonl").symlink_to(tmp_path / "secret")
        os.mkfifo(tmp_path / "rank-1.jsonl")
        (tmp_path / "rank-x.jsonl").write_bytes(dump() + b"\n")
        tail = Tail(tmp_path)

        assert tail.poll() == 0
        assert all(not log.steps for log in tail.logs.values())

    def test_a_line_without_end_is_refused_once(self, tmp_path: Path) -> None:
        """Its memory is bounded, and it voids the window."""
        path, tail = tmp_path / "rank-0.jsonl", Tail(tmp_path)
        path.write_bytes(b"x" * 100_000)
        assert tail.poll() == 0
        path.write_bytes(b"x" * 200_000 + b"\n")
        tail.poll()

        assert len(tail.logs[0].refused) == 1

    def test_a_directory_that_is_not_there_yet_is_empty(self, tmp_path: Path) -> None:
        """The job has not come so far."""
        assert Tail(tmp_path / "later").poll() == 0
