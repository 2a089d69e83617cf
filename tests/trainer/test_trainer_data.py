"""Data: packing loses nothing, order is a permutation, cached and on-the-fly rows are the same, loaders are exact."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_trainer.data import corpus, rows, tokens
from amdahl_trainer.data.cache import build_once
from amdahl_trainer.data.loader import Loader, Settings
from amdahl_trainer.data.order import Order, Share
from amdahl_trainer.data.pack import best_fit, measure
from amdahl_trainer.errors import ConfigError, DataError
from amdahl_trainer.loss import IGNORED

LENGTHS = st.lists(st.integers(1, 200), max_size=80)
TEXTS = st.text(max_size=200)


@given(LENGTHS, st.integers(1, 64))
def test_packing_loses_no_token_and_cuts_no_document_that_fits(lengths, capacity):
    """Every token of every document is in exactly one row; a document of at most a row's length is one piece."""
    documents = list(range(len(lengths)))
    pieces = rows.cut(documents, lengths, capacity)
    packed = best_fit([end - first for _, first, end in pieces], capacity)
    assert sorted(at for row in packed for at in row) == list(range(len(pieces)))
    assert all(sum(pieces[at][2] - pieces[at][1] for at in row) <= capacity for row in packed)
    for document, length in enumerate(lengths):
        own = [(first, end) for owner, first, end in pieces if owner == document]
        assert [token for first, end in own for token in range(first, end)] == list(range(length))
        assert len(own) == -(-length // capacity)


def test_best_fit_takes_the_tightest_row():
    """The piece of 3 goes beside 7, not into the emptier row of 6."""
    assert best_fit([7, 6, 3], 10) == [[0, 2], [1]]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=80))
def test_packing_is_tight_and_always_the_same(lengths):
    """At most one row is no more than half full: pieces of a second would have gone into it."""
    packed = best_fit(lengths, 64)
    fills = [sum(lengths[at] for at in row) for row in packed]
    assert sum(fill <= 32 for fill in fills) <= 1
    assert packed == best_fit(tuple(lengths), 64)
    found = measure(lengths, len(packed), 64)
    assert (found.rows, found.slots, found.pieces) == (len(packed), 64 * len(packed), len(lengths))
    assert found.pad_share == pytest.approx(1 - sum(fills) / found.slots)


def test_the_corpus_fills_its_rows(tiny):
    """Of 150 documents in rows of 64 less than 3 % is padding; a batch's sums are those of its segments."""
    train = rows.ensure(tiny()).train
    assert train.packing.pad_share < 0.03
    assert train.packing.valid == sum(int((train.row(index).segments > 0).sum()) for index in range(len(train)))
    batch = [3, 0, 7]
    counts = [np.unique(row.segments[row.segments > 0], return_counts=True)[1] for row in map(train.row, batch)]
    found = train.packing_of(batch)
    assert found.sum_len_sq == sum(int((count**2).sum()) for count in counts)
    assert (found.slots, found.valid, found.pieces) == (192, sum(map(sum, counts)), sum(map(len, counts)))


@given(st.integers(1, 600), st.integers(0, 2**40), st.integers(0, 5))
def test_each_epoch_is_a_permutation(samples, seed, epoch):
    """Every sample once an epoch, whatever number and seed."""
    order = Order(samples, seed)
    assert sorted(order.sample(epoch * samples + at) for at in range(samples)) == list(range(samples))


def test_epochs_and_seeds_give_different_orders():
    """Neither an epoch nor a seed repeats another's order."""
    orders = {(s, e): tuple(Order(500, s).sample(e * 500 + at) for at in range(500)) for s in (1, 2) for e in (0, 1)}
    assert len(set(orders.values())) == 4
    assert sum(order[at] == at for order in orders.values() for at in range(500)) < 20


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 100))
def test_shares_cover_each_global_batch_once(world, begin):
    """Ranks take disjoint positions, together exactly the global batch."""
    shares = [Share(rank, world, 8).positions(begin) for rank in range(world)]
    assert sorted(at for share in shares for at in share) == list(range(begin, begin + 8))


