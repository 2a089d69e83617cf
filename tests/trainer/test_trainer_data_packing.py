"""Packing: nothing is lost, the grouped algorithm is the plain one, plans keep to their shards, subsets are stable."""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_trainer.data import sources, subset
from amdahl_trainer.data.counts import Meter
from amdahl_trainer.data.pack import best_fit, cut, end_to_end, measure
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.loss import IGNORED
from token_builders import make_documents, make_folder, over

LENGTHS = st.lists(st.integers(1, 64), max_size=120)


def packed(lengths, capacity):
    """The rows as lists of pieces."""
    pieces, starts = best_fit(np.array(lengths, dtype=np.int64), capacity)
    return [pieces[first:last].tolist() for first, last in pairwise(starts)]


def plain_best_fit(lengths, capacity):
    """One piece at a time, the longest first: what the grouped algorithm must equal."""
    rows, open_rows, rooms = [], [[] for _ in range(capacity + 1)], []
    for piece in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        at = bisect_left(rooms, lengths[piece])
        room = rooms[at] if at < len(rooms) else capacity
        if at < len(rooms):
            row = open_rows[room].pop()
            if not open_rows[room]:
                del rooms[at]
        else:
            rows.append([])
            row = len(rows) - 1
        rows[row].append(piece)
        left = room - lengths[piece]
        if left:
            if not open_rows[left]:
                insort(rooms, left)
            open_rows[left].append(row)
    return rows


@given(LENGTHS)
def test_pieces_placed_in_groups_lie_where_one_at_a_time_would_lay_them(lengths):
    """The same pieces in the same rows in the same order, for any lengths."""
    assert packed(lengths, 64) == plain_best_fit(lengths, 64)


@given(st.lists(st.integers(0, 200), max_size=80), st.integers(1, 64))
def test_packing_loses_no_token_and_cuts_no_document_that_fits(lengths, capacity):
    """Every token of every document is in exactly one row; a document of at most a row's length is one piece."""
    ends = np.cumsum(lengths, dtype=np.int64)
    begins = ends - np.array(lengths, dtype=np.int64)
    pieces = cut(begins, ends, capacity)
    rows = packed(pieces[:, 1] - pieces[:, 0], capacity)
    assert sorted(at for row in rows for at in row) == list(range(len(pieces)))
    assert all(sum(pieces[at][1] - pieces[at][0] for at in row) <= capacity for row in rows)
    assert [token for first, end in pieces for token in range(first, end)] == list(range(sum(lengths)))
    counts = [
        int(((begin <= pieces[:, 0]) & (pieces[:, 0] < end)).sum()) for begin, end in zip(begins, ends, strict=True)
    ]
    assert counts == [-(-length // capacity) for length in lengths]


def test_best_fit_takes_the_tightest_row():
    """The piece of 3 goes beside 7, not into the emptier row of 6."""
    assert packed([7, 6, 3], 10) == [[0, 2], [1]]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=80))
def test_packing_is_tight(lengths):
    """At most one row is no more than half full: pieces of a second would have gone into it."""
    rows = packed(lengths, 64)
    fills = [sum(lengths[at] for at in row) for row in rows]
    assert sum(fill <= 32 for fill in fills) <= 1
    found = measure(np.array(lengths), len(rows), 64)
    assert (found.rows, found.slots, found.pieces) == (len(rows), 64 * len(rows), len(lengths))
    assert found.pad_share == pytest.approx(1 - sum(fills) / found.slots)


def plain_end_to_end(documents, capacity):
    """A token at a time: what laying all of them at once must equal."""
    rows, room = [], 0
    for begin, end in documents:
        for token in range(begin, end):
            if not room:
                rows.append([])
            if not room or token == begin:
                rows[-1].append([token, token])
            room = (room or capacity) - 1
            rows[-1][-1][1] = token + 1
    return rows


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=40), st.integers(1, 32))
def test_documents_end_to_end_are_cut_where_rows_end_alone(gaps_and_lengths, capacity):
    """Whatever was left out between them, and be they empty: in order, every row full but the last."""
    ends = np.cumsum([gap + length for gap, length in gaps_and_lengths], dtype=np.int64)
    begins = ends - np.array([length for _, length in gaps_and_lengths], dtype=np.int64)
    pieces, starts = end_to_end(begins, ends, capacity)
    rows = [pieces[first:last].tolist() for first, last in pairwise(starts)]
    assert rows == plain_end_to_end(zip(begins.tolist(), ends.tolist(), strict=True), capacity)


def documents_of(rows):
    """All targets of a split, piece by piece, by where the piece lies: (source, shard, begin) -> tokens."""
    found = {}
    for index in range(len(rows)):
        row = rows.row(index)
        part, at = rows._find(index)
        for number, (begin, end) in enumerate(rows.pieces_of(index), start=1):
            piece = row.segments == number
            assert piece.sum() == end - begin
            assert row.inputs[piece][0] == 256
            assert np.array_equal(row.inputs[piece][1:], row.targets[piece][:-1])
            found[part.source.name, part.plan.shard_of(at), begin] = row.targets[piece].tolist()
        assert np.array_equal(row.targets == IGNORED, row.segments == 0)
    return found


def test_rows_of_shards_hold_every_token_once(tiny, tmp_path):
    """Joined in the order of shards and places, the pieces of all rows are the documents; rows keep to one shard."""
    documents = make_documents(200, seed=1, longest=150)
    folder = make_folder(tmp_path / "books", documents, shard_tokens=900)
    corpora = sources.ensure(tiny(over(folder)))
    found = documents_of(corpora.train)
    joined = [token for _, tokens in sorted(found.items()) for token in tokens]
    assert joined == [token for document in documents for token in document]
    assert len(corpora.train.parts[0].plan.first_rows) > 10
    assert corpora.train.packing.valid == len(joined)
    assert corpora.held_out.row(0).targets[:3].tolist() == [1, 2, 3]


