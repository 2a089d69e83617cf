"""Folders of token shards for tests: documents that can be told apart, and configurations that read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amdahl_trainer.data.files import Reader
from amdahl_trainer.data.shards import MANIFEST, Source, Split, Vocabulary
from amdahl_trainer.data.write import ShardWriter

#: The vocabulary of bytes: 256 starts a document.
BYTES = Vocabulary(256, (*[1] * 256, 0))

Documents = Sequence[Sequence[int]]


def make_documents(count: int, seed: int, longest: int = 90, vocabulary: int = 256) -> list[list[int]]:
    """`count` documents of 1 to `longest` tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    return [random.integers(0, vocabulary, length).tolist() for length in lengths]


def make_folder(
    home: Path,
    train: Documents,
    held_out: Documents = ((1, 2, 3),),
    shard_tokens: int = 1000,
    vocabulary: Vocabulary = BYTES,
) -> Path:
    """A folder of shards that holds these documents."""
    home.mkdir(parents=True)
    with ShardWriter(home, vocabulary, shard_tokens) as writer:
        for document in train:
            writer.add(document, "train")
        for document in held_out:
            writer.add(document, "held_out")
    return home


def change_manifest(home: Path, **changes: Any) -> None:
    """Write other values into a manifest."""
    path = home / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def over(*folders: Path, **changes: Any) -> Mapping[str, Any]:
    """Settings for training on folders; others by name, such as `mix="a=1/2, b=1/2"`."""
    told = {"corpus": "tokens", "path": ",".join(map(str, folders)), "max_documents": 0, **changes}
    return {f"data.{name}": value for name, value in told.items()}


def read_back(source: Source, split: Split) -> list[list[int]]:
    """All documents of a split, as its shards hold them."""
    reader, found = Reader(limit=2), []
    for shard in source.of(split):
        begin, file = 0, source.open_tokens(reader, shard)
        for end in source.read_ends(reader, shard).tolist():
            found.append(source.read_tokens(file, begin, end).tolist())
            begin = end
    reader.close()
    return found
