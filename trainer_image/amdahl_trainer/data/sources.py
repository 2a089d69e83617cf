"""What text is trained on? The sources that a configuration names, opened, checked against one another and packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence as Items
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amdahl_trainer.config import Config
from amdahl_trainer.data import corpus as texts
from amdahl_trainer.data import mix, plan, subset
from amdahl_trainer.data.cache import build_once
from amdahl_trainer.data.files import Reader
from amdahl_trainer.data.order import Order, Sequence
from amdahl_trainer.data.plan import Choice
from amdahl_trainer.data.rows import FromShards, FromText, Limits, Rows, SourceRows, TokenReader
from amdahl_trainer.data.shards import Source, Split, Vocabulary, open_source
from amdahl_trainer.data.tokens import BOS, FIRST_MERGE, BytePairs, Bytes, Tokenizer, learn_merges
from amdahl_trainer.data.write import ShardWriter
from amdahl_trainer.errors import ConfigError, DataError


@dataclass(frozen=True)
class Corpora:
    """Both splits, and what the evaluation needs to count bytes.

    Attributes:
        token_bytes: (vocab_size,) bytes of text that each token stands for.
        digest: of what the sources hold; another one means other data.
    """

    train: Rows
    held_out: Rows
    token_bytes: npt.NDArray[np.int64]
    digest: str
    names: tuple[str, ...]
    shares: tuple[Fraction, ...]

    def order(self, seed: int) -> Sequence:
        """Which row comes at which position."""
        if not self.shares:
            return Order(len(self.train), seed)
        return mix.Mix(self.names, self.train.sizes, self.shares, seed)

    def describe(self) -> str:
        """What there is, a line a source."""
        lines = []
        for name, share, part in zip(self.names, self.train.shares, self.train.parts, strict=True):
            packing = part.plan.packing
            held_out = sum(other.plan.packing.valid for other in self.held_out.parts if other.source is part.source)
            lines.append(
                f"data {name}: {packing.rows} rows, {packing.valid} tokens in {len(part.plan.first_rows) - 1} shards, "
                f"{packing.pad_share:.1%} padding, {share:.1%} of what is read; {held_out} tokens held out"
            )
        return "\n".join(lines)


def ensure(config: Config) -> Corpora:
    """Sources and rows of `config`; what can be built in its cache directory is, where it is missing.

    Raises:
        ConfigError: sources do not fit the configuration or one another, or the cache cannot be written.
        DataError: a source is missing, damaged or empty.
    """
    reader = Reader()
    opened = _pydocs(config, reader) if config.data.corpus == "pydocs" else _folders(config, reader)
    _check(opened, config)
    shares = _shares(opened, config)
    limits = Limits(config.model.vocab_size, config.data.max_bad_samples if config.data.bad_samples == "skip" else None)
    plans = [_plan(one.source, config, reader) for one in opened]

    def rows(split: Split) -> Rows:
        parts = tuple(
            SourceRows(one.source, split, plans[at][split], one.tokens[split], reader, config.data.seq_len, limits)
            for at, one in enumerate(opened)
        )
        sizes = [part.plan.packing.rows for part in parts]
        told = [float(share) for share in shares] or [size / max(1, sum(sizes)) for size in sizes]
        return Rows(parts, tuple(told), config.data.seq_len)

    train, held_out = rows("train"), rows("held_out")
    _check_rows(train, held_out, config)
    sizes = np.zeros(config.model.vocab_size, dtype=np.int64)
    known = opened[0].source.vocabulary.token_bytes[: config.model.vocab_size]
    sizes[: len(known)] = known
    return Corpora(train, held_out, sizes, _digest(opened), tuple(one.source.name for one in opened), shares)


@dataclass(frozen=True)
class _Opened:
    """A source, where the tokens of its splits come from, and a digest of what it holds."""

    source: Source
    tokens: dict[Split, TokenReader]
    digest: str


def _folders(config: Config, reader: Reader) -> list[_Opened]:
    folders = [Path(part.strip()).expanduser() for part in config.data.path.split(",") if part.strip()]
    if not folders:
        raise ConfigError("data.path is empty; name the folder of token shards, or set data.corpus to pydocs")
    if config.data.tokenize == "on_the_fly":
        raise ConfigError("data.tokenize is on_the_fly, but data.corpus tokens holds no text; set it to cached")
    found = []
    for folder in folders:
        source = open_source(folder)
        found.append(_Opened(source, _from_shards(source, reader), source.digest))
    return found


def _from_shards(source: Source, reader: Reader) -> dict[Split, TokenReader]:
    return {"train": FromShards(source, "train", reader), "held_out": FromShards(source, "held_out", reader)}


def _pydocs(config: Config, reader: Reader) -> list[_Opened]:
    """The corpus that is built here: its shards lie in the cache, its text is at hand."""
    data = config.data
    cache = Path(data.cache_dir).expanduser()
    text = texts.ensure(cache)
    documents: dict[Split, list[bytes]] = {
        "train": _documents(text, config, held_out=False),
        "held_out": _documents(text, config, held_out=True),
    }
    stem = f"{data.corpus}-{text.sha256[:8]}-{data.tokenizer}{config.model.vocab_size}-n{data.max_documents}"
    tokenizer, merges = _tokenizer(cache / f"{stem}.merges", documents["train"], config)
    vocabulary = Vocabulary(BOS, tuple(tokenizer.token_bytes()), tuple(merges))
    home = build_once(cache / f"{stem}.shards", lambda home: _write(home, vocabulary, documents, tokenizer))
    source = open_source(home, data.corpus)
    tokens = _from_shards(source, reader)
    if data.tokenize == "on_the_fly":
        for split, found in documents.items():
            rest = iter(found)
            shards = [(list(islice(rest, one.documents)), source.read_ends(reader, one)) for one in source.of(split)]
            tokens[split] = FromText(shards, tokenizer)
    return [_Opened(source, tokens, text.sha256)]


def _documents(text: texts.Corpus, config: Config, *, held_out: bool) -> list[bytes]:
    wanted = [int(index) for index in np.flatnonzero(text.held_out == held_out)]
    found = [text.document(index) for index in wanted[: config.data.max_documents or None]]
    if not found:
        split = "held-out" if held_out else "training"
        raise DataError(f"data.max_documents {config.data.max_documents} leaves no {split} documents; raise it")
    return found


def _tokenizer(home: Path, documents: Items[bytes], config: Config) -> tuple[Tokenizer, list[tuple[int, int]]]:
    if config.data.tokenizer == "bytes":
        return Bytes(), []
    count = config.model.vocab_size - FIRST_MERGE

    def learn(target: Path) -> None:
        (target / "merges.json").write_text(json.dumps(learn_merges(documents, count)))

    told = json.loads((build_once(home, learn) / "merges.json").read_text())
    merges = [(int(left), int(right)) for left, right in told]
    return BytePairs(merges), merges


def _write(home: Path, vocabulary: Vocabulary, documents: dict[Split, list[bytes]], tokenizer: Tokenizer) -> None:
    with ShardWriter(home, vocabulary) as writer:
        for split, found in documents.items():
            for document in found:
                writer.add(tokenizer.encode(document), split)


def _plan(source: Source, config: Config, reader: Reader) -> dict[Split, plan.Plan]:
    data = config.data
    choice = Choice(data.max_documents, subset.parse(data.subset, data.subset_seed), data.packing)
    told = f"{source.digest} {data.seq_len} {choice}"
    home = Path(data.cache_dir).expanduser() / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.rows"
    return plan.read(build_once(home, lambda home: plan.write(home, source, choice, data.seq_len)), reader)


def _shares(opened: Items[_Opened], config: Config) -> tuple[Fraction, ...]:
    """The share of each source, in their order; none where every row is read equally often."""
    if not config.data.mix:
        return ()
    names = [one.source.name for one in opened]
    shares = mix.parse(config.data.mix)
    if sorted(names) != sorted(shares):
        raise ConfigError(
            f"data.mix names {', '.join(sorted(shares))}; the sources are {', '.join(sorted(names))}: "
            "a source is called what its folder is"
        )
    return tuple(shares[name] for name in names)


def _check(opened: Items[_Opened], config: Config) -> None:
    """Sources must be told apart, mean the same by a token, and fit the model."""
    names = [one.source.name for one in opened]
    if len(set(names)) < len(names):
        raise ConfigError(f"data.path names {', '.join(names)}; two folders need two names, which name the sources")
    first = opened[0].source
    for one in opened:
        source = one.source
        if source.vocabulary != first.vocabulary:
            raise ConfigError(f"{source.home} and {first.home} have different vocabularies; tokenize them alike")
        highest = max(source.vocabulary.bos, *(shard.max_token for shard in source.shards))
        must_fit = source.vocabulary.bos if config.data.bad_samples == "skip" else highest
        if must_fit >= config.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size is {config.model.vocab_size}, but {source.home} holds token {must_fit}; "
                f"set it to at least {len(source.vocabulary.token_bytes)}"
            )


def _check_rows(train: Rows, held_out: Rows, config: Config) -> None:
    for part in train.parts:
        if not part.plan.packing.rows:
            raise DataError(
                f"{part.source.home}: data.subset {config.data.subset} and data.max_documents "
                f"{config.data.max_documents} leave no documents; raise them"
            )
    if config.eval.every_steps and not len(held_out):
        raise ConfigError(
            f"eval.every_steps is {config.eval.every_steps}, but data.path holds nothing held out; set it to 0"
        )


def _digest(opened: Items[_Opened]) -> str:
    return hashlib.sha256(" ".join(one.digest for one in opened).encode()).hexdigest()[:16]
