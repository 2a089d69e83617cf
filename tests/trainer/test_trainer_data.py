"""The corpus that comes with Python: its text, its tokens, its cache; cached and on-the-fly rows are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_trainer.data import corpus, sources, tokens
from amdahl_trainer.data.cache import build_once
from amdahl_trainer.errors import ConfigError, DataError
from amdahl_trainer.loss import IGNORED

TEXTS = st.text(max_size=200)


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
    config = tiny(changes)
    cached = sources.ensure(config).train
    on_the_fly = sources.ensure(tiny({**changes, "data.tokenize": "on_the_fly"})).train
    found: list[tuple[int, list[int]]] = []
    for index in range(len(cached)):
        row = cached.row(index)
        if index % 11 == 0:
            assert all(np.array_equal(a, b) for a, b in zip(row, on_the_fly.row(index), strict=True))
        assert np.array_equal(row.targets == IGNORED, row.segments == 0)
        for number, (begin, end) in enumerate(cached.pieces_of(index), start=1):
            piece = row.segments == number
            assert row.inputs[piece][0] == tokens.BOS
            assert np.array_equal(row.inputs[piece][1:], row.targets[piece][:-1])
            assert piece.sum() == end - begin
            found.append((begin, row.targets[piece].tolist()))
    text = corpus.ensure(Path(config.data.cache_dir))
    merges = cached.parts[0].source.vocabulary.merges
    tokenizer = tokens.BytePairs(merges) if merges else tokens.Bytes()
    wanted = [text.document(index) for index in np.flatnonzero(~text.held_out)[:150]]
    joined = [token for _, piece in sorted(found) for token in piece]
    assert joined == [token for document in wanted for token in tokenizer.encode(document)]


def test_the_corpus_fills_its_rows(tiny):
    """Of 150 documents in rows of 64 less than 3 % is padding; the average token's document is shorter than a row."""
    train = sources.ensure(tiny()).train
    assert train.packing.pad_share < 0.03
    assert train.packing.valid == sum(int((train.row(index).segments > 0).sum()) for index in range(len(train)))
    assert 32 < train.mean_document < 64


def test_held_out_documents_are_never_trained_on(tiny):
    """The rows of each split hold the documents of that split and no other."""
    config = tiny()
    both, text = sources.ensure(config), corpus.ensure(Path(config.data.cache_dir))
    for rows, is_held_out in ((both.train, False), (both.held_out, True)):
        pieces = []
        for index in range(len(rows)):
            row = rows.row(index)
            pieces += [(b, row.targets[row.segments == n]) for n, (b, _) in enumerate(rows.pieces_of(index), start=1)]
        wanted = b"".join(text.document(index) for index in np.flatnonzero(text.held_out == is_held_out)[:150])
        assert b"".join(bytes(piece.tolist()) for _, piece in sorted(pieces, key=lambda pair: pair[0])) == wanted


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
