"""How do tokens lie on the disk? A folder: two plain files a shard, and a manifest that says what they must be.

    manifest.json        format, width of tokens, and of each shard: split, documents, tokens, highest token, SHA-256
    vocabulary.json      bytes that each token stands for, and merges if there are any
    train-00000.tokens   documents end to end, little-endian uint16 or uint32
    train-00000.ends     for each document its last token + 1, little-endian int64

Nothing is read whole and nothing is mapped: a start looks at sizes, the packing plan (cached) at `.ends`, and a row at
its own tokens. `data/write.py` writes it; numpy's `tofile` would do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from amdahl_trainer.data.files import File, Reader, check_size, missing
from amdahl_trainer.errors import DataError

FORMAT = "amdahl.tokens/1"
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.json"
DTYPES: Mapping[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
END = np.dtype("<i8")

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, Split] = get_args(Split)
Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Vocabulary:
    """What tokens mean: the start of a document, and the bytes of text that each token stands for."""

    bos: int
    token_bytes: tuple[int, ...]
    merges: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> str:
        """Its file's content, always the same for the same vocabulary."""
        return json.dumps({"bos": self.bos, "token_bytes": self.token_bytes, "merges": self.merges}) + "\n"

    @property
    def sha256(self) -> str:
        """Of its file's content."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class Shard:
    """One pair of files, as the manifest has it."""

    name: str
    split: Split
    documents: int
    tokens: int
    max_token: int
    sha256_tokens: str
    sha256_ends: str


@dataclass(frozen=True)
class Source:
    """A folder of shards, opened. It is called what the folder is, unless someone says otherwise."""

    name: str
    home: Path
    dtype: np.dtype[Any]
    vocabulary: Vocabulary
    shards: tuple[Shard, ...]
    digest: str

    def of(self, split: Split) -> tuple[Shard, ...]:
        """The shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def files(self, shard: Shard) -> tuple[tuple[Path, int, str], tuple[Path, int, str]]:
        """Path, size and SHA-256 of both files of a shard: tokens, ends."""
        return (
            (self.home / f"{shard.name}.tokens", shard.tokens * self.dtype.itemsize, shard.sha256_tokens),
            (self.home / f"{shard.name}.ends", shard.documents * END.itemsize, shard.sha256_ends),
        )

    def open_tokens(self, reader: Reader, shard: Shard) -> File:
        """The tokens of a shard, for `read_tokens`."""
        (path, size, _), _ = self.files(shard)
        return reader.file(path, size)

    def read_tokens(self, file: File, begin: int, end: int) -> Tokens:
        """Tokens `begin` to `end` - 1 of a shard. Raises DataError, OSError."""
        width = self.dtype.itemsize
        found: Tokens = np.frombuffer(file.read(begin * width, (end - begin) * width), self.dtype)
        return found

    def read_ends(self, reader: Reader, shard: Shard) -> npt.NDArray[np.int64]:
        """(documents,) the ends of a shard's documents. Raises DataError if they cannot be that, OSError."""
        _, (path, size, _) = self.files(shard)
        ends = np.frombuffer(reader.file(path, size).read(0, size), END).astype(np.int64)
        if len(ends) and (ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] != shard.tokens):
            raise DataError(
                f"{path} is damaged: ends must rise to {shard.tokens}, the last is {ends[-1]}; copy it again"
            )
        return ends

    def document_at(self, reader: Reader, shard: Shard, token: int) -> tuple[int, int]:
        """The document that a token of a shard belongs to, and the document's first token."""
        ends = self.read_ends(reader, shard)
        document = int(np.searchsorted(ends, token, side="right"))
        return document, int(ends[document - 1]) if document else 0


def open_source(home: Path, name: str = "") -> Source:
    """Read manifest and vocabulary, and look at the size of every file.

    Raises:
        DataError: a file is missing, truncated or grown, or the manifest is not one.
    """
    raw, digest = _read(home / MANIFEST)
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise DataError(f"{home / MANIFEST} has format {found!r}; this trainer reads {FORMAT}: make the shards anew")
    if raw.get("dtype") not in DTYPES:
        raise DataError(f"{home / MANIFEST}: dtype is {raw.get('dtype')!r}; tokens are {' or '.join(DTYPES)}")
    try:
        shards = tuple(_shard(one) for one in raw["shards"])
        told = str(raw["vocabulary_sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{home / MANIFEST} is damaged ({type(error).__name__}: {error}); copy it again") from error
    source = Source(
        name or home.absolute().name, home, DTYPES[raw["dtype"]], _vocabulary(home / VOCABULARY, told), shards, digest
    )
    for shard in shards:
        for path, size, _ in source.files(shard):
            check_size(path, size)
    if not any(shard.tokens for shard in source.of("train")):
        raise DataError(f"{home} holds no training documents; make shards of texts that have some")
    return source


def verify(source: Source) -> None:
    """Read every file and compare its SHA-256 with the manifest. Raises DataError for the first that differs."""
    for shard in source.shards:
        for path, _, told in source.files(shard):
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != told:
                raise DataError(f"{path} has SHA-256 {found[:16]}…, its manifest says {told[:16]}…; copy it again")


def _shard(raw: Mapping[str, Any]) -> Shard:
    split = raw["split"]
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}")
    documents, tokens, max_token = (int(raw[key]) for key in ("documents", "tokens", "max_token"))
    if min(documents, tokens, max_token) < 0 or "/" in str(raw["name"]):
        raise ValueError(f"shard {raw['name']!r}")
    sums = str(raw["sha256_tokens"]), str(raw["sha256_ends"])
    return Shard(str(raw["name"]), split, documents, tokens, max_token, *sums)


def _vocabulary(path: Path, told: str) -> Vocabulary:
    raw, found = _read(path)
    if found != told:
        raise DataError(f"{path} has SHA-256 {found[:16]}…, its manifest says {told[:16]}…; copy it again")
    try:
        merges = tuple((int(left), int(right)) for left, right in raw["merges"])
        return Vocabulary(int(raw["bos"]), tuple(int(size) for size in raw["token_bytes"]), merges)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); copy it again") from error


def _read(path: Path) -> tuple[Any, str]:
    """The content and its SHA-256."""
    try:
        content = path.read_bytes()
        return json.loads(content), hashlib.sha256(content).hexdigest()
    except FileNotFoundError as error:
        if path.name != MANIFEST:
            raise missing(path) from error
        raise DataError(
            f"{path.parent} holds no {MANIFEST}; name a folder that `python -m amdahl_trainer.data make` wrote"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its rights and its disk") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); copy it again") from error
