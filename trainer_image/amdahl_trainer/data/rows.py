"""What is in each row? Packed pieces of documents, their tokens read from a file or made again each time.

The plan (which piece of which document lies in which row) is built once. `cached` rows come from a memory-mapped file;
`on_the_fly` rows encode the text of their documents, whole, and take the pieces out, which is what a pipeline without
a cache does. Both give the same tokens, so the choice changes time and nothing else.

A piece of k tokens takes k slots: the inputs are the start token and its first k - 1 tokens, the targets all k. Every
token of the corpus is thus a target once in an epoch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from amdahl_trainer.config import Config
from amdahl_trainer.data import corpus as corpora
from amdahl_trainer.data.cache import build_once
from amdahl_trainer.data.pack import Packing, best_fit, measure
from amdahl_trainer.data.tokens import BOS, FIRST_MERGE, BytePairs, Bytes, Remembering, Tokenizer, learn_merges
from amdahl_trainer.errors import DataError
from amdahl_trainer.loss import IGNORED

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, Split] = ("train", "held_out")


class Row(NamedTuple):
    """One packed row of `seq_len` slots; padding is BOS in, `IGNORED` out, segment 0."""

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The rows of one split. Row r holds `pieces[starts[r]:starts[r + 1]]`, each (document, first token, last + 1)."""

    corpus: corpora.Corpus
    tokenizer: Tokenizer
    seq_len: int
    pieces: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    cached: npt.NDArray[np.uint16] | None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    def row(self, index: int) -> Row:
        """Assemble one row."""
        inputs = np.full(self.seq_len, BOS, dtype=np.int64)
        targets = np.full(self.seq_len, IGNORED, dtype=np.int64)
        segments = np.zeros(self.seq_len, dtype=np.int64)
        at = 0
        for number, (document, first, end) in enumerate(self.pieces_of(index), start=1):
            slots = slice(at, at + end - first)
            tokens = self._encode(document)[first:end] if self.cached is None else self.cached[index, slots]
            targets[slots] = tokens
            inputs[at + 1 : slots.stop] = tokens[:-1]
            segments[slots] = number
            at = slots.stop
        return Row(inputs, targets, segments)

    def pieces_of(self, index: int) -> list[tuple[int, int, int]]:
        """(document, first token, last + 1) of each piece of a row, in order."""
        return [(int(d), int(a), int(b)) for d, a, b in self.pieces[self.starts[index] : self.starts[index + 1]]]

    @functools.cached_property
    def mean_document(self) -> float:
        """How long a piece the average token of the split lies in."""
        return self.packing.sum_len_sq / self.packing.valid

    @functools.cached_property
    def packing(self) -> Packing:
        """How well all documents of the split fill its rows."""
        return measure((self.pieces[:, 2] - self.pieces[:, 1]).tolist(), len(self), self.seq_len)

    def packing_of(self, rows: Sequence[int]) -> Packing:
        """How well some rows are filled, such as those of a batch."""
        return measure((end - first for row in rows for _, first, end in self.pieces_of(row)), len(rows), self.seq_len)

    def _encode(self, document: int) -> list[int]:
        return self.tokenizer.encode(self.corpus.document(document))


@dataclass(frozen=True)
class Corpora:
    """Both splits and what the evaluation needs to count bytes."""

    train: Rows
    held_out: Rows
    token_bytes: npt.NDArray[np.int64]


