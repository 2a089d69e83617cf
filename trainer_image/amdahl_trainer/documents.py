"""Which tokens see which? Documents lie end to end in packed rows; a token sees its own document up to itself.

Everything here counts positions in whole rows, whichever ranks hold their tokens. No masks are needed to say who meets
whom: a document is an interval, so the queries of one interval and the keys of another meet in one `Piece` a document.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

#: First position, and the one past the last.
Span = tuple[int, int]

#: For each row 0, then the end of each document; the last end is the row's length.
Bounds = tuple[tuple[int, ...], ...]

#: What a call costs on a CPU, in pairs of tokens under a mask: see `is_mask_cheaper`.
CALL_PAIRS = 12_000

#: Keys that torch's CPU kernel leaves out together where no query of a block sees one of them.
KEY_BLOCK = 512


@dataclass(eq=False)  # not frozen: torch 2.11 looks into a frozen value and compiles anew for other bounds
class Documents:
    """Where the documents of packed rows begin and end, with what a kernel on their device needs to know of it."""

    bounds: Bounds
    #: (rows, 1, tokens, tokens) bool, true where a query (third axis) sees a key; on a CPU and where it is cheaper.
    mask: Tensor | None
    #: int32 ends of documents in rows laid end to end, after a 0; the last repeated up to a power of two.
    offsets: Tensor
    #: Tokens of the longest document, rounded up to a power of two. Compiled graphs thus see few values of either.
    longest: int

    @classmethod
    def within(cls, bounds: Bounds, device: torch.device) -> Documents:
        """What is to be known of rows with these bounds on a device."""
        tokens = bounds[0][-1]
        ends = [row * tokens + end for row, ends in enumerate(bounds) for end in ends[1:]]
        ends += [ends[-1]] * (_power_of_two(len(ends)) - len(ends))
        return cls(
            bounds,
            mask=make_mask(bounds).to(device) if device.type == "cpu" and is_mask_cheaper(bounds) else None,
            offsets=torch.tensor([0, *ends], dtype=torch.int32).to(device, non_blocking=True),
            longest=_power_of_two(max(lengths(bounds))),
        )


def find_documents(segments_bs: Tensor, device: torch.device) -> Documents | None:
    """The documents of packed rows; None where no row holds more than one.

    Padding is a document of its own. Where it follows a row's only document nothing valid sees it, and none is marked:
    the causal rule says it all.

    Args:
        segments_bs: (rows, tokens) integers in host memory; a run of equal numbers is a document, 0 is padding, last.
        device: where attention is to be computed.
    """
    if int(segments_bs.max()) <= 1:
        return None
    changes = (segments_bs[:, 1:] != segments_bs[:, :-1]).numpy()
    tokens = segments_bs.shape[1]
    bounds = tuple((0, *(int(at) + 1 for at in row.nonzero()[0]), tokens) for row in changes)
    return Documents.within(bounds, device)


def bounds_of(documents: Documents | None, rows: int, tokens: int) -> Bounds:
    """The bounds of rows; without documents each row is one."""
    return ((0, tokens),) * rows if documents is None else documents.bounds


def lengths(bounds: Bounds) -> list[int]:
    """Tokens of each document, row by row."""
    return [end - first for row in bounds for first, end in pairwise(row)]


def make_mask(bounds: Bounds) -> Tensor:
    """(rows, 1, tokens, tokens) bool, true where a query (third axis) sees a key (fourth)."""
    number = torch.stack([torch.arange(len(row) - 1).repeat_interleave(torch.tensor(row).diff()) for row in bounds])
    return (number[:, :, None] == number[:, None, :]).tril()[:, None]


def is_mask_cheaper(bounds: Bounds) -> bool:
    """Whether a CPU is faster with one masked call over whole rows than with a call for each document.

    The mask computes all pairs of tokens of a row. A call computes the pairs of its document, about half of them where
    that is much longer than `KEY_BLOCK`, and costs `CALL_PAIRS` itself. docs/trainer/documents.md has the measurement.
    """
    masked = len(bounds) * bounds[0][-1] ** 2
    apart = sum(length * min(length, (length + KEY_BLOCK) // 2) + CALL_PAIRS for length in lengths(bounds))
    return masked < apart


class Piece(NamedTuple):
    """Queries and keys of one document that meet, as positions within the tensors that hold them."""

    row: int
    queries: Span
    keys: Span
    #: The last query sees each key, those before it one less each; else every query sees each key.
    is_causal: bool


@lru_cache(maxsize=1024)  # the layers of a model ask the same
def meet(bounds: Bounds, queries: Span, keys: Span, query_at: int = 0, key_at: int = 0) -> tuple[Piece, ...]:
    """The pieces in which queries and keys meet, in order; queries and keys are disjoint between pieces.

    Args:
        bounds: the documents of each row.
        queries: span of positions.
        keys: span of positions. It is the queries' own, or lies before or after them, or begins where rows do and
            reaches to the queries' end at least.
        query_at: where the queries' span begins in the tensor that holds it.
        key_at: likewise for the keys.
    """
    found = []
    for row, ends in enumerate(bounds):
        inside = ends[bisect_right(ends, queries[0]) - 1 : bisect_left(ends, queries[1]) + 1]
        for document in pairwise(inside):
            asking = _overlap(queries, document)
            seen = _overlap(keys, (document[0], asking[1]))
            if seen[0] >= seen[1]:
                continue
            is_causal = seen[1] > asking[0]
            assert not is_causal or (seen[1] == asking[1] and seen[0] <= asking[0]), (queries, keys, document)
            found.append(Piece(row, _shift(asking, query_at - queries[0]), _shift(seen, key_at - keys[0]), is_causal))
    return tuple(found)


def reaches(bounds: Bounds, keys: Span, queries: Span) -> bool:
    """Whether queries of a chunk meet keys of another: some row's document begins in or before these, ends in those."""
    apart = (bisect_right(row, keys[1] - 1) != bisect_right(row, queries[0]) for row in bounds)
    return keys[1] <= queries[0] and not all(apart)


def flat(row: int, span: Span, tokens: int) -> Span:
    """A span of a row as one of rows of `tokens` laid end to end."""
    return _shift(span, row * tokens)


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Ascending disjoint spans, those that touch made one."""
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1][1] == span[0]:
            merged[-1] = (merged[-1][0], span[1])
        else:
            merged.append(span)
    return merged


def take(rows: Tensor, spans: Sequence[Span]) -> list[Tensor]:
    """The parts of a tensor's first axis in ascending disjoint spans.

    One split whose backward is one concatenation: slices would each fill a whole gradient with zeros.
    """
    edges = [0, *(edge for span in spans for edge in span), len(rows)]
    return list(torch.split(rows, [end - first for first, end in pairwise(edges)])[1::2])


def _overlap(one: Span, other: Span) -> Span:
    return max(one[0], other[0]), min(one[1], other[1])


def _shift(span: Span, by: int) -> Span:
    return span[0] + by, span[1] + by


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
