"""Shards: what is written is what is read, nothing is read whole, and every damage has a name."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_trainer.data import sources
from amdahl_trainer.data.files import Reader
from amdahl_trainer.data.loader import Loader, Settings
from amdahl_trainer.data.order import Share
from amdahl_trainer.data.shards import MANIFEST, SPLITS, Vocabulary, open_source, verify
from amdahl_trainer.data.write import ShardWriter, split_of
from amdahl_trainer.errors import ConfigError, DataError
from token_builders import BYTES, change_manifest, make_documents, make_folder, over, read_back


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 255), max_size=20), st.sampled_from(SPLITS)), min_size=1, max_size=30),
    st.integers(1, 60),
)
def test_what_is_written_is_read_back(tmp_path_factory, documents, shard_tokens):
    """Documents of both splits in their order, whatever the size of shards; no shard is longer unless one document is."""
    home = tmp_path_factory.mktemp("shards")
    with ShardWriter(home, BYTES, shard_tokens) as writer:
        writer.add([7], "train")
        for document, split in documents:
            writer.add(document, split)
    source = open_source(home)
    for split in SPLITS:
        wanted = [document for document, other in documents if other == split]
        assert read_back(source, split) == ([[7], *wanted] if split == "train" else wanted)
    assert all(shard.tokens <= shard_tokens or shard.documents == 1 for shard in source.shards)
    verify(source)


@pytest.mark.parametrize(("size", "dtype"), [(257, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_tokens_are_as_wide_as_the_vocabulary_needs(tmp_path, size, dtype):
    """Two bytes up to 65,536 tokens, then four; the highest token survives."""
    folder = make_folder(tmp_path / "wide", [[0, size - 1]], vocabulary=Vocabulary(256, (1,) * size))
    source = open_source(folder)
    assert source.dtype == np.dtype(dtype)
    assert read_back(source, "train") == [[0, size - 1]]
    assert source.of("train")[0].max_token == size - 1


def test_a_writer_refuses_what_its_vocabulary_lacks(tmp_path):
    """And leaves no manifest, so that nobody takes the rest for a whole."""
    with pytest.raises(DataError, match="a document holds token 300; the vocabulary has 257"):
        make_folder(tmp_path / "x", [[1], [300]])
    assert not (tmp_path / "x" / MANIFEST).exists()


def test_whether_a_document_is_held_out_depends_on_its_content_alone():
    """About one in twenty."""
    splits = [split_of(str(number).encode()) for number in range(2000)]
    assert splits == [split_of(str(number).encode()) for number in range(2000)]
    assert 60 < splits.count("held_out") < 150


def test_nothing_is_read_whole(tiny, tmp_path):
    """A shard of 64 GiB, which no memory here could hold, is opened, planned and read: its end is a hole in the file."""
    folder = make_folder(tmp_path / "vast", [[n] * 30 for n in range(40)], shard_tokens=10_000)
    raw = json.loads((folder / MANIFEST).read_text())
    shard = raw["shards"][0]
    shard["documents"], shard["tokens"] = 41, 1 << 35
    (folder / MANIFEST).write_text(json.dumps(raw))
    os.truncate(folder / "train-00000.tokens", 1 << 36)
    with (folder / "train-00000.ends").open("ab") as file:
        file.write(np.array([1 << 35], "<i8").tobytes())
    train = sources.ensure(tiny(over(folder, max_documents=40))).train
    assert train.packing.valid == 1200
    assert sorted({int(token) for index in range(len(train)) for token in train.row(index).targets}) == [
        -100,
        *range(40),
    ]


def count_open():
    """Descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_shards_need_few_open_files(tiny, tmp_path):
    """Beyond the limit the file opened first is closed, and opened again when it is asked for."""
    documents = [[n % 256] * 10 for n in range(40)]
    source = open_source(make_folder(tmp_path / "many", documents, shard_tokens=10))
    before = count_open()
    reader = Reader(limit=4)
    files = [source.open_tokens(reader, shard) for shard in source.of("train")]
    for _ in range(2):
        found = [source.read_tokens(file, 0, 10).tolist() for file in files]
        assert found == documents
        assert count_open() <= before + 4
    reader.close()
    assert count_open() == before


def truncate(folder):
    os.truncate(folder / "train-00001.tokens", 10)


def grow(folder):
    with (folder / "train-00001.tokens").open("ab") as file:
        file.write(b"xx")


def lose(folder):
    (folder / "train-00000.ends").unlink()


def garble_ends(folder):
    path = folder / "train-00000.ends"
    path.write_bytes(path.read_bytes()[::-1])


def garble_vocabulary(folder):
    (folder / "vocabulary.json").write_text('{"bos": 3}')