@given(st.lists(TEXTS, min_size=1, max_size=5), TEXTS)
def test_byte_pairs_keep_every_byte(learnt_on, text):
    """Whatever was learnt, tokens stand for exactly the bytes of the text in normal form."""
    tokenizer = tokens.BytePairs(tokens.learn_merges([each.encode() for each in learnt_on], 40))
    expected = b"".join(tokens.split_words(text.encode()))
    encoded = tokenizer.encode(text.encode())
    assert sum(tokenizer.token_bytes()[token] for token in encoded) == len(expected)
    assert tokens.BOS not in encoded


def test_the_most_frequent_pair_is_learnt_first_and_rules_stop_where_nothing_repeats():
    """'ab' occurs five times, then 'ab'+'c' three times; a pair seen once is no rule."""
    merges = tokens.learn_merges([b"abc\nabc\nabc\nab\nab\nxy"], 10)
    assert merges[0] == (ord("a"), ord("b"))
    assert (257, ord("c")) in merges
    assert (ord("x"), ord("y")) not in merges
    tokenizer = tokens.BytePairs(merges)
    assert tokenizer.encode(b"ab") == [257]


@pytest.mark.parametrize("limit", [1, 10, 30])
def test_sections_are_the_text_cut_at_blank_lines(limit):
    """Joined they are the text; none is longer than the limit unless it is one paragraph."""
    text = b"one one\n\ntwo\n\n\n\nthree three three\n\nfour"
    sections = corpus.split_sections(text, limit)
    assert b"".join(sections) == text
    assert all(len(section) <= limit or b"\n\n" not in section[:-2] for section in sections)


def test_the_corpus_is_as_its_manifest_says_and_a_damaged_one_is_refused(cache):
    """About 2,500 sections and 1.7 MB of Python's documentation; a changed byte is noticed."""
    built = corpus.ensure(cache)
    documents = [built.document(index) for index in range(len(built.held_out))]
    assert b"".join(documents) == built.text.tobytes()
    assert 1_000_000 < built.text.size < 3_000_000
    assert 0.01 < built.held_out.mean() < 0.1
    assert all(len(document.decode()) > 0 for document in documents)
    text = next(cache.glob("pydocs-*/text.bin"))
    whole = text.read_bytes()
    try:
        text.write_bytes(whole[:-1] + b"?")
        with pytest.raises(DataError, match=r"does not have the SHA-256 .* delete"):
            corpus.ensure(cache)
    finally:
        text.write_bytes(whole)


@pytest.mark.parametrize("changes", [{"data.tokenizer": "bytes"}, {"data.tokenizer": "bpe", "model.vocab_size": 300}])
def test_rows_hold_every_token_once_and_are_the_same_cached_or_on_the_fly(tiny, changes):
    """Targets of all rows are the tokens of all documents; inputs are the targets shifted, begun by BOS."""
    cached = rows.ensure(tiny(changes)).train
    on_the_fly = rows.ensure(tiny({**changes, "data.tokenize": "on_the_fly"})).train
    assert cached.cached is not None
    assert on_the_fly.cached is None
    found: dict[int, list[tuple[int, list[int]]]] = {}
    for index in range(len(cached)):
        row = cached.row(index)
        if index % 11 == 0:
            assert all(np.array_equal(a, b) for a, b in zip(row, on_the_fly.row(index), strict=True))
        assert np.array_equal(row.targets == IGNORED, row.segments == 0)
        for number, (document, first, end) in enumerate(cached.pieces_of(index), start=1):
            piece = row.segments == number
            assert row.inputs[piece][0] == tokens.BOS
            assert np.array_equal(row.inputs[piece][1:], row.targets[piece][:-1])
            assert piece.sum() == end - first
            found.setdefault(document, []).append((first, row.targets[piece].tolist()))
    wanted = np.flatnonzero(~cached.corpus.held_out)[:150]
    assert sorted(found) == wanted.tolist()
    for document, pieces in found.items():
        joined = [token for _, piece in sorted(pieces) for token in piece]
        assert joined == cached.tokenizer.encode(cached.corpus.document(document))


