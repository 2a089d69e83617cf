"""How do documents of all lengths fill rows of one length? Best fit: the longest piece first, into the tightest row.

Documents longer than a row are cut first, so nothing is lost and no document that fits is ever cut. On `pydocs` this
takes 0.5 to 2 % more rows than concatenating and cutting everywhere (arXiv 2404.10830 has the method). The same lengths
give the same rows, always.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Packing:
    """How well pieces fill rows, in tokens."""

    rows: int
    slots: int
    valid: int
    pieces: int
    #: Sum of squared piece lengths: what attention within documents costs. Over `valid` it is the length of the piece
    #: that the average token lies in, which the `packed` convention of FLOPs takes.
    sum_len_sq: int

    @property
    def pad_share(self) -> float:
        """Slots that hold nothing, over all."""
        return 1 - self.valid / self.slots


def measure(lengths: Iterable[int], rows: int, capacity: int) -> Packing:
    """The packing of at least one piece into `rows` rows of `capacity` tokens."""
    counted = list(lengths)
    return Packing(rows, rows * capacity, sum(counted), len(counted), sum(length**2 for length in counted))


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack pieces into rows.

    Args:
        lengths: tokens of each piece, 1 to `capacity`.
        capacity: tokens of a row.

    Returns:
        Rows of piece numbers, each number once, in the order in which rows were opened.
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by room left
    rooms: list[int] = []  # the amounts of room for which there is an open row, ascending
    for piece in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        length = lengths[piece]
        assert 0 < length <= capacity, (length, capacity)
        at = bisect_left(rooms, length)
        if at == len(rooms):
            rows.append([])
            row, room = len(rows) - 1, capacity
        else:
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del rooms[at]
        rows[row].append(piece)
        left = room - length
        if left:
            if not open_rows[left]:
                insort(rooms, left)
            open_rows[left].append(row)
    return rows
