"""When is there a checkpoint on the disk, which one is the newest, and is it whole?

`out_dir/checkpoints/step-00000050/` holds the shards and `.metadata` of torch.distributed.checkpoint, and `meta.json`,
which names every file with its size and CRC-32. All of it is written under another name, forced to the disk, and
appears by one rename; a kill at any instant leaves what was there before. Checkpoints are ordered by a number that
each commit counts on, not by step: a run that begins anew in the same directory is newer than what it finds there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from amdahl_trainer.errors import ConfigError

FORMAT = "amdahl.ckpt/2"
PREFIX = "step-"
DRAFT = ".draft-"

#: What to do about a checkpoint that cannot be used.
REMEDY = "delete this directory to resume from the one before"


class CheckpointError(ConfigError):
    """A checkpoint cannot be read, or belongs to another run."""


@dataclass(frozen=True)
class FileSum:
    """One file of a checkpoint."""

    bytes: int
    crc32: int


@dataclass(frozen=True)
class Meta:
    """What `meta.json` says. `world` and `config` are for the reader; no load depends on them.

    `number` counts the commits of this directory; `holds` names the parts: `model`, and `optim` unless only weights
    were put there.
    """

    number: int
    step: int
    position: int
    world: int
    holds: tuple[str, ...]
    semantics_hash: str
    semantics: Mapping[str, object]
    config: Mapping[str, object]
    files: Mapping[str, FileSum]

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, path: Path) -> Meta:
        """Read the text of the file at `path`. Raises CheckpointError."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{path}: meta.json cannot be read ({error}); {REMEDY}") from error
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != FORMAT:
            raise CheckpointError(f"{path} {_foreign(found)}")
        try:
            return cls(
                number=int(raw["number"]),
                step=int(raw["step"]),
                position=int(raw["position"]),
                world=int(raw["world"]),
                holds=tuple(map(str, raw["holds"])),
                semantics_hash=str(raw["semantics_hash"]),
                semantics=dict(raw["semantics"]),
                config=dict(raw["config"]),
                files={str(name): FileSum(int(s["bytes"]), int(s["crc32"])) for name, s in raw["files"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: meta.json lacks or garbles {error}; {REMEDY}") from error


def _foreign(found: object) -> str:
    """What is wrong with a format that is not ours."""
    name, _, version = str(found).partition("/")
    ours, _, newest = FORMAT.partition("/")
    if name != ours or not version.isdigit():
        return f"is no checkpoint of this trainer: meta.json does not say format {FORMAT!r}"
    if int(version) > int(newest):
        return f"has format {found}, this trainer reads {FORMAT}: resume it with the newer trainer that wrote it"
    return f"has format {found}, this trainer reads {FORMAT}: finish it with the older one, or set another run.out_dir"


def read_meta(path: Path) -> Meta:
    """Read a checkpoint's `meta.json`. Raises CheckpointError."""
    try:
        text = (path / "meta.json").read_text()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: meta.json cannot be read ({error}); {REMEDY}") from error
    return Meta.parse(text, path)


def complete(home: Path) -> list[Path]:
    """The checkpoints in a directory, oldest first; last, one that cannot be read, so that it is not passed over."""
    return [path for _, path in sorted((_number(path), path) for path in home.glob(f"{PREFIX}*") if path.is_dir())]


def _number(path: Path) -> float:
    try:
        raw = json.loads((path / "meta.json").read_text())
        return int(raw.get("number", 0))  # an older format counted nothing
    except (OSError, ValueError, TypeError, AttributeError):
        return float("inf")


def draft(home: Path, step: int, writer: str) -> Path:
    """Where the ranks of `writer` write a checkpoint before it is one."""
    return home / f"{DRAFT}{PREFIX}{step:08d}-{writer}"


def commit(written: Path, meta: Meta) -> Path:
    """Make a checkpoint of a draft whose files are all on the disk. Returns where it is. Raises OSError."""
    home = written.parent
    with (written / "meta.json").open("w") as file:
        file.write(meta.to_json())
        file.flush()
        os.fsync(file.fileno())
    force(written)
    target = home / f"{PREFIX}{meta.step:08d}"
    if target.exists():  # the same step again, after a resume from an earlier one: the first stays until retention
        target = home / f"{target.name}.{meta.number}"
    written.rename(target)
    force(home)
    return target


def next_number(home: Path) -> int:
    """The number of the next commit."""
    numbers = [int(number) for path in complete(home) if (number := _number(path)) != float("inf")]
    return max(numbers, default=0) + 1


def retain(home: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints. One that cannot be read is left for a person to look at."""
    readable = [path for path in complete(home) if _number(path) != float("inf")]
    for old in readable[:-keep]:
        # Renamed first: a checkpoint that is being deleted must not look complete.
        doomed = old.with_name(f"{DRAFT}{old.name}-{os.getpid()}")
        old.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sweep(home: Path) -> None:
    """Delete drafts that a killed process left behind."""
    for left in home.glob(f"{DRAFT}*"):
        shutil.rmtree(left, ignore_errors=True)


def find(home: Path, wanted: str) -> Path | None:
    """The checkpoint to resume from, by `checkpoint.resume`. Raises CheckpointError if a named one is not there."""
    if wanted == "none":
        return None
    if wanted == "auto":
        found = complete(home)
        return found[-1] if found else None
    if not (Path(wanted) / "meta.json").is_file():
        raise CheckpointError(f"checkpoint.resume: {wanted} is no checkpoint directory (it has no meta.json)")
    return Path(wanted)


def damage(path: Path, meta: Meta, rank: int = 0, world: int = 1) -> str | None:
    """What is wrong with a checkpoint's files, if anything. Each of `world` ranks reads its part of them."""
    for name, wanted in meta.files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else 0
        if size != wanted.bytes:
            return f"{path} is truncated: {name} has {size} bytes, meta.json says {wanted.bytes}; {REMEDY}"
    for name in sorted(meta.files)[rank::world]:
        if sum_of(path / name).crc32 != meta.files[name].crc32:
            return f"{path} is damaged: {name} does not have the CRC-32 of meta.json; {REMEDY}"
    return None


def sum_of(path: Path) -> FileSum:
    """Size and CRC-32 of a file."""
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return FileSum(size, crc)


def force(path: Path) -> None:
    """Flush a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop(written: Path) -> None:
    """Delete a draft that could not be finished, so that a full disk is not fuller for it."""
    with contextlib.suppress(OSError):
        shutil.rmtree(written)


def whole(home: Path) -> Iterable[Meta]:
    """The checkpoints that can be read, newest first."""
    for path in reversed(complete(home)):
        with contextlib.suppress(CheckpointError):
            yield read_meta(path)
