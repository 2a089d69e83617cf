"""What was in this batch? Short digests that tell whether two arms did the same work.

A digest reads a few strided elements of the largest tensor, never the whole batch, and never a tensor that is not in
host memory: reading one would make the host wait for the device. Tensors are recognised by what they offer, so torch is
not imported.

Digests are 32-bit numbers in 8 hex digits. They find mistakes, not forgers: a process that wants to lie can.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Mapping
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

#: Elements read of one tensor or one row: enough to tell batches apart, O(1) whatever its size.
STRIDED = 8

#: Bounds of the walk through a batch: a batch is a few tensors in a few containers.
MAX_DEPTH, MAX_LEAVES = 4, 64

#: Kinds of batch remembered: text of varying length has many, each a few hundred bytes.
MAX_KINDS = 1000


class Kind(NamedTuple):
    """What the shapes and types of a batch's tensors come to.

    Digests of them with and without the first dimension, elements in all, which tensor is read (the largest; -1: none),
    and the size and stride of the view that holds what is read of it.
    """

    sig: int
    shape: int
    elements: int
    largest: int
    size: Tuple[int, ...]
    stride: Tuple[int, ...]


_known_kinds: Dict[Any, Kind] = {}

#: Types whose values are tensors, as far as met.
_tensor_types: Set[type] = set()


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
    tensors = batch if type(batch) in (list, tuple) else list(batch.values()) if type(batch) is dict else (batch,)
    if len(tensors) > MAX_LEAVES:
        tensors = tensors[:MAX_LEAVES]
    key: List[Any] = []
    for tensor in tensors:
        if type(tensor) not in _tensor_types:  # of another make: look into it
            tensors = []
            _collect(batch, tensors, 0)
            key = [part for tensor in tensors for part in (tensor.shape, tensor.dtype)]
            break
        key.append(tensor.shape)
        key.append(tensor.dtype)
    kind = _known_kinds.get(tuple(key)) or _learn_kind(tuple(key), tensors)
    sig = kind.sig
    if kind.largest >= 0:
        largest = tensors[kind.largest]
        if largest.is_cpu and not largest.is_sparse and largest.is_contiguous():
            sig = zlib.crc32(array("d", largest.as_strided(kind.size, kind.stride).tolist()), sig)
    if isinstance(indices, (list, tuple)):
        samples, ids = len(indices), digest_ids(indices)
    else:
        samples = _count_samples(tensors, batch)
        ids = digest_content(tensors, samples) if indices is None else digest_ids((indices,))
    return tuple.__new__(BatchDigest, (samples, kind.elements, sig, kind.shape, ids))


def combine(parts: Sequence[BatchDigest]) -> BatchDigest:
    """The digest of a step that consumed several batches. Ids add up, so they do not depend on order."""
    if len(parts) <= 1:
        return parts[0] if parts else _NOTHING
    shapes = sorted({part.shape for part in parts})
    return BatchDigest(
        samples=sum(part.samples for part in parts),
        elements=sum(part.elements for part in parts),
        sig=_crc([part.sig for part in parts]),
        shape=shapes[0] if len(shapes) == 1 else _crc(shapes),
        ids=sum(part.ids for part in parts) & 0xFFFFFFFF,
    )


def digest_ids(ids: Sequence[Any]) -> int:
    """Order-free digest of sample ids: the sum of 32-bit hashes of each, so it does not depend on how batches are cut.

    Numbers, which nearly all ids are, are hashed as tuples of one: in C, mixed well, and alike in every process.
    """
    if set(map(type, ids)) == {int}:
        return sum(map(hash, zip(ids))) & 0xFFFFFFFF
    return sum(map(zlib.crc32, map(str.encode, map(str, ids)))) & 0xFFFFFFFF


def digest_content(tensors: Sequence[Any], samples: int) -> int:
    """Order-free digest of a batch whose samples have no ids: the sum over rows of the CRC-32 of strided elements."""
    tables = [t for t in tensors if t.dim() > 0 and t.shape[0] == samples and t.numel() and _is_readable(t)]
    if not tables:
        return _crc([_strided(t) for t in tensors])
    total = 0
    for parts in zip(*[_strided_rows(t) for t in tables]):  # noqa: B905 (all have `samples` rows)
        row = 0
        for part in parts:
            row = zlib.crc32(array("d", part), row)
        total += row
    return total & 0xFFFFFFFF


def to_hex(number: int) -> str:
    """A digest as the records hold it: 8 hex digits."""
    return f"{number:08x}"


def _collect(batch: Any, tensors: List[Any], depth: int) -> None:
    """Append the tensors in a batch, in order."""
    if hasattr(batch, "as_strided") and hasattr(batch, "is_contiguous"):
        tensors.append(batch)
        if hasattr(type(batch), "as_strided"):
            _tensor_types.add(type(batch))
    elif depth < MAX_DEPTH:
        if isinstance(batch, (list, tuple)):
            inside: Any = batch[:MAX_LEAVES]
        elif isinstance(batch, Mapping):
            inside = list(batch.values())[:MAX_LEAVES]
        else:
            inside = list(vars(batch).values())[:MAX_LEAVES] if hasattr(batch, "__dict__") else ()
        for item in inside:
            _collect(item, tensors, depth + 1)


def _count_samples(tensors: Sequence[Any], batch: Any) -> int:
    for tensor in tensors:
        if tensor.dim() > 0:
            return int(tensor.shape[0])
    return len(batch) if isinstance(batch, (list, tuple)) else 1


def _is_readable(tensor: Any) -> bool:
    """Whether a few elements can be read as numbers without waiting for a device."""
    return bool(tensor.is_cpu and not tensor.is_sparse and tensor.is_contiguous() and not tensor.is_complex())


def _learn_kind(key: Tuple[Any, ...], tensors: Sequence[Any]) -> Kind:
    """Few kinds come again and again."""
    if len(_known_kinds) >= MAX_KINDS:
        _known_kinds.clear()
    kinds = tuple(zip(key[::2], key[1::2]))  # noqa: B905 (shapes and types)
    shape = _crc([(shape[1:], dtype) for shape, dtype in kinds])
    sizes = [t.numel() for t in tensors]
    most = max(sizes, default=0)
    largest = sizes.index(most) if most and not tensors[sizes.index(most)].is_complex() else -1
    known = _known_kinds[key] = Kind(_crc(kinds), shape, sum(sizes), largest, *_spread(most))
    return known


def _spread(count: int) -> Tuple[Tuple[int, ...], Tuple[int, ...]]:
    """Size and stride of a view on a few of `count` elements."""
    kept = min(STRIDED, count)
    if not kept:
        return (0,), (1,)
    return (kept,), (max(1, count // kept - 1),)  # not whole rows: the first element of each may always be the same


def _strided(tensor: Any) -> bytes:
    if not tensor.numel() or not _is_readable(tensor):
        return b""
    return array("d", tensor.as_strided(*_spread(tensor.numel())).tolist()).tobytes()


def _strided_rows(tensor: Any) -> List[List[float]]:
    rows = tensor.shape[0]
    width = tensor.numel() // rows
    kept = min(STRIDED, width)
    elements: List[List[float]] = tensor.as_strided((rows, kept), (width, width // kept)).tolist()
    return elements


def _crc(value: object) -> int:
    return zlib.crc32(repr(value).encode())


#: Of a step without batches.
_NOTHING = BatchDigest(0, 0, _crc([]), _crc([]), 0)
