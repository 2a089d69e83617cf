"""metrics.jsonl: a line for each step, over restarts, and the account of the run that follows from it."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path

import pytest
import torch

from amdahl_probe.emit import Batches
from amdahl_probe.spans import PHASES, Ledger
from amdahl_trainer import flops, journal
from amdahl_trainer.chief import Chief, Outlets, Step
from amdahl_trainer.console import Facts
from amdahl_trainer.data.counts import Counts
from amdahl_trainer.data.loader import Batch, RowsByPosition
from amdahl_trainer.data.order import Order
from amdahl_trainer.device import Reading
from amdahl_trainer.goodput import Began, Book, Spent
from amdahl_trainer.journal import Journal
from amdahl_trainer.mesh import Degrees
from amdahl_trainer.peers import Agreement, Place, Told
from amdahl_trainer.report import Reporter, Telemetry, count_squares, describe


def lines_of(directory):
    return [json.loads(line) for line in (directory / journal.NAME).read_text().splitlines()]


def of(kind, lines):
    return [line for line in lines if line["schema"] == f"trainer.{kind}/1"]


def train(make_engine, config, **parts):
    engine = make_engine(config, **parts)
    engine.run(lambda: None)
    engine.parts.reporter.close(engine.steps, "exit")
    return engine


def test_each_step_has_a_line_whose_phases_are_its_wall(make_engine, tiny, tmp_path):
    """Also: slots are valid tokens and padding, MFU is null on a CPU, and the last step knows its checkpoint."""
    train(make_engine, tiny({"run.max_steps": 5, "checkpoint.every_steps": 2}))
    lines = lines_of(tmp_path / "out")
    steps = of("step", lines)
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    for line in steps:
        assert sum(line["phases_ns"].values()) == line["wall_ns"]
        tokens = line["tokens"]
        assert tokens["valid"] + tokens["pad"] == tokens["slots"] == 8 * 64
        assert tokens["valid"] <= tokens["sum_len_sq"] <= 64 * tokens["valid"]
        assert line["mfu"] is None
        assert math.isfinite(line["loss"])
        assert line["ranks"]["slowest"] == 0
        assert line["ranks"]["excess_ns"] == 0
    assert [line["durable_step"] for line in steps] == [None, 2, 2, 4, 5]
    assert [line["tags"] for line in steps] == [["warmup"], [], ["ckpt"], [], ["ckpt"]]


@pytest.mark.parametrize(
    ("every_s", "durable"),
    [(1e-9, [1, 2, 3, 4]), (1e9, [None, None, None, 4]), (0.0, [None, None, None, 4])],
)
def test_checkpoints_are_made_as_often_as_the_clock_says(make_engine, tiny, tmp_path, every_s, durable):
    """After every step, or at the end alone; without the key no clock is asked."""
    train(make_engine, tiny({"run.max_steps": 4, "checkpoint.every_seconds": every_s}))
    assert [line["durable_step"] for line in of("step", lines_of(tmp_path / "out"))] == durable


def test_the_account_at_the_end_is_the_sum_of_the_lines(make_engine, tiny, tmp_path):
    """What was held is all that the ledger counted, from the start of the process to the last agreement."""
    ledger = Ledger()
    begun_ns = ledger.mark_ns
    engine = train(make_engine, tiny({"run.max_steps": 4}), ledger=ledger)
    lines = lines_of(tmp_path / "out")
    (account,) = of("goodput", lines)
    assert account["step"] == 4
    told = [line["all_ns"] for line in lines if "all_ns" in line]
    assert account["held_ns"] == account["useful_ns"] + sum(account["badput_ns"].values())
    assert account["held_ns"] == sum(ns for phases in told for ns in phases.values()) == ledger.mark_ns - begun_ns
    assert {"startup", "input", "checkpoint", "other"} <= set(account["badput_ns"])
    (begun,), (end,) = of("start", lines), of("end", lines)
    assert (begun["attempt"], begun["resumed_step"], begun["device"]) == (1, 0, "cpu")
    weights = engine.parts.replica.model.parameters()
    assert begun["rank_parameters"] == begun["parameters"] == sum(weight.numel() for weight in weights)
    assert (end["step"], end["why"]) == (4, "saved")
    assert end["peak_bytes"] > 0


def test_a_second_attempt_goes_on_with_the_account(make_engine, tiny, tmp_path):
    """Steps after the one resumed from are lost, though they were trained; the rest of their time stays badput."""
    train(make_engine, tiny({"run.max_steps": 6, "checkpoint.every_steps": 3, "checkpoint.keep": 5}))
    before = of("step", lines_of(tmp_path / "out"))
    (saved,) = (tmp_path / "out" / "checkpoints").glob("step-*3")
    train(make_engine, tiny({"run.max_steps": 6, "checkpoint.resume": str(saved)}))
    account = of("goodput", lines_of(tmp_path / "out"))[-1]
    assert account["attempts"] == 2
    assert account["badput_ns"]["lost"] == sum(line["all_ns"].get("compute", 0) for line in before[3:])


def test_a_trial_writes_no_journal(make_engine, tiny, tmp_path):
    """A trial is no part of the run whose folder it may share; nor is there one where it is not wanted."""
    make_engine(tiny(), {"AMDAHL_TRIAL": "1"})
    make_engine(tiny({"metrics.jsonl": False}))
    assert not (tmp_path / "out" / journal.NAME).exists()


def test_lines_that_a_kill_cut_off_are_passed_over(tmp_path):
    """The next attempt begins on a line of its own, and what is whole is read."""
    path = tmp_path / journal.NAME
    first = Journal(path)
    first.write("start", {"resumed_step": 0})
    first.write("step", {"step": 1, "all_ns": {"compute": 5}})
    first.close()
    with path.open("a") as file:
        file.write('{"schema":"trainer.step/1","step":2,"all_')
    second = Journal(path)
    second.write("start", {"resumed_step": 1})
    second.close()
    assert list(journal.read(path, 1)) == [Began(0), Spent(1, {"compute": 5}), Began(1)]
    assert Book(journal.read(path, 1)).account().useful_ns == 5
    assert list(journal.read(tmp_path / "none", 0)) == []


def write_history(path, steps, settled_every, began=(0,)):
    """A journal of attempts of so many steps each, a nanosecond of compute a step; `began` is where each begins."""
    written, book = Journal(path), Book()
    for first in began:
        book.add(Began(first))
        written.write("start", {"resumed_step": first, "parameters": 10**9})
        for step in range(first + 1, first + steps + 1):
            book.add(spent := Spent(step, {"compute": 1, "input": 2}, step % 2))
            told = {"all_ns": spent.phases, "all_launch_bound_ns": spent.launch_ns}
            written.write("step", {"step": step, **told, "padding": "." * 500})
            if step % settled_every == 0:
                account = book.account()
                fields = {"attempts": account.attempts, "useful_ns": account.useful_ns, "badput_ns": account.badput_ns}
                written.write("goodput", {"step": step, **fields, "launch_bound_ns": account.launch_ns})
    written.close()
    return book


def bytes_read():
    """By this process since it began, as the kernel counts them."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize(
    ("resumed", "blocks"),
    [(4_000, 2), (3_950, 2), (3_900, 4), (0, 2)],
    ids=["the last step", "since an account", "an account before", "nothing"],
)
def test_a_long_journal_is_read_from_its_end(tmp_path, resumed, blocks):
    """2.5 MB, an account every 100 steps: what a restart keeps is known from a block or two, and to the nanosecond."""
    path = tmp_path / journal.NAME
    book = write_history(path, 4_000, settled_every=100)
    assert path.stat().st_size > 2.4e6
    before = bytes_read()
    events = list(journal.read(path, resumed))
    assert bytes_read() - before <= (blocks + 1) * journal.BLOCK_BYTES
    found = Book([*events, Began(resumed)])
    book.add(Began(resumed))
    assert (found.attempts, found.account()) == (2, book.account())


