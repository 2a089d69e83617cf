"""How many bytes does attention over spread rows keep and send, by mode? Arithmetic for plans; nothing is allocated.

Counted is one layer's attention on one rank, without the projections around it. What it keeps lies from its forward
pass to its backward pass, so a model without activation checkpointing holds a layer's worth of it for every layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from amdahl_trainer.shards import Mode

#: Sums over ranks, and each query's log-sum-exp, are float32 whatever the inputs are.
SUM_BYTES = 4


@dataclass(frozen=True)
class Shape:
    """Attention over whole rows."""

    rows: int
    tokens: int
    heads: int
    kv_heads: int
    head_size: int
    element_bytes: int


@dataclass(frozen=True)
class Cost:
    """Of one layer's attention on one rank. A byte counts as sent once for each rank that it is sent to."""

    kept_bytes: int
    sent_forward_bytes: int
    sent_backward_bytes: int


def estimate(mode: Mode, shape: Shape, world: int, hops: int | None = None) -> Cost:
    """What a mode costs over `world` ranks.

    Args:
        mode: how attention is computed.
        shape: of whole rows; world divides the tokens.
        world: ranks that the tokens are spread over.
        hops: of the ring, see `cp_ring.count_hops`; None is all, as where a row is one document.
    """
    slots = shape.rows * shape.tokens // world  # own tokens
    queries = slots * shape.heads * shape.head_size
    pair = 2 * slots * shape.kv_heads * shape.head_size  # own keys and values
    output_and_queries = 2 * queries * shape.element_bytes + slots * shape.heads * SUM_BYTES
    others = world - 1
    if mode == "allgather":
        return Cost(
            kept_bytes=output_and_queries + world * pair * shape.element_bytes,
            sent_forward_bytes=others * pair * shape.element_bytes,
            sent_backward_bytes=others * pair * SUM_BYTES,
        )
    if mode == "ulysses":
        pair = pair * math.lcm(shape.kv_heads, world) // shape.kv_heads
        sent = (2 * queries + pair) * others // world * shape.element_bytes
        return Cost(output_and_queries + pair * shape.element_bytes, sent, sent)
    passed = (world if hops is None else hops) - 1
    forward = passed * pair * shape.element_bytes
    gradients = (passed + 1) * pair * SUM_BYTES if passed else 0  # the last message takes them home
    return Cost(output_and_queries + pair * shape.element_bytes, forward, forward + gradients)
