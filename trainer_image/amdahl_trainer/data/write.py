"""How do documents become shards? One after another, in bounded memory, into a folder that appears when it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from amdahl_trainer.data.shards import DTYPES, END, FORMAT, MANIFEST, SPLITS, VOCABULARY, Shard, Split, Vocabulary
from amdahl_trainer.errors import DataError

#: Tokens after which a new shard begins: 128 MiB of uint16. Rows are packed within a shard.
SHARD_TOKENS = 1 << 26

#: One document in this many is held out, chosen by its content, so that the split never depends on the order.
HELD_OUT = 20


def split_of(content: bytes) -> Split:
    """Whether a document of this content is trained on or held out."""
    return "held_out" if hashlib.sha256(content).digest()[0] % HELD_OUT == 0 else "train"


class ShardWriter:
    """Writes documents as shards into an empty folder; the manifest comes last."""

    def __init__(self, home: Path, vocabulary: Vocabulary, shard_tokens: int = SHARD_TOKENS) -> None:
        self._home = home
        self._vocabulary = vocabulary
        self._kind = "uint16" if len(vocabulary.token_bytes) <= 1 << 16 else "uint32"
        self._shard_tokens = shard_tokens
        self._open: dict[Split, _Draft] = {}
        self._done: list[Shard] = []

    def __enter__(self) -> Self:
        """The writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the manifest, unless something failed."""
        for split in list(self._open):
            self._finish(split)
        if kind is None:
            self._write_manifest()

    def add(self, tokens: Sequence[int], split: Split) -> None:
        """Append a document, without a start token. Raises DataError for a token outside the vocabulary."""
        values = np.asarray(tokens, dtype=np.int64)
        if len(values) and not 0 <= values.min() <= values.max() < len(self._vocabulary.token_bytes):
            raise DataError(
                f"a document holds token {values.max()}; the vocabulary has {len(self._vocabulary.token_bytes)}"
            )
        if split in self._open and self._open[split].tokens + len(values) > self._shard_tokens:
            self._finish(split)
        if split not in self._open:
            count = sum(shard.split == split for shard in self._done)
            self._open[split] = _Draft(self._home / f"{split}-{count:05d}")
        self._open[split].add(values.astype(DTYPES[self._kind]), int(values.max(initial=0)))

    def _finish(self, split: Split) -> None:
        self._done.append(self._open.pop(split).finish(split))

    def _write_manifest(self) -> None:
        (self._home / VOCABULARY).write_text(self._vocabulary.to_json())
        shards = sorted(self._done, key=lambda shard: (SPLITS.index(shard.split), shard.name))
        manifest = {
            "format": FORMAT,
            "dtype": self._kind,
            "vocabulary_sha256": self._vocabulary.sha256,
            "shards": [asdict(shard) for shard in shards],
        }
        (self._home / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


class _Draft:
    """A shard that is being written."""

    def __init__(self, stem: Path) -> None:
        self.tokens = 0
        self._stem = stem
        self._documents = 0
        self._max_token = 0
        self._hashes = (hashlib.sha256(), hashlib.sha256())
        self._files: tuple[BinaryIO, BinaryIO] = (
            Path(f"{stem}.tokens").open("wb"),  # noqa: SIM115 (open as long as the draft is)
            Path(f"{stem}.ends").open("wb"),  # noqa: SIM115 (as above)
        )

    def add(self, tokens: np.ndarray[tuple[int], np.dtype[np.uint16 | np.uint32]], highest: int) -> None:
        self.tokens += len(tokens)
        self._documents += 1
        self._max_token = max(self._max_token, highest)
        for file, hashed, content in zip(
            self._files, self._hashes, (tokens.tobytes(), np.array([self.tokens], END).tobytes()), strict=True
        ):
            file.write(content)
            hashed.update(content)

    def finish(self, split: Split) -> Shard:
        for file in self._files:
            file.close()
        sums = (hashed.hexdigest() for hashed in self._hashes)
        return Shard(self._stem.name, split, self._documents, self.tokens, self._max_token, *sums)