@pytest.mark.parametrize("resumed", [0, 50, 110, 120, 150, 170])
def test_no_account_is_trusted_that_a_restart_reaches_behind(tmp_path, resumed):
    """Attempts that began at 0, 120 and 50: whatever the next one resumes from, the account is that of every line."""
    path = tmp_path / journal.NAME
    book = write_history(path, 120, settled_every=20, began=(0, 120, 50))
    book.add(Began(resumed))
    assert Book([*journal.read(path, resumed), Began(resumed)]).account() == book.account()


def test_a_full_journal_becomes_the_older_one(make_engine, tiny, tmp_path, monkeypatch):
    """Two files are kept, no more; a new one begins with an account, and the next attempt's goes on with it."""
    monkeypatch.setattr(journal, "LIMIT_BYTES", 4000)
    settings = {"checkpoint.every_steps": 2, "checkpoint.keep": 1}
    train(make_engine, tiny({**settings, "run.max_steps": 40}))
    out = tmp_path / "out"
    assert {path.name for path in out.glob("metrics*")} == {journal.NAME, journal.OLDER}
    lines = lines_of(out)
    first, account = lines[0], of("goodput", lines)[-1]
    assert first["schema"] == "trainer.goodput/1"
    assert 0 < first["step"] < 40
    assert (out / journal.OLDER).stat().st_size < 4000 + 8 * 1000
    train(make_engine, tiny({**settings, "run.max_steps": 44}))
    again = of("goodput", lines_of(out))[-1]
    assert again["attempts"] == 2
    assert again["useful_ns"] > account["useful_ns"]
    assert "lost" not in again["badput_ns"]


