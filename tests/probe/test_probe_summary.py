"""The summary: at most 1,500 bytes, whole or recognisably not, its outcomes the last thing to go."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from amdahl_probe import summary
from amdahl_probe.summary import MAX_BYTES, Block, Entry
from amdahl_probe.windows import Numbers

COUNT = st.integers(0, 2**62)
PAIR = st.tuples(COUNT, COUNT)
NUMBERS = st.builds(
    Numbers,
    COUNT, COUNT, COUNT, COUNT, st.tuples(*[st.integers(0, 1000)] * 9), st.just("0123abcd"),
    st.none() | st.floats(0, 1e12), COUNT, st.just("0123abcd"), st.none() | st.just("89abcdef"),
    st.none() | st.floats(-1e38, 1e38), st.none() | st.tuples(COUNT, COUNT, COUNT), st.none() | COUNT,
    st.none() | COUNT, st.none() | PAIR, st.none() | st.integers(-1000, 10**6), st.none() | PAIR, st.booleans(),
)  # fmt: skip
ENTRIES = st.builds(
    Entry, st.sampled_from("AB"), st.integers(0, 99), st.booleans(), st.sampled_from(["ok", "crash", "no_report"]),
    st.none() | st.integers(-64, 255), st.text(max_size=300), st.none() | NUMBERS, st.none() | COUNT, st.none() | COUNT,
)  # fmt: skip
BLOCKS = st.builds(
    Block, st.text(max_size=200), st.sampled_from(["running", "done", "error"]),
    st.none() | st.tuples(st.sampled_from("AB"), st.integers(0, 99)), st.booleans(), st.integers(1, 512),
    st.lists(ENTRIES, max_size=12).map(tuple), st.text(max_size=500),
)  # fmt: skip

NORMAL = Numbers(
    steps=41, samples=656, devices=1, wall_us=2_013_555, phases_ppk=(0, 0, 0, 641, 330, 0, 20, 0, 9),
    shape="1f2e3d4c", elements_per_sample=64.125, distinct_ppk=1000, ids="9a8b7c6d", losses="5e6f7a8b",
    mean_loss=2.31251234, saves=(3, 20111, 150), step_us=49_111, step_sd_us=1_234, loader=(24_100, 310),
    clock_ppk=-12, slowest=(0, 12), offset_applied=True,
)  # fmt: skip


def make_entry(**changes: Any) -> Entry:
    """A window that went well."""
    fields: dict[str, Any] = {"arm": "A", "index": 0, "scored": True, "outcome": "ok", "numbers": NORMAL}
    return Entry(**{**fields, "startup_ms": 4100, "mem_mib": 812, **changes})


def render(*entries: Entry, **changes: Any) -> dict[str, Any]:
    """Render a block and read it back."""
    block = Block("pydocs-e1-d0", "running", ("B", 1), True, 2, entries)
    data = summary.render(block._replace(**changes))
    assert len(data) <= MAX_BYTES
    assert summary.check(data)
    return dict(json.loads(data))


@given(BLOCKS)
def test_any_block_fits_and_is_whole(block: Block) -> None:
    """Whatever the windows hold: at most 1,500 bytes of ASCII JSON with a true checksum."""
    data = summary.render(block)

    assert len(data) <= MAX_BYTES
    assert summary.check(data)
    assert data.isascii()


@given(BLOCKS, st.data())
def test_damage_is_found(block: Block, data: st.DataObject) -> None:
    """Cut short or with one byte changed, a summary is not whole."""
    rendered = summary.render(block)
    cut = data.draw(st.integers(0, len(rendered) - 1))
    digit = next(at for at in range(len(rendered) - 1, 0, -1) if rendered[at : at + 1].isdigit())
    changed = b"%d" % (9 - int(rendered[digit : digit + 1]))

    assert not summary.check(rendered[:cut])
    assert not summary.check(rendered[:digit] + changed + rendered[digit + 1 :])


def test_the_keys_of_the_contract() -> None:
    """A full window has every key that its outcome allows."""
    block = render(make_entry())

    assert sorted(block) == ["at", "cpus", "crc", "live", "run", "state", "v", "w"]
    assert block["w"] == [
        {
            "a": "A", "i": 0, "x": "ok", "n": 41, "s": 656, "d": 1, "us": 2013555, "ph": [0, 0, 0, 641, 330, 0, 20, 0, 9],
            "sh": "1f2e3d4c", "el": 64.125, "di": 1000, "id": "9a8b7c6d", "ls": "5e6f7a8b", "lm": 2.31251234,
            "sv": [3, 20111, 150], "st": 49111, "sd": 1234, "su": 4100, "lb": [24100, 310], "mem": 812, "ck": -12,
            "sk": [0, 12], "of": 1,
        }
    ]  # fmt: skip


def test_four_windows_fit_with_everything() -> None:
    """An ABBA block of ordinary windows loses nothing."""
    entries = [make_entry(index=at, why="as expected") for at in range(4)]

    assert render(*entries)["w"] == [render(entry)["w"][0] for entry in entries]


def test_reasons_go_first_then_unscored_windows() -> None:
    """Outcomes of scored windows stay to the last."""
    long = [make_entry(index=at, why="y" * 80) for at in range(4)]
    assert [sorted(set(window) & {"why", "sk"}) for window in render(*long)["w"]] == [["sk"]] * 4

    six = [make_entry(index=at, scored=at > 1) for at in range(6)]
    assert [window["i"] for window in render(*six)["w"]] == [2, 3, 4, 5]

    many = [make_entry(index=at, outcome="oom" if at % 2 else "ok", code=-9) for at in range(14)]
    assert [window["x"] for window in render(*many)["w"]] == ["ok", "oom"] * 7


def test_what_does_not_exist_is_left_out() -> None:
    """A window that crashed before its first step has its outcome and little else."""
    lost = make_entry(outcome="crash", code=1, why='said "no"\n\u2028', numbers=None, startup_ms=None, mem_mib=None)

    assert render(lost)["w"] == [{"a": "A", "i": 0, "x": "crash", "xc": 1, "why": "said ?no???"}]