def test_held_out_documents_are_never_trained_on(tiny):
    """No document is in both splits."""
    both = rows.ensure(tiny())
    train, held_out = (set(split.pieces[:, 0].tolist()) for split in (both.train, both.held_out))
    assert train.isdisjoint(held_out)
    assert held_out


def test_a_cache_is_built_once_and_never_seen_half_built(tmp_path):
    """The second call builds nothing; a failed build leaves nothing behind."""
    target = tmp_path / "deep" / "thing"
    assert build_once(target, lambda home: (home / "x").write_text("1")) == target
    build_once(target, lambda _: pytest.fail("must not be built again"))

    def fail(_):
        raise DataError("no")

    with pytest.raises(DataError):
        build_once(tmp_path / "other", fail)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "thing", "x"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    """A file stands where the directory should be."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data.cache_dir: .*/file/sub cannot be written"):
        build_once(tmp_path / "file" / "sub" / "x", lambda _: None)


class Data:
    """Rows of a tiny configuration and a loader over them, closed at the end."""

    def __init__(self, config):
        self.rows = rows.ensure(config).train
        self.order = Order(len(self.rows), 1)

    def loader(self, settings=Settings(0, 2, False), rank=0, world=1):  # noqa: B008 (a frozen value)
        return Loader(self.rows, self.order, Share(rank, world, 8), settings)


@pytest.fixture
def data(tiny):
    return Data(tiny())


def take(loader, count):
    return [loader.next().samples for _ in range(count)]


def test_samples_depend_on_the_position_alone(data):
    """Any number of workers, prefetching, ranks, and any change of them on the way: the same samples in order."""
    expected = [[data.order.sample(at) for at in range(b, b + 8)] for b in range(0, 160, 8)]
    loader = data.loader()
    taken = []
    for workers, prefetch, count in ((0, 2, 3), (2, 1, 4), (1, 4, 2), (2, 2, 5), (0, 2, 6)):
        loader.open(len(taken) * 8, Settings(workers, prefetch, False))
        taken += take(loader, count)
    loader.close()
    assert taken == expected
    halves = []
    for rank in (0, 1):
        half = data.loader(rank=rank, world=2)
        half.open(0)
        halves.append(take(half, 20))
    assert [a + b for a, b in zip(*halves, strict=True)] == expected


def test_batches_say_what_they_hold_and_cost(data):
    """Valid tokens, samples, and a positive time, measured in the worker."""
    loader = data.loader(Settings(1, 2, False))
    loader.open(0)
    batch = loader.next()
    loader.close()
    assert batch.inputs.shape == batch.targets.shape == batch.segments.shape == (8, 64)
    assert batch.valid == int((batch.targets != IGNORED).sum())
    assert batch.cost_ns > 0


def test_a_killed_worker_is_replaced_once_and_no_sample_is_lost(data, capsys):
    """The loader starts again at its position; the samples go on as if nothing had happened."""
    expected = [[data.order.sample(at) for at in range(b, b + 8)] for b in range(0, 80, 8)]
    loader = data.loader(Settings(1, 2, False))
    loader.open(0)
    taken = take(loader, 3)
    os.kill(loader.worker_pids()[0], signal.SIGKILL)
    taken += take(loader, 7)
    loader.close()
    assert taken == expected
    assert "starting it again" in capsys.readouterr().out


def test_workers_outlive_sigterm(data):
    """A SIGTERM to the whole process group must not take the batches that the last checkpoint waits for."""
    loader = data.loader(Settings(1, 2, False))
    loader.open(0)
    take(loader, 1)
    os.kill(loader.worker_pids()[0], signal.SIGTERM)
    before = loader.worker_pids()
    take(loader, 6)
    assert loader.worker_pids() == before
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_fail_twice_are_an_error(data, workers, capsys):
    """One retry, then the reason and the position."""

    class Broken:
        def row(self, index):
            raise ValueError(f"sample {index} is spoilt")

    loader = Loader(Broken(), data.order, Share(0, 1, 8), Settings(workers, 2, False))
    loader.open(16)
    with pytest.raises(DataError, match=r"twice at position 16: .*ValueError: sample \d+ is spoilt"):
        loader.next()
    loader.close()
    assert "starting it again" in capsys.readouterr().out