def test_a_disk_that_refuses_ends_the_journal_and_nothing_else(tmp_path, capsys):
    """One line on stderr; later lines go nowhere."""
    kept = Journal(tmp_path / "no folder" / journal.NAME)
    kept.write("step", {"step": 1})
    kept.close()
    assert capsys.readouterr().err.count("ends here") == 1


def test_a_disk_that_takes_half_a_line_ends_the_journal_too(tmp_path, capsys):
    """A full disk may take what it has room for; a file may grow no further here."""
    kept = Journal(tmp_path / journal.NAME)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        kept.write("step", {"step": 1, "why": "x" * 200})
        kept.write("step", {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept.close()
    assert (tmp_path / journal.NAME).stat().st_size == 100
    assert capsys.readouterr().err.count("ends here: the disk is full") == 1


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    ("loss", "mfu", "tags"),
    [(2.5, {}, ()), (math.nan, {"palm": 0.25}, ("ckpt", "eval")), (1e-7, {"palm": 1.0}, ("gc",))],
)
@pytest.mark.parametrize("peak_bytes", [None, 12_345])
def test_a_steps_line_says_what_was_told(tmp_path, loss, mfu, tags, world, peak_bytes):
    """It is put together by hand, and yet JSON with every field; what is no finite number is null."""
    facts = Facts("cpu", Degrees(), 1, 1, 1, 8, 1024, 1, flops.PerToken(1.0, 1.0, 1.0), None, 7, 10)
    chief = Chief(Outlets(Journal(tmp_path / journal.NAME), None, Book()), facts, "r")
    phases = {"input": 3, "compute": 40, "comm": 0, "other": 7}
    nothing = describe(Batch(torch.zeros(3, 1, 64, dtype=torch.int64), [0], 0, 0), is_counted=False)
    step = Step(0, 8, 0, phases, nothing, Batches(1, 9, 81), 1000, 50_000, 1e-05, 2, tags, peak_bytes)
    chief.step(step, Reading(loss, math.inf, False, 0, None), phases, mfu)
    told = [phases.get(phase, 0) * world for phase in PHASES]
    chief.agreed(Agreement(0, False, False, Told(0, told), [47 + rank for rank in range(world)]), None)
    shown = chief.families().get("amdahl_peak_bytes")
    assert (shown and dict(shown.values)) == (peak_bytes and {"": peak_bytes})
    chief.close("exit")
    (line,) = of("step", lines_of(tmp_path))
    line.pop("t_ns")
    assert line == {
        "schema": "trainer.step/1", "step": 8, "wall_ns": 50, "phases_ns": {"input": 3, "compute": 40, "other": 7},
        "loss": None if math.isnan(loss) else loss, "grad_norm": None, "lr": 1e-05,
        "tokens": {"slots": 1024, "valid": 1000, "pad": 24, "sum_len_sq": 50_000}, "mfu": mfu or None,
        "loader": {"batches": 1, "sum_ns": 9}, "knob_seq": 2, "peak_bytes": peak_bytes, "tags": list(tags),
        "all_ns": {"input": 3 * world, "compute": 40 * world, "other": 7 * world},
        "ranks": {"slowest": world - 1, "excess_ns": world - 1, "busy_max_ns": 46 + world, "busy_min_ns": 47},
        "durable_step": None,
    }  # fmt: skip


class Laid:
    """Rows whose segments are given."""

    def __init__(self, segments):
        self.segments, self.seq_len = segments, len(segments[0])

    def fill(self, slots, sample, _):
        slots[2] = self.segments[sample]


@pytest.mark.parametrize(
    ("segments", "unmasked"),
    [
        ([[1, 1, 1, 1]], 16),
        ([[1, 1, 2, 2]], 16),
        ([[1, 2, 3, 0]], 9),
        ([[0, 0, 0, 0]], 0),
        ([[1, 1, 0, 0], [1, 2, 2, 2]], 4 + 16),
    ],
)
def test_squares_are_of_what_attention_keeps_apart(segments, unmasked):
    """With the mask documents, as the loader counted them; without it all tokens of a row that are no padding."""
    rows = RowsByPosition(Laid(segments), Order(len(segments), seed=1))
    batch = rows.__getitems__(range(len(segments))).to_batch(is_pinned=False)
    assert count_squares(batch._replace(counts=Counts(sum_len_sq=7)), doc_mask=True) == 7
    assert count_squares(batch, doc_mask=False) == unmasked


def test_mfu_follows_from_the_line_it_stands_in(make_engine, tiny, tmp_path):
    """FLOPs of the step's own tokens and documents over its wall and the peak, by convention."""
    config = tiny({"run.max_steps": 3})
    train(make_engine, config, peak=1e12)
    for line in of("step", lines_of(tmp_path / "out")):
        tokens, wall_s = line["tokens"], line["wall_ns"] / 1e9
        cost = flops.per_token(config.model, config.data.seq_len, tokens["sum_len_sq"] / tokens["valid"])
        assert line["mfu"] == pytest.approx(
            {n: each * tokens["valid"] / wall_s / 1e12 for n, each in vars(cost).items()}
        )
        assert line["mfu"]["packed"] <= line["mfu"]["causal"] < line["mfu"]["palm"]


def test_mfu_is_of_one_device_whoever_shares_the_rows():
    """Four ranks that split a model read the same rows: each is given a quarter of the step's tokens."""
    cost, reading = flops.PerToken(3e9, 2e9, 1e9), Reading(1.0, 1.0, False, 0, None)
    nothing = describe(Batch(torch.zeros(3, 1, 64, dtype=torch.int64), [0], 0, 0), is_counted=False)
    step = Step(0, 1, 0, {"compute": 10**9}, nothing, Batches(), 1000, 0, 1e-3, 0, ())
    written = {}
    for world in (1, 4):
        reporter = Reporter(Telemetry.from_environ({}), Place(1 if world > 1 else 0, world, 0, world), "cpu", 0)
        reporter.step(step, reading, cost, 1e13)
        written[world] = reporter.mfu
    assert written[1] == {"palm": 0.3, "causal": 0.2, "packed": 0.1}
    assert written[4] == pytest.approx({name: share / 4 for name, share in written[1].items()})
