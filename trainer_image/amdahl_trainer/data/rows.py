"""What is in each row? Packed pieces of documents, their tokens read from shards or made again from the text each time.

A piece of k tokens takes k slots: the inputs are the start token and its first k - 1 tokens, the targets all k. Every
token of the sources is thus a target once in an epoch.

A piece that cannot be trained on (a token that the model has no row for, a text that is no text) ends the run, or is
left out of its row, which then has more padding at its end; a row that is left with nothing gives way to the next one
of its source. Both follow from the row's number alone, so every rank, world size and resumed run does the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from amdahl_trainer.data import pack
from amdahl_trainer.data.counts import Bad, Meter
from amdahl_trainer.data.files import Reader
from amdahl_trainer.data.pack import Packing
from amdahl_trainer.data.plan import Plan
from amdahl_trainer.data.shards import Shard, Source, Split, Tokens
from amdahl_trainer.data.tokens import Tokenizer
from amdahl_trainer.errors import DataError
from amdahl_trainer.loss import IGNORED

Slots = npt.NDArray[np.int64]


class Row(NamedTuple):
    """One packed row of `seq_len` slots; padding is BOS in, `IGNORED` out, segment 0."""

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int64]


class TokenReader(Protocol):
    """Where the tokens of one split of a source come from."""

    def read(self, shard: int, begin: int, end: int, meter: Meter) -> Tokens | str:
        """Tokens `begin` to `end` - 1 of the split's shard of that number, or why there are none."""


class FromShards:
    """Tokens as they lie on the disk."""

    def __init__(self, source: Source, split: Split, reader: Reader) -> None:
        self._source = source
        self._files = [source.open_tokens(reader, shard) for shard in source.of(split)]

    def read(self, shard: int, begin: int, end: int, meter: Meter) -> Tokens:
        """Tokens `begin` to `end` - 1. Raises DataError, OSError."""
        found = self._source.read_tokens(self._files[shard], begin, end)
        meter.bytes += found.nbytes
        meter.end("read_ns")
        return found


class FromText:
    """Tokens made anew from the texts that shards were made of, whole, as augmenting pipelines do."""

    def __init__(self, shards: Sequence[tuple[Sequence[bytes], npt.NDArray[np.int64]]], tokenizer: Tokenizer) -> None:
        """The documents of each shard and their ends in it."""
        self._shards, self._tokenizer = shards, tokenizer

    def read(self, shard: int, begin: int, end: int, meter: Meter) -> Tokens | str:
        """Tokens `begin` to `end` - 1, or why the text has none."""
        documents, ends = self._shards[shard]
        document = int(np.searchsorted(ends, begin, side="right"))
        first = int(ends[document - 1]) if document else 0
        text = documents[document]
        meter.bytes += len(text)
        try:
            tokens = self._tokenizer.encode(text)
        except UnicodeError as error:
            return f"it is no UTF-8 ({error})"
        finally:
            meter.end("tokenize_ns")
        return np.asarray(tokens[begin - first : end - first], dtype=np.uint32)


@dataclass(frozen=True)
class Limits:
    """What a sample must be to be trained on, and what becomes of one that is not.

    Attributes:
        vocab_size: tokens that the model knows.
        bad: how many may be left out, or none at all.
    """

    vocab_size: int
    bad: int | None

    def fault_of(self, tokens: Tokens | str) -> str | None:
        """Why tokens cannot be trained on."""
        if isinstance(tokens, str):
            return tokens
        highest = int(tokens.max())
        return None if highest < self.vocab_size else f"token {highest}, model.vocab_size is {self.vocab_size}"


