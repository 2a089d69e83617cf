"""Which piece of which document lies in which row? Decided once for a source and kept, a shard at a time.

Rows never cross shards, so planning needs one shard's index in memory and a row reads one file; each shard's last rows
cost less than one row of padding. The plan of a split is two plain files of int64, read at offsets like the tokens:

    train.pieces   (pieces, 2) begin and end of each piece in its shard, row after row
    train.starts   (rows + 1,) where in that list each row begins
    plan.json      first row of each shard, and how well all rows are filled
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np

from amdahl_trainer.data import pack
from amdahl_trainer.data.files import File, Reader, check_size
from amdahl_trainer.data.pack import Numbers, Packing
from amdahl_trainer.data.shards import SPLITS, Source, Split
from amdahl_trainer.data.subset import Subset
from amdahl_trainer.errors import DataError

_WIDTH = 8
_PAIR = Struct("<qq")


@dataclass(frozen=True)
class Choice:
    """Which documents of a source are used: the first ones, and of the training ones among them a subset; and how.

    `packing` is that of training rows. Held-out ones are always packed by best fit, so that what is measured on them
    can be compared.
    """

    first: int
    subset: Subset
    packing: str = "best_fit"

    def documents(self, total: int) -> int:
        """How many of a split's documents come into question."""
        return min(self.first or total, total)


@dataclass(frozen=True)
class Plan:
    """The plan of one split."""

    starts: File
    pieces: File
    packing: Packing
    #: The first row of each shard, and at last the number of rows.
    first_rows: tuple[int, ...]

    def shard_of(self, row: int) -> int:
        """The number, among the split's shards, of the one that a row is read from."""
        return bisect_right(self.first_rows, row) - 1

    def pieces_of(self, row: int) -> list[tuple[int, int]]:
        """Begin and end, within its shard, of each piece of a row. Raises DataError, OSError."""
        first, last = _PAIR.unpack(self.starts.read(row * _WIDTH, _PAIR.size))
        raw = self.pieces.read(first * _PAIR.size, (last - first) * _PAIR.size)
        return list(_PAIR.iter_unpack(raw))


def write(home: Path, source: Source, choice: Choice, seq_len: int) -> None:
    """Plan both splits of a source into an empty directory. Raises DataError if an index is damaged."""
    reader = Reader()
    told = {split: _write_split(home, source, choice, seq_len, split, reader) for split in SPLITS}
    reader.close()
    (home / "plan.json").write_text(json.dumps(told, indent=1) + "\n")


def read(home: Path, reader: Reader) -> dict[Split, Plan]:
    """What `write` left. Raises DataError if it is damaged."""
    try:
        told = json.loads((home / "plan.json").read_text())
        plans = {split: _open(home / split, reader, told[split]) for split in SPLITS}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{home} is damaged ({error}); delete it, it is built again") from error
    for plan in plans.values():
        for file in (plan.starts, plan.pieces):
            check_size(file.path, file.size)
    return plans


def _open(stem: Path, reader: Reader, told: Mapping[str, Any]) -> Plan:
    packing = Packing(**told["packing"])
    starts = reader.file(stem.with_suffix(".starts"), (packing.rows + 1) * _WIDTH)
    pieces = reader.file(stem.with_suffix(".pieces"), packing.pieces * _PAIR.size)
    return Plan(starts, pieces, packing, tuple(told["first_rows"]))


def _write_split(
    home: Path, source: Source, choice: Choice, seq_len: int, split: Split, reader: Reader
) -> dict[str, object]:
    shards = source.of(split)
    total = choice.documents(sum(shard.documents for shard in shards))
    limit = choice.subset.limit(total) if split == "train" else None
    packings: list[Packing] = []
    first_rows, pieces_before, document = [0], 0, 0
    with (home / f"{split}.pieces").open("wb") as pieces_file, (home / f"{split}.starts").open("wb") as starts_file:
        for shard in shards:
            wanted = np.arange(document, document + shard.documents) < total
            if limit is not None:
                wanted &= choice.subset.draws(document, document + shard.documents) <= np.uint64(limit)
            ends = source.read_ends(reader, shard)
            begins = np.concatenate((np.zeros(1, dtype=np.int64), ends[:-1]))
            pack_them = _PACKINGS[choice.packing if split == "train" else "best_fit"]
            pieces, starts = pack_them(begins[wanted], ends[wanted], seq_len)
            packing = pack.measure(pieces[:, 1] - pieces[:, 0], len(starts) - 1, seq_len)
            pieces_file.write(pieces.astype("<i8").tobytes())
            starts_file.write((starts[:-1] + pieces_before).astype("<i8").tobytes())
            packings.append(packing)
            pieces_before += len(pieces)
            document += shard.documents
            first_rows.append(first_rows[-1] + packing.rows)
        starts_file.write(np.array([pieces_before], "<i8").tobytes())
    return {"packing": asdict(pack.total(packings)), "first_rows": first_rows}


def _best_fit(begins: Numbers, ends: Numbers, seq_len: int) -> tuple[Numbers, Numbers]:
    pieces = pack.cut(begins, ends, seq_len)
    order, starts = pack.best_fit(pieces[:, 1] - pieces[:, 0], seq_len)
    return pieces[order], starts


#: By `data.packing`: begins and ends of documents, and tokens of a row, to pieces and where in them each row begins.
_PACKINGS = {"best_fit": _best_fit, "concat": pack.end_to_end}
