"""What was in this batch? Short digests that tell whether two arms did the same work.

A digest reads a few strided elements, never the whole batch, and never a tensor that is not in host memory: reading
one would make the host wait for the device. Tensors are recognised by what they offer, so torch is not imported.

Digests are 32-bit numbers in 8 hex digits. They find mistakes, not forgers: a process that wants to lie can.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any, Iterable, Iterator, List, NamedTuple, Optional

#: Elements read of one tensor or one row: enough to tell batches apart, O(1) whatever its size.
STRIDED = 8

#: Bounds of the walk through a batch: a batch is a few tensors in a few containers.
MAX_DEPTH, MAX_LEAVES = 4, 64


class BatchDigest(NamedTuple):
    """One batch, or the batches of one step after `combine`."""

    samples: int
    elements: int
    sig: int
    shape: int
    ids: int


def digest(batch: Any, indices: Optional[Any] = None) -> BatchDigest:
    """Digest one batch. `indices` are the sample ids it was made of (a sequence, or one id); without them, its content.

    Samples are the number of indices, else the first dimension of the first tensor that has one, else 1.
    """
    tensors = list(_tensors(batch))
    samples = _count_samples(tensors, batch)
    if isinstance(indices, (list, tuple)):
        samples = len(indices)
    kinds = [(list(t.shape[1:]), str(t.dtype)) for t in tensors]
    return BatchDigest(
        samples=samples,
        elements=sum(int(t.numel()) for t in tensors),
        sig=_crc([[list(t.shape), str(t.dtype), _strided(t)] for t in tensors]),
        shape=_crc(kinds),
        ids=digest_content(tensors, samples) if indices is None else digest_ids(indices),
    )


def combine(digests: Iterable[BatchDigest]) -> BatchDigest:
    """The digest of a step that consumed several batches. Ids add up, so they do not depend on order."""
    parts = list(digests)
    shapes = sorted({part.shape for part in parts})
    return BatchDigest(
        samples=sum(part.samples for part in parts),
        elements=sum(part.elements for part in parts),
        sig=parts[0].sig if len(parts) == 1 else _crc([part.sig for part in parts]),
        shape=shapes[0] if len(shapes) == 1 else _crc(shapes),
        ids=sum(part.ids for part in parts) & 0xFFFFFFFF,
    )


def digest_ids(indices: Any) -> int:
    """Order-free digest of sample ids (one, or a sequence): the sum of their CRC-32s modulo 2**32."""
    ids = indices if isinstance(indices, (list, tuple)) else [indices]
    return sum(map(zlib.crc32, map(str.encode, map(str, ids)))) & 0xFFFFFFFF


def digest_content(tensors: List[Any], samples: int) -> int:
    """Order-free digest of a batch whose samples have no ids: the sum over rows of the CRC-32 of strided elements."""
    rows = [t for t in tensors if t.dim() > 0 and int(t.shape[0]) == samples and _readable(t)]
    if not rows:
        return _crc([_strided(t) for t in tensors])
    columns = [_row_elements(t) for t in rows]
    return sum(_crc([column[row] for column in columns]) for row in range(samples)) & 0xFFFFFFFF


def to_hex(number: int) -> str:
    """A digest as the records hold it: 8 hex digits."""
    return f"{number:08x}"


def _tensors(batch: Any, depth: int = 0) -> Iterator[Any]:
    if all(hasattr(batch, name) for name in ("shape", "dtype", "numel", "dim", "is_contiguous")):
        yield batch
    elif depth < MAX_DEPTH:
        if isinstance(batch, Mapping):
            inside: Any = list(batch.values())[:MAX_LEAVES]
        elif isinstance(batch, (list, tuple)):
            inside = batch[:MAX_LEAVES]
        else:
            inside = list(vars(batch).values())[:MAX_LEAVES] if hasattr(batch, "__dict__") else ()
        for item in inside:
            yield from _tensors(item, depth + 1)


def _count_samples(tensors: List[Any], batch: Any) -> int:
    for tensor in tensors:
        if tensor.dim() > 0:
            return int(tensor.shape[0])
    return len(batch) if isinstance(batch, (list, tuple)) else 1


def _readable(tensor: Any) -> bool:
    return str(tensor.device) == "cpu" and bool(tensor.is_contiguous()) and not tensor.is_sparse


def _strided(tensor: Any) -> List[str]:
    if not _readable(tensor) or tensor.numel() == 0:
        return []
    flat = tensor.detach().view(-1)
    step = max(1, int(tensor.numel()) // STRIDED)
    return [repr(value) for value in flat[::step][:STRIDED].tolist()]


def _row_elements(tensor: Any) -> List[Any]:
    table = tensor.detach().view(int(tensor.shape[0]), -1)
    step = max(1, int(table.shape[1]) // STRIDED)
    return [repr(row) for row in table[:, ::step][:, :STRIDED].tolist()]


def _crc(value: object) -> int:
    return zlib.crc32(json.dumps(value, separators=(",", ":")).encode())