@dataclass(frozen=True)
class SourceRows:
    """The rows of one split of one source."""

    source: Source
    split: Split
    plan: Plan
    tokens: TokenReader
    reader: Reader
    seq_len: int
    limits: Limits

    def fill(self, slots: Slots, index: int, meter: Meter) -> None:
        """Lay a row into (3, seq_len) inputs, targets and segments; one whose every piece is bad gives way to the next.

        Raises:
            DataError: a file is not what it was, or more is bad than may be.
            OSError: the disk or the network failed, which may pass.
        """
        for at in range(index, index + self.plan.packing.rows):
            if self._lay(slots, at % self.plan.packing.rows, meter):
                return
        raise DataError(f"{self.source.home}: no row holds anything that can be trained on")

    def _lay(self, slots: Slots, index: int, meter: Meter) -> int:
        """How many pieces have found their place."""
        inputs, targets, segments = slots
        inputs.fill(self.source.vocabulary.bos)
        targets.fill(IGNORED)
        segments.fill(0)
        shard = self.plan.shard_of(index)
        at = number = 0
        for begin, end in self.plan.pieces_of(index):
            tokens = self.tokens.read(shard, begin, end, meter)
            fault = self.limits.fault_of(tokens)
            if fault is not None or isinstance(tokens, str):
                self._leave_out(shard, begin, end, str(fault), meter)
                continue
            number += 1
            stop = at + end - begin
            targets[at:stop] = tokens
            inputs[at + 1 : stop] = tokens[:-1]
            segments[at:stop] = number
            at = stop
            meter.pieces += 1
            meter.sum_len_sq += (end - begin) ** 2
            meter.end("pack_ns")
        return number

    def _leave_out(self, number: int, begin: int, end: int, why: str, meter: Meter) -> None:
        shard = self.source.of(self.split)[number]
        bad = self._name(shard, begin, end, why)
        if self.limits.bad is None:
            raise DataError(f"{bad}; mend it, or set data.bad_samples to skip")
        meter.bad.append(bad)
        if len(meter.bad) > self.limits.bad:
            raise too_many(meter.bad[-1], self.limits.bad)

    def _name(self, shard: Shard, begin: int, end: int, why: str) -> Bad:
        document, first = self.source.document_at(self.reader, shard, begin)
        return Bad(self.source.name, shard.name, document, begin - first, end - first, why)


@dataclass(frozen=True)
class Rows:
    """The rows of one split of all sources, numbered one source after another.

    Attributes:
        shares: what part of the rows that are read each source gives.
    """

    parts: tuple[SourceRows, ...]
    shares: tuple[float, ...]
    seq_len: int

    def __len__(self) -> int:
        """Number of rows."""
        return self._firsts[-1]

    def row(self, index: int) -> Row:
        """One row, by itself. Raises DataError, OSError."""
        slots = np.empty((3, self.seq_len), dtype=np.int64)
        self.fill(slots, index, Meter())
        return Row(*slots)

    def fill(self, slots: Slots, index: int, meter: Meter) -> None:
        """Lay a row into (3, seq_len) inputs, targets and segments. Raises DataError, OSError."""
        part, at = self._find(index)
        part.fill(slots, at, meter)

    def pieces_of(self, index: int) -> list[tuple[int, int]]:
        """Begin and end, within its shard, of each piece of a row, in order."""
        part, at = self._find(index)
        return part.plan.pieces_of(at)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each source."""
        return tuple(part.plan.packing.rows for part in self.parts)

    @property
    def mean_document(self) -> float:
        """How long a piece the average token that is read lies in."""
        each = [(share / part.plan.packing.rows, part.plan.packing) for share, part in self._shared()]
        return sum(w * one.sum_len_sq for w, one in each) / sum(w * one.valid for w, one in each)

    @property
    def packing(self) -> Packing:
        """How well all documents of the split fill its rows."""
        return pack.total(part.plan.packing for part in self.parts)

    def packing_of(self, rows: Sequence[int]) -> Packing:
        """How well some rows are filled, such as those of a batch."""
        lengths = np.array([end - begin for row in rows for begin, end in self.pieces_of(row)], dtype=np.int64)
        return pack.measure(lengths, len(rows), self.seq_len)

    def _shared(self) -> list[tuple[float, SourceRows]]:
        return [(share, part) for share, part in zip(self.shares, self.parts, strict=True) if part.plan.packing.rows]

    def _find(self, index: int) -> tuple[SourceRows, int]:
        part = bisect_right(self._firsts, index) - 1
        return self.parts[part], index - self._firsts[part]

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        return tuple(accumulate(self.sizes, initial=0))


def too_many(last: Bad, limit: int) -> DataError:
    """The error for more bad samples in one batch than may be left out in a run."""
    return DataError(f"more than {limit} bad samples, the last is {last}; mend the data, or raise data.max_bad_samples")
