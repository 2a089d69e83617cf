"""When does a rank wait for others within a step? Every such wait is seen here, whichever technique it belongs to.

Collectives, messages between stages and those that DTensor and FSDP2 send end in one of two of torch's functions:
`Work.wait` or `wait_tensor`. While a step runs both tell the clock, which books the time (on a CPU, where the call
returns with the data) or brackets it with events (on a GPU, where it only makes the compute stream wait). So no
technique marks anything, and none can forget to. Not seen are reductions that begin and end below Python: those of DDP,
whose exposed part is the tail of the backward pass (`device.Clock`), and FSDP2's gathers on a GPU, which the sampled
profiler shows. Where blocks are compiled DTensor's waits are left to the compiler, and count as `compute`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed import _functional_collectives as functional

#: Gives the context in which a wait takes place.
Waiting = Callable[[], AbstractContextManager[None]]


@contextmanager
def told_to(waiting: Waiting, *, has_graphs: bool = False) -> Iterator[None]:
    """Run every wait of this process within a `waiting()` context. Nests; torch is as before when the body ends.

    `has_graphs`: blocks are compiled. `wait_tensor`, which compilers trace, is then left as it is.
    """
    if not dist.is_available():
        yield
        return
    before = dist.Work.wait, functional.wait_tensor
    dist.Work.wait = _within(waiting, before[0])  # type: ignore[method-assign]  # this is the purpose
    if not has_graphs:
        functional.wait_tensor = _within(waiting, before[1])  # the name that DTensor's tensors look up when first used
    try:
        yield
    finally:
        dist.Work.wait, functional.wait_tensor = before  # type: ignore[method-assign]  # and this its end


def _within(waiting: Waiting, wait: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(wait)
    def call(*arguments: Any, **named: Any) -> Any:
        with waiting():
            return wait(*arguments, **named)

    return call