def take_out_documents(folder):
    shards = json.loads((folder / MANIFEST).read_text())["shards"]
    change_manifest(folder, shards=[shard for shard in shards if shard["split"] == "held_out"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"train-00001.tokens is truncated: 10 bytes, its manifest says \d+; copy it again"),
        (grow, r"train-00001.tokens has grown: \d+ bytes, its manifest says \d+"),
        (lose, r"train-00000.ends is missing, though the manifest beside it names it"),
        (garble_ends, r"train-00000.ends is damaged: ends must rise to \d+"),
        (garble_vocabulary, r"vocabulary.json has SHA-256 .*, its manifest says .*copy it again"),
        (take_out_documents, r"holds no training documents"),
        (lambda folder: (folder / MANIFEST).unlink(), r"holds no manifest.json; name a folder that `python -m"),
        (lambda folder: (folder / MANIFEST).write_text("{"), r"manifest.json is no JSON"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), r"manifest.json has format None; this trainer reads"),
        (
            lambda folder: change_manifest(folder, format="amdahl.tokens/9"),
            r"format 'amdahl.tokens/9'; this trainer reads",
        ),
        (lambda folder: change_manifest(folder, dtype="int8"), r"dtype is 'int8'; tokens are uint16 or uint32"),
        (lambda folder: change_manifest(folder, dtype="uint32"), r"is truncated: \d+ bytes"),
        (
            lambda folder: change_manifest(folder, shards=[{"name": "x"}]),
            r"manifest.json is damaged \(KeyError: 'split'\)",
        ),
        (lambda folder: change_manifest(folder, shards=None), r"manifest.json is damaged"),
    ],
)
def test_damage_is_named_with_what_to_do(tiny, tmp_path, damage, message):
    """At the start, before any step."""
    folder = make_folder(tmp_path / "a", make_documents(60, seed=1))
    damage(folder)
    with pytest.raises(DataError, match=message):
        sources.ensure(tiny(over(folder)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"path": ""}, ConfigError, r"data.path is empty; name the folder"),
        ({"path": "/nowhere/at/all"}, DataError, r"/nowhere/at/all holds no manifest.json"),
        ({"path": "{a},{a}"}, ConfigError, r"data.path names a, a; two folders need two names"),
        ({"path": "{a},{other}"}, ConfigError, r"have different vocabularies; tokenize them alike"),
        ({"path": "{a}", "mix": "b=1"}, ConfigError, r"data.mix names b; the sources are a: a source is called"),
        ({"path": "{a}", "tokenize": "on_the_fly"}, ConfigError, r"holds no text; set it to cached"),
        (
            {"path": "{a}", "subset": "0.0000001%"},
            DataError,
            r"data.subset 0.0000001% and data.max_documents 0 leave no",
        ),
        ({"path": "{high}"}, ConfigError, r"model.vocab_size is 320, but .*high holds token 400; .* at least 500"),
    ],
)
def test_sources_that_do_not_fit_are_refused(tiny, tmp_path, changes, error, message):
    """They are compared with the configuration and one another."""
    told = {
        "a": make_folder(tmp_path / "a", make_documents(60, seed=1)),
        "other": make_folder(tmp_path / "other", [[1]], vocabulary=Vocabulary(0, (1,) * 257)),
        "high": make_folder(tmp_path / "high", [[400]], vocabulary=Vocabulary(256, (1,) * 500)),
    }
    changes = {name: value.format(**told) for name, value in changes.items()}
    with pytest.raises(error, match=message):
        sources.ensure(tiny(over(**changes)))


def test_an_evaluation_needs_something_held_out(tiny, tmp_path):
    """A source need not have it; who wants to evaluate is told before the first step."""
    folder = make_folder(tmp_path / "a", [[1, 2, 3]], held_out=())
    assert len(sources.ensure(tiny(over(folder))).held_out) == 0
    with pytest.raises(ConfigError, match=r"eval.every_steps is 5, but data.path holds nothing held out; set it to 0"):
        sources.ensure(tiny({**over(folder), "eval.every_steps": 5}))


def consume(loader, steps):
    for _ in range(steps):
        loader.next()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_shrinks_while_it_is_read_ends_the_run_with_its_name(tiny, tmp_path, workers):
    """No signal kills anyone: the read is short, the loader says so, and does not try again what cannot succeed."""
    corpora = sources.ensure(tiny(over(make_folder(tmp_path / "a", make_documents(60, seed=1), shard_tokens=100_000))))
    loader = Loader(corpora.train, corpora.order(1), Share(0, 1, 4), Settings(workers, 2, False))
    loader.open(0)
    loader.next()
    os.truncate(tmp_path / "a" / "train-00000.tokens", 40)
    with pytest.raises(DataError, match=re.escape("train-00000.tokens is truncated: 40 bytes")):
        consume(loader, 40)
    loader.close()
    assert loader.restarts == 0


def test_other_data_are_other_data(tiny, tmp_path):
    """The digest follows the content and the order of sources, not the place where they lie."""
    first, second = make_documents(20, seed=1), make_documents(20, seed=2)
    folders = {name: make_folder(tmp_path / name, documents) for name, documents in (("a", first), ("b", second))}
    moved = make_folder(tmp_path / "elsewhere" / "a", first)
    digests = [
        sources.ensure(tiny(over(*chosen))).digest
        for chosen in ((folders["a"],), (moved,), (folders["b"],), (folders["a"], folders["b"]), (folders["b"], moved))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_a_flipped_byte_is_found_by_who_asks(tmp_path):
    """Sizes are looked at always, content on demand."""
    folder = make_folder(tmp_path / "a", make_documents(60, seed=1))
    path = folder / "train-00000.tokens"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"train-00000.tokens has SHA-256 .*, its manifest says"):
        verify(open_source(folder))
