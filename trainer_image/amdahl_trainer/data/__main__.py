"""`python -m amdahl_trainer.data make FOLDER TEXT...` writes token shards; `check FOLDER...` reads them all again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from amdahl_trainer.data.make import FIRST_MERGE, Tally, make
from amdahl_trainer.data.shards import SPLITS, Source, open_source, verify
from amdahl_trainer.data.write import SHARD_TOKENS
from amdahl_trainer.errors import TrainerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or check shards, and return one of the trainer's exit codes."""
    options = _parser().parse_args(arguments)
    try:
        if options.do == "make":
            _make(options)
        else:
            for folder in options.folders:
                source = open_source(folder)
                verify(source)
                print(describe(source))
    except TrainerError as error:
        print(f"amdahl_trainer.data: {error}", file=sys.stderr)
        return int(error.code)
    return 0


def describe(source: Source) -> str:
    """One line: what a folder of shards holds."""
    counts = ", ".join(
        f"{split} {sum(one.documents for one in source.of(split))} documents "
        f"{sum(one.tokens for one in source.of(split))} tokens"
        for split in SPLITS
    )
    size = len(source.vocabulary.token_bytes)
    return f"{source.home}: {len(source.shards)} shards of {source.dtype}, vocabulary of {size}; {counts}"


def _make(options: argparse.Namespace) -> None:
    tally = Tally(options.max_bad_samples if options.bad_samples == "skip" else None)
    merges = options.vocab_size - FIRST_MERGE if options.vocab_size else 0
    print(describe(make(options.folder, options.texts, merges, options.shard_tokens, tally)))
    for bad in tally.found:
        print(f"passed over {bad}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="amdahl_trainer.data", description=__doc__)
    commands = parser.add_subparsers(dest="do", required=True)
    maker = commands.add_parser("make", help="write shards of text files")
    maker.add_argument("folder", type=Path, help="the folder to write; its name names the source")
    maker.add_argument("texts", type=Path, nargs="+", help="files, or folders of them; .jsonl holds a text a line")
    maker.add_argument("--vocab-size", type=_vocab_size, default=0, help="learn byte pairs up to it; else bytes")
    maker.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens after which a shard ends")
    maker.add_argument("--bad-samples", choices=("fail", "skip"), default="fail", help="texts that are none")
    maker.add_argument("--max-bad-samples", type=int, default=100, help="how many to skip before failing")
    checker = commands.add_parser("check", help="compare every file of some folders with its SHA-256")
    checker.add_argument("folders", type=Path, nargs="+")
    return parser


def _vocab_size(text: str) -> int:
    size = int(text)
    if size <= FIRST_MERGE:
        raise argparse.ArgumentTypeError(f"{size}; bytes and the start of a document alone are {FIRST_MERGE}")
    return size


if __name__ == "__main__":
    sys.exit(main())
