"""What does a window measure? Pure: the records of all ranks, stamped on arrival, in; one window's numbers out.

A window is whole steps. Its edges are chosen on the reference rank (the lowest), and every other rank must have
reported the same steps. Nothing is repaired: a gap, a clock that jumps or a refused record makes the window void.
"""

from __future__ import annotations

import math
import struct
import zlib
from statistics import median_low
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from amdahl_probe.plan import Window
from amdahl_probe.records import MAX_NAMES, Disabled, Knobs, Offset, Record, Refused, Save, Start, Startup, Step
from amdahl_probe.spans import PHASES

#: Times of one step come from one reading of the clock; more than this apart they were made up.
CLOCK_SLACK_NS = 1000

#: Saves that a window with a forced cadence must hold.
MIN_SAVES = 3

#: Steps that no timed window holds, by their tags: what torch's compiler or profiler took is not the step's own.
APART = {"warmup": "torch compiled", "profile": "torch's profiler recorded"}

#: How often a window begins anew after such a step. Torch gives up on a function that it compiled eight times.
MAX_PUT_OFF = 16

COMM, CHECKPOINT = PHASES.index("comm"), PHASES.index("checkpoint")


class RankLog:
    """All that one rank has said since it started, in order; arrivals are nanoseconds of the supervisor's clock."""

    def __init__(self) -> None:
        self.start: Optional[Start] = None
        self.steps: List[Step] = []
        self.arrivals_ns: List[int] = []
        self.saves: List[Save] = []
        self.first_batch_ns: Optional[int] = None
        self.offsets: Dict[int, bool] = {}
        self.ignored: Dict[int, Tuple[str, ...]] = {}
        self.refused: List[str] = []
        self.disabled: Optional[str] = None

    def add(self, record: Record, arrived_ns: int) -> None:
        """Take in one record."""
        if isinstance(record, Step):
            self.steps.append(record)
            self.arrivals_ns.append(arrived_ns)
        elif isinstance(record, Start):
            self.start = record
        elif isinstance(record, Startup):
            self.first_batch_ns = arrived_ns
        elif isinstance(record, Save):
            self.saves.append(record)
        elif isinstance(record, Offset):
            self.offsets[record.seq] = record.applied and self.offsets.get(record.seq, True)
        elif isinstance(record, Knobs):
            self.ignored[record.seq] = (*self.ignored.get(record.seq, ()), *record.ignored)
        elif isinstance(record, Disabled):
            self.disabled = record.why
        elif isinstance(record, Refused):
            self.refused.append(record.why)


class Numbers(NamedTuple):
    """A measured window (telemetry contract, section 4); None where a number does not exist."""

    steps: int
    samples: int
    devices: int
    wall_us: int
    phases_ppk: Tuple[int, ...]
    shape: str
    elements_per_sample: Optional[float]
    distinct_ppk: int
    ids: str
    losses: Optional[str]
    mean_loss: Optional[float]
    saves: Optional[Tuple[int, int, int]]
    step_us: Optional[int]
    step_sd_us: Optional[int]
    loader: Optional[Tuple[int, int]]
    clock_ppk: Optional[int]
    slowest: Optional[Tuple[int, int]]
    offset_applied: bool
    ignored: Tuple[str, ...] = ()
    dtype: Optional[str] = None


class Void(NamedTuple):
    """Records that cannot be believed or are missing."""

    why: str


class Unfinished(NamedTuple):
    """Not enough yet. `waits_for_ranks`: the reference rank is through, others are not."""

    waits_for_ranks: bool


class Edges(NamedTuple):
    """The first and the last measured step, by their numbers: the same in every rank."""

    begin: int
    end: int


Outcome = Union[Numbers, Void, Unfinished]


def find_edges(window: Window, logs: Mapping[int, RankLog], seq: int = 0) -> Optional[Edges]:
    """The steps that a window measures, once the reference rank has made the last of them.

    `seq` is the knob file's sequence that the window's steps must carry in a live block, 0 in a relaunched one.
    """
    if not logs:
        return None
    reference = logs[min(logs)]
    first = _find_first(reference.steps, seq)
    edges = None if first is None else _find_edges(window, reference, first)
    return None if edges is None else Edges(*(reference.steps[at].index for at in edges))


