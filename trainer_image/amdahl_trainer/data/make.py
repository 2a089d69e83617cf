"""How does a user's own text become shards? Files to documents to tokens, in order, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from amdahl_trainer.data.cache import build_once
from amdahl_trainer.data.shards import Source, Vocabulary, open_source
from amdahl_trainer.data.tokens import BOS, FIRST_MERGE, BytePairs, Bytes, Tokenizer, learn_merges, split_words
from amdahl_trainer.data.write import ShardWriter, split_of
from amdahl_trainer.errors import ConfigError, DataError

#: What is taken for text in a folder.
SUFFIXES = frozenset({".txt", ".md", ".rst", ".py", ".jsonl"})

#: Byte pairs are learnt on at most this many documents from the front.
LEARNT_ON = 20_000


@dataclass
class Tally:
    """Texts that are none: how many may be passed over, and which were."""

    limit: int | None
    found: list[str] = field(default_factory=list)

    def note(self, where: str, why: str) -> None:
        """Raises DataError unless one more may be passed over."""
        if self.limit is None:
            raise DataError(f"{where}: {why}; mend it, or pass over it with --bad-samples skip")
        self.found.append(f"{where}: {why}")
        if len(self.found) > self.limit:
            raise DataError(
                f"more than {self.limit} bad samples, the last is {self.found[-1]}; raise --max-bad-samples"
            )


def make(home: Path, paths: Sequence[Path], merges: int, shard_tokens: int, tally: Tally) -> Source:
    """Shards of all documents in `paths`, tokenized as bytes, or with `merges` byte pairs learnt on them.

    Raises:
        ConfigError: a path is missing, or `home` is there or cannot be written.
        DataError: a text is none, or there is no text.
    """
    files = find(paths)
    if home.exists():
        raise ConfigError(f"{home} exists; shards are written once: name another folder, or delete this one")
    tokenizer, learnt = _tokenizer(files, merges)
    vocabulary = Vocabulary(BOS, tuple(tokenizer.token_bytes()), learnt)

    def write(draft: Path) -> None:
        with ShardWriter(draft, vocabulary, shard_tokens) as writer:
            for text in documents(files, tally):
                writer.add(tokenizer.encode(text), split_of(text))
        open_source(draft)  # what holds nothing to train on never appears

    return open_source(build_once(home, write, "the folder of shards"))


def find(paths: Sequence[Path]) -> list[Path]:
    """The text files among `paths` and in the folders among them, sorted within each. Raises ConfigError."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist; name text files, or folders of them")
        inside = (one for one in sorted(path.rglob("*")) if one.is_file() and one.suffix in SUFFIXES)
        files += inside if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"no text files in {', '.join(map(str, paths))}; they end in {', '.join(sorted(SUFFIXES))}")
    return files


def documents(files: Sequence[Path], tally: Tally) -> Iterator[bytes]:
    """UTF-8 texts: a file each, or of `.jsonl` files the `text` of each line. Raises DataError."""
    for path in files:
        if path.suffix == ".jsonl":
            yield from _lines(path, tally)
            continue
        content = path.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as error:
            tally.note(str(path), f"no UTF-8 ({error.reason} at byte {error.start})")
            continue
        yield content


def _lines(path: Path, tally: Tally) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = json.loads(line)["text"]
                yield text.encode()
            except (ValueError, KeyError, TypeError, AttributeError) as error:  # UnicodeError is a ValueError
                tally.note(f"{path}:{number}", f'no JSON object with a "text" ({type(error).__name__}: {error})')


class Words:
    """A byte-pair tokenizer that remembers words: the same tokens, many times faster on plain text."""

    #: Words kept; a corpus has more, but most text is made of fewer.
    LIMIT = 1 << 18

    def __init__(self, pairs: BytePairs) -> None:
        self._pairs = pairs
        self._kept: dict[bytes, list[int]] = {}

    def encode(self, text: bytes) -> list[int]:
        """Tokens of `text`."""
        return [token for word in split_words(text) for token in self._encode_word(word)]

    def token_bytes(self) -> list[int]:
        """The other's."""
        return self._pairs.token_bytes()

    def _encode_word(self, word: bytes) -> list[int]:
        tokens = self._kept.get(word)
        if tokens is None:
            tokens = self._pairs.encode_word(word)
            if len(self._kept) < self.LIMIT:
                self._kept[word] = tokens
        return tokens


def _tokenizer(files: Sequence[Path], merges: int) -> tuple[Tokenizer, tuple[tuple[int, int], ...]]:
    if not merges:
        return Bytes(), ()
    unheard = Tally(limit=1 << 62)  # bad texts are told when they are written
    learnt = learn_merges(islice(documents(files, unheard), LEARNT_ON), merges)
    return Words(BytePairs(learnt)), tuple(learnt)


__all__ = ["FIRST_MERGE", "Tally", "documents", "find", "make"]