def test_rows_end_to_end_hold_every_token_once_and_are_full(tiny, tmp_path):
    """Each shard's last row alone has padding. What is held out is packed as ever, so that results compare."""
    documents = make_documents(200, seed=1, longest=150)
    folder = make_folder(tmp_path / "joined", documents, shard_tokens=900)
    best, joined = (
        sources.ensure(tiny({**over(folder), "data.packing": packing})) for packing in ("best_fit", "concat")
    )
    found = documents_of(joined.train)
    assert [token for _, tokens in sorted(found.items()) for token in tokens] == [t for d in documents for t in d]
    fills = [int((joined.train.row(index).segments > 0).sum()) for index in range(len(joined.train))]
    last = [first - 1 for first in joined.train.parts[0].plan.first_rows[1:]]
    assert {fills[at] for at in range(len(fills)) if at not in last} == {joined.train.seq_len}
    assert len(joined.train) < len(best.train)
    assert joined.train.packing.pieces > best.train.packing.pieces
    assert joined.held_out.packing == best.held_out.packing


def test_a_plan_is_made_once_and_belongs_to_its_choice(tiny, tmp_path, cache):
    """The second start writes nothing; another row length, subset or bound on documents is another plan."""
    folder = make_folder(tmp_path / "once", make_documents(50, seed=2))
    changes = ({}, {"seq_len": 128}, {"subset": "50%"}, {"subset": "50%", "subset_seed": 1}, {"max_documents": 20})
    sizes = [sources.ensure(tiny(over(folder, **change))).train.packing for change in changes]
    assert len(set(sizes)) == len(changes)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    again = [sources.ensure(tiny(over(folder, **change))).train.packing for change in changes]
    assert again == sizes
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_a_batch_tells_how_it_is_packed(tiny, tmp_path):
    """Sums over a batch's rows are those of its segments, whether counted as it is made or asked afterwards."""
    train = sources.ensure(tiny(over(make_folder(tmp_path / "a", make_documents(80, seed=3))))).train
    batch, meter = [3, 0, 7], Meter()
    slots = np.empty((3, 64), dtype=np.int64)
    rows = [train.row(index) for index in batch]
    for index in batch:
        train.fill(slots, index, meter)
    assert np.array_equal(slots, np.stack(rows[-1]))
    counts = [np.unique(row.segments[row.segments > 0], return_counts=True)[1] for row in rows]
    found = train.packing_of(batch)
    assert (found.slots, found.valid, found.pieces) == (192, sum(map(sum, counts)), sum(map(len, counts)))
    assert found.sum_len_sq == sum(int((count**2).sum()) for count in counts)
    assert (meter.pieces, meter.sum_len_sq) == (found.pieces, found.sum_len_sq)


SUBSETS = [subset.parse(text, 5) for text in ("1", "40", "10%", "1/2%", "60%", "999", "all")]


@pytest.mark.parametrize("documents", [1000, 4000])
def test_larger_subsets_hold_smaller_ones_and_numbers_are_exact(documents):
    """`40` takes 40 documents, `10%` about a tenth; ordered by size each is part of the next."""
    draws = SUBSETS[0].draws(0, documents)
    chosen = [set(np.flatnonzero(draws <= np.uint64(one.limit(documents))).tolist()) for one in SUBSETS]
    by_text = dict(zip(("1", "40", "10%", "1/2%", "60%", "999", "all"), map(len, chosen), strict=True))
    assert (by_text["1"], by_text["40"], by_text["999"], by_text["all"]) == (1, 40, 999, documents)
    assert abs(by_text["10%"] - documents / 10) < 4 * (documents * 0.09) ** 0.5
    ordered = sorted(chosen, key=len)
    assert all(small <= large for small, large in pairwise(ordered))


def test_a_subset_by_share_keeps_its_documents_when_a_source_grows():
    """What is appended is drawn by itself; another seed draws others."""
    share = subset.parse("10%", 0)
    few, many = share.draws(0, 1000), share.draws(0, 5000)
    assert np.array_equal(few, many[:1000])
    assert share.limit(1000) == share.limit(5000)
    assert np.array_equal(share.draws(300, 400), few[300:400])
    other = subset.parse("10%", 1).draws(0, 1000)
    both = (few <= np.uint64(share.limit(1000))) & (other <= np.uint64(share.limit(1000)))
    assert 0 < both.sum() < 40


def test_a_subset_is_of_training_documents(tiny, tmp_path):
    """Held-out documents stay, so that results compare; a bound on documents comes first."""
    held_out = make_documents(9, seed=4)
    folder = make_folder(tmp_path / "part", make_documents(100, seed=5), held_out)
    half = sources.ensure(tiny(over(folder, subset="50")))
    assert half.held_out.packing.valid == sum(map(len, held_out))
    whole = documents_of(sources.ensure(tiny(over(folder))).train)
    assert documents_of(half.train).items() <= whole.items()
    bounded = sources.ensure(tiny(over(folder, subset="10", max_documents=10)))
    assert (
        documents_of(bounded.train).items()
        == documents_of(sources.ensure(tiny(over(folder, max_documents=10))).train).items()
    )


@pytest.mark.parametrize("text", ["", "none", "0", "-3", "0%", "101%", "x%", "1/0%", "0.5"])
def test_what_is_no_subset_is_refused(text):
    """With the three forms that are."""
    with pytest.raises(ConfigError, match=r"data.subset is .*; write all, a share such as 10%, or a number"):
        subset.parse(text, 0)