def measure(
    logs: Mapping[int, RankLog], edges: Optional[Edges], ranks: int, seq: int = 0, is_proof: bool = False
) -> Outcome:
    """Reduce the records of a window's steps once they suffice; `edges` are None until they are known.

    `ranks` are expected to report (1 until a start record says otherwise). A proof is not timed: it may hold any step.
    """
    refused = [(rank, log.refused[0]) for rank, log in sorted(logs.items()) if log.refused]
    if refused and (edges is not None or refused[0][0] == min(logs)):
        return Void(f"rank {refused[0][0]}: {refused[0][1]}")
    if edges is None or not logs:
        return Unfinished(waits_for_ranks=False)
    begin, end = edges
    parts: Dict[int, Tuple[Step, ...]] = {}
    for rank, log in sorted(logs.items()):
        near = max(0, begin - log.steps[0].index - 1) if log.steps else 0
        part = tuple(step for step in log.steps[near:] if begin <= step.index <= end)
        if not part or part[-1].index != end:
            return Unfinished(waits_for_ranks=True)
        flaw = _find_flaw(part, begin, seq) or ("" if is_proof else _find_apart(part))
        if flaw:
            return Void(f"rank {rank}: {flaw}")
        parts[rank] = part
    if len(parts) < ranks:
        return Unfinished(waits_for_ranks=True)
    numbers = _reduce(parts, logs)
    if not numbers.samples:
        return Void("no samples: the probe has seen no DataLoader")
    return numbers if numbers.wall_us else Void("no time has passed")


def _find_first(steps: Sequence[Step], seq: int) -> Optional[int]:
    """Where the newest stretch of steps with this sequence begins; looked for from the end, which is new."""
    at = len(steps)
    while at and steps[at - 1].seq == seq:
        at -= 1
    return at if at < len(steps) else None


def _find_edges(window: Window, log: RankLog, first: int) -> Optional[Tuple[int, int]]:
    """Positions of the first and last measured step, once the last is there."""
    steps = log.steps
    if window.steps is not None:
        last = first + window.steps - 1
        return (first, last) if last < len(steps) else None
    opened_ns = steps[first].end_ns - steps[first].wall_ns
    enough = len(steps) - first >= window.warmup_steps + window.min_steps
    if not enough or steps[-1].end_ns - opened_ns < (window.warmup_s + window.measure_s) * 1e9:
        return None
    begin, put_off = _find_warm(window, steps, first, opened_ns), 0
    begun_ns = steps[begin - 1].end_ns if begin > first else opened_ns
    for at in range(begin, len(steps)):
        if put_off < MAX_PUT_OFF and not APART.keys().isdisjoint(steps[at].tags):
            begin, begun_ns, put_off = at + 1, steps[at].end_ns, put_off + 1
        if at < begin + window.min_steps - 1 or steps[at].end_ns - begun_ns < window.measure_s * 1e9:
            continue
        if window.save_every is None or len(_saves_between(log, steps[begin], steps[at])) >= MIN_SAVES:
            return begin, at
    return None


def _find_warm(window: Window, steps: Sequence[Step], first: int, opened_ns: int) -> int:
    if not window.warmup_s and not window.warmup_steps:
        return first
    for at in range(first + max(0, window.warmup_steps - 1), len(steps)):
        if steps[at].end_ns - opened_ns >= window.warmup_s * 1e9:
            return at + 1
    return len(steps)


def _find_flaw(part: Sequence[Step], begin: int, seq: int) -> Optional[str]:
    for at, step in enumerate(part):
        if step.index != begin + at:
            return f"step {begin + at} is missing"
        if step.seq != seq:
            return f"step {step.index} carries knob sequence {step.seq}, not {seq}"
        if at and abs(step.end_ns - part[at - 1].end_ns - step.wall_ns) > CLOCK_SLACK_NS:
            return f"the clock jumps at step {step.index}"
    return None


def _find_apart(part: Sequence[Step]) -> str:
    """What another rank did in its own step, or a program does again and again: its window would be no step's time."""
    return next((f"{APART[tag]} in step {step.index}" for step in part for tag in step.tags if tag in APART), "")


def _reduce(parts: Mapping[int, Tuple[Step, ...]], logs: Mapping[int, RankLog]) -> Numbers:
    walls = {rank: sum(step.wall_ns for step in part) for rank, part in parts.items()}
    comms = {rank: sum(step.phases_ns[COMM] for step in part) for rank, part in parts.items()}
    judged = min(parts, key=lambda rank: (-walls[rank], comms[rank], rank))
    part, log = parts[judged], logs[judged]
    samples = sum(step.samples for steps in parts.values() for step in steps)
    elements = sum(step.elements for steps in parts.values() for step in steps)
    losses = [step.loss for rank in sorted(parts) for step in parts[rank]]
    known = [loss for loss in losses if loss is not None]
    plain, saves = _split_saves(part, log)
    return Numbers(
        steps=len(part),
        samples=samples,
        devices=len(parts),
        wall_us=round(walls[judged] / 1000),
        phases_ppk=_shares([sum(column) for column in zip(*(step.phases_ns for step in part))]),  # noqa: B905 (nine)
        shape=_digest_set({step.shape for steps in parts.values() for step in steps}),
        elements_per_sample=round(elements / samples, 3) if samples else None,
        distinct_ppk=_count_distinct(parts),
        ids=f"{sum(int(step.ids, 16) for steps in parts.values() for step in steps) & 0xFFFFFFFF:08x}",
        losses=f"{zlib.crc32(struct.pack(f'<{len(losses)}f', *map(_to_float, losses))):08x}" if known else None,
        mean_loss=float(f"{math.fsum(known) / len(known):.9g}") if known else None,
        saves=saves,
        step_us=round(_mean(plain) / 1000) if plain else None,
        step_sd_us=round(_deviation(plain) / 1000) if len(plain) > 1 else None,
        loader=_reduce_loader([step.loader for steps in parts.values() for step in steps]),
        clock_ppk=_compare_clocks(part, log),
        slowest=_find_slowest(walls, comms, walls[judged]),
        offset_applied=all(logs[rank].offsets.get(part[0].seq, False) for rank in parts),
        ignored=tuple(sorted({name for rank in parts for name in logs[rank].ignored.get(part[0].seq, ())}))[:MAX_NAMES],
        dtype=_find_dtype([logs[rank].start for rank in parts]),
    )


