"""Has a program written a checkpoint since it was first asked? Its own count of saves says so, read twice.

A checkpoint that is written while training goes on is safe when the next one has begun.
"""

from dataclasses import dataclass, field


@dataclass
class SaveCounts:
    """How many checkpoints a job had written when one became necessary, by its UID; begun anew by a restart."""

    seen: dict[str, tuple[str, int]] = field(default_factory=dict)

    def has_grown(self, uid: str, key: str, saves: int, is_async: bool) -> bool:
        """Whether enough has been saved since the count was first noted under this key; it is noted now otherwise."""
        before = self.seen.get(uid)
        if before is None or before[0] != key or saves < before[1]:
            self.seen[uid] = (key, saves)
            return False
        return saves >= before[1] + needed(is_async)

    def forget(self, uid: str) -> None:
        """Forget a job that is gone."""
        self.seen.pop(uid, None)


def needed(is_async: bool) -> int:
    """So many saves have to be counted until one of them is durable."""
    return 2 if is_async else 1