def ensure(config: Config) -> Corpora:
    """Corpus, merges and rows of `config`, built in its cache directory where they are missing.

    Raises:
        ConfigError: something must be built and the cache cannot be written.
        DataError: the corpus is too small for this configuration.
    """
    data = config.data
    cache = Path(data.cache_dir).expanduser()
    corpus = corpora.ensure(cache)
    stem = f"{data.corpus}-{corpus.sha256[:8]}-{data.tokenizer}{config.model.vocab_size}-n{data.max_documents}"
    tokenizer = _tokenizer(cache / f"{stem}.merges", corpus, config)
    once = Remembering(tokenizer)  # building reads each document many times
    plan = build_once(cache / f"{stem}-s{data.seq_len}.plan", lambda home: _plan(home, corpus, once, config))
    train, held_out = (_open(plan, split, corpus, tokenizer, data.seq_len) for split in SPLITS)
    if data.tokenize == "cached":
        slow = replace(train, tokenizer=once), replace(held_out, tokenizer=once)
        tokens = build_once(cache / f"{stem}-s{data.seq_len}.tokens", lambda home: _write_tokens(home, *slow))
        train, held_out = _with_tokens(train, tokens, "train"), _with_tokens(held_out, tokens, "held_out")
    sizes = np.zeros(config.model.vocab_size, dtype=np.int64)
    known = tokenizer.token_bytes()
    sizes[: len(known)] = known
    return Corpora(train, held_out, sizes)


def _tokenizer(home: Path, corpus: corpora.Corpus, config: Config) -> Tokenizer:
    if config.data.tokenizer == "bytes":
        return Bytes()
    count = config.model.vocab_size - FIRST_MERGE

    def learn(target: Path) -> None:
        texts = (corpus.document(index) for index in _documents(corpus, config, held_out=False))
        (target / "merges.json").write_text(json.dumps(learn_merges(texts, count)))

    merges = json.loads((build_once(home, learn) / "merges.json").read_text())
    return BytePairs([(left, right) for left, right in merges])


def _documents(corpus: corpora.Corpus, config: Config, *, held_out: bool) -> list[int]:
    wanted = [int(index) for index in np.flatnonzero(corpus.held_out == held_out)]
    return wanted[: config.data.max_documents or None]


def _plan(home: Path, corpus: corpora.Corpus, tokenizer: Tokenizer, config: Config) -> None:
    for split in SPLITS:
        documents = _documents(corpus, config, held_out=split == "held_out")
        if not documents:
            raise DataError(f"data.max_documents {config.data.max_documents} leaves no {split} documents; raise it")
        pieces = cut(documents, [len(tokenizer.encode(corpus.document(d))) for d in documents], config.data.seq_len)
        rows = best_fit([end - first for _, first, end in pieces], config.data.seq_len)
        np.save(home / f"{split}.pieces.npy", np.array([pieces[at] for row in rows for at in row], dtype=np.int64))
        np.save(home / f"{split}.starts.npy", np.cumsum([0] + [len(row) for row in rows], dtype=np.int64))


def cut(documents: Sequence[int], lengths: Sequence[int], limit: int) -> list[tuple[int, int, int]]:
    """(document, first token, last + 1) of pieces of at most `limit` tokens; documents that fit stay whole."""
    return [
        (document, first, min(first + limit, length))
        for document, length in zip(documents, lengths, strict=True)
        for first in range(0, length, limit)
    ]


def _open(plan: Path, split: Split, corpus: corpora.Corpus, tokenizer: Tokenizer, seq_len: int) -> Rows:
    pieces, starts = (np.load(plan / f"{split}.{part}.npy") for part in ("pieces", "starts"))
    return Rows(corpus, tokenizer, seq_len, pieces, starts, None)


def _write_tokens(home: Path, train: Rows, held_out: Rows) -> None:
    for split, rows in (("train", train), ("held_out", held_out)):
        targets = np.stack([rows.row(index).targets for index in range(len(rows))])
        np.save(home / f"{split}.npy", np.where(targets == IGNORED, 0, targets).astype(np.uint16))


def _with_tokens(rows: Rows, home: Path, split: str) -> Rows:
    cached: npt.NDArray[np.uint16] = np.load(home / f"{split}.npy", mmap_mode="r")
    return replace(rows, cached=cached)


__all__ = ["Corpora", "Row", "Rows", "Split", "cut", "ensure"]