def _find_dtype(starts: Sequence[Optional[Start]]) -> Optional[str]:
    """What all ranks multiply matrices in, if they say so and agree."""
    said = {start.dtype if start is not None else "" for start in starts}
    return (said.pop() or None) if len(said) == 1 else None


def _shares(spent: Sequence[int]) -> Tuple[int, ...]:
    """Parts per thousand that sum to 1000: the largest remainders are rounded up."""
    total = sum(spent) or 1
    exact = [ns * 1000 / total for ns in spent]
    shares = [int(share) for share in exact]
    if sum(spent):
        order = sorted(range(len(exact)), key=lambda at: shares[at] - exact[at])
        for at in order[: 1000 - sum(shares)]:
            shares[at] += 1
    return tuple(shares)


def _digest_set(values: "set[str]") -> str:
    return next(iter(values)) if len(values) == 1 else f"{zlib.crc32(' '.join(sorted(values)).encode()):08x}"


def _count_distinct(parts: Mapping[int, Tuple[Step, ...]]) -> int:
    batches = [step.sig for steps in parts.values() for step in steps]
    return round(len(set(batches)) * 1000 / len(batches))


def _to_float(loss: Optional[float]) -> float:
    return math.nan if loss is None else loss


def _saves_between(log: RankLog, first: Step, last: Step) -> List[Save]:
    return [save for save in log.saves if not save.is_durable and first.index <= save.step <= last.index]


def _split_saves(part: Sequence[Step], log: RankLog) -> Tuple[List[int], Optional[Tuple[int, int, int]]]:
    """Walls of steps that no save touched, and (saves, mean blocked us, interference us)."""
    saves = _saves_between(log, part[0], part[-1])
    durable_ns = {save.step: save.end_ns for save in log.saves if save.is_durable}
    writing = [(save.end_ns, durable_ns.get(save.step, save.end_ns)) for save in log.saves if not save.is_durable]
    blocked = {save.step for save in saves}
    plain, beside = [], []
    for step in part:
        begun_ns = step.end_ns - step.wall_ns
        if any(begin < step.end_ns and begun_ns < end for begin, end in writing if begin < end):
            beside.append(step.wall_ns - step.phases_ns[CHECKPOINT])
        elif not step.phases_ns[CHECKPOINT] and step.index not in blocked and "ckpt" not in step.tags:
            plain.append(step.wall_ns)
    if not saves:
        return plain, None
    excess_ns = max(0.0, _mean(beside) - _mean(plain)) if beside and plain else 0.0
    block_ns = sum(save.block_ns for save in saves) / len(saves)
    return plain, (len(saves), round(block_ns / 1000), round(excess_ns / 1000))


def _reduce_loader(told: Sequence[Tuple[int, int, int]]) -> Optional[Tuple[int, int]]:
    batches = sum(item[0] for item in told)
    if not batches:
        return None
    mean_us = sum(item[1] for item in told) / batches / 1000
    variance = max(0.0, sum(item[2] for item in told) / batches - mean_us**2)
    return round(mean_us), round(math.sqrt(variance) / mean_us * 1000) if mean_us else 0


def _compare_clocks(part: Sequence[Step], log: RankLog) -> Optional[int]:
    """(reported wall - own wall) / own wall between two arrivals, parts per thousand.

    The first arrival is that of the step before the window, or in a window that begins with the run its first step's.
    """
    positions = {step.index: at for at, step in enumerate(log.steps)}
    begin = positions.get(part[0].index - 1, positions[part[0].index])
    end = positions[part[-1].index]
    own_ns = log.arrivals_ns[end] - log.arrivals_ns[begin]
    reported_ns = sum(step.wall_ns for step in log.steps[begin + 1 : end + 1])
    if end == begin or own_ns <= 0:
        return None
    return max(-1000, min(1_000_000, round((reported_ns - own_ns) * 1000 / own_ns)))


def _find_slowest(walls: Mapping[int, int], comms: Mapping[int, int], wall_ns: int) -> Optional[Tuple[int, int]]:
    busy = {rank: walls[rank] - comms[rank] for rank in walls}
    slowest = max(busy, key=lambda rank: (busy[rank], -rank))
    return slowest, round((busy[slowest] - median_low(busy.values())) * 1000 / max(1, wall_ns))


def _mean(values: Sequence[int]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[int]) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
