"""What every frozen value promises, whatever it holds."""

from functools import cached_property

from amdahl_loop.domain.values import Frozen


class Pair(Frozen):
    """Two numbers, and one that follows from them."""

    left: int
    right: int = 1

    @cached_property
    def total(self) -> int:
        """Their sum."""
        return self.left + self.right


def test_what_was_derived_is_derived_again_from_other_fields() -> None:
    """A copy with another field has another sum, and so has a copy of the copy; the original keeps its own."""
    pair = Pair(left=1)
    assert pair.total == 2

    changed = pair.model_copy(update={"left": 5})

    assert (changed.total, changed.model_copy(update={"right": 0}).total, pair.total) == (6, 5, 2)


def test_having_been_asked_leaves_no_trace() -> None:
    """A value whose sum was asked for equals, hashes and reads as one whose sum was not."""
    asked, fresh = Pair(left=1), Pair(left=1)
    assert asked.total == 2

    assert (asked, hash(asked), asked.model_dump_json()) == (fresh, hash(fresh), fresh.model_dump_json())
