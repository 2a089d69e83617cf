"""How long does training wait for other ranks, as far as the host can see?

Three sources: calls of torch's collectives (for CPU backends the call is the wait; on CUDA it only queues work),
`Work.wait`, and DDP, whose all-reduces run below Python: there the tail of a backward pass after the last local
gradient is communication that nothing hid. FSDP's and tensor-parallel collectives on CUDA are not seen here.
"""

from __future__ import annotations

import functools
import time
from typing import Any, List, Optional

from amdahl_probe import device
from amdahl_probe.guarding import guarded
from amdahl_probe.probe import Probe

# fmt: off
COLLECTIVES = (
    "all_reduce", "broadcast", "reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "gather",
    "gather_object", "scatter", "scatter_object_list", "reduce_scatter", "reduce_scatter_tensor", "all_to_all",
    "all_to_all_single", "barrier", "monitored_barrier", "broadcast_object_list", "send", "recv",
)
# fmt: on

#: Parameters watched per DDP model: gradients arrive from the last layer to the first, so the first few suffice, and
#: a hook on each of hundreds would cost more than it tells.
WATCHED = 4


class LastGradient:
    """When the last local gradient of a backward pass was ready, in models wrapped by DDP."""

    def __init__(self, probe: Probe, torch: Any) -> None:
        self.probe = probe
        self.torch = torch
        self._ready_ns = 0
        self._ready_event: Optional[Any] = None
        #: Whether there is a model that DDP wraps.
        self.is_watching = False

    def install(self) -> None:
        """Watch every model that DDP wraps from now on."""
        ddp = getattr(self.torch.nn.parallel, "DistributedDataParallel", None)
        if ddp is None:
            return
        original = ddp.__init__

        @functools.wraps(original)
        def wrap(model: Any, *args: Any, **kwargs: Any) -> None:
            original(model, *args, **kwargs)
            self.watch(model)

        ddp.__init__ = wrap

    @guarded
    def watch(self, model: Any) -> None:
        """Stamp the gradients of the model's first parameters."""
        parameters: List[Any] = [p for p in model.parameters() if p.requires_grad]
        for parameter in parameters[:WATCHED]:
            self._hook(parameter)
            self.is_watching = True

    def _hook(self, parameter: Any) -> None:
        register = getattr(parameter, "register_post_accumulate_grad_hook", None)
        if register is not None:
            register(self._stamp)
            return
        # Before torch 2.1: on the graph's node that accumulates the gradient, which DDP keeps alive. A hook on the
        # parameter itself would let `torch.save` warn.
        with self.torch.enable_grad():
            node = parameter.expand_as(parameter).grad_fn.next_functions[0][0]
        node.register_hook(lambda *_: self._stamp(parameter))

    @guarded
    def _stamp(self, parameter: Any) -> None:
        self._ready_ns = time.monotonic_ns()
        if parameter.is_cuda and device.is_used(self.torch):
            self._ready_event = device.record_event(self.torch)

    def begin(self) -> None:
        """A backward pass begins."""
        self._ready_ns, self._ready_event = 0, None

    def end(self) -> None:
        """It has returned: charge its tail."""
        if not self._ready_ns:
            return
        if self._ready_event is None:
            self.probe.move("compute", "comm", time.monotonic_ns() - self._ready_ns)
        else:
            self.probe.add_tail("comm", self._ready_event, device.record_event(self.torch))


def install(probe: Probe, torch: Any) -> None:
    """Time the collectives under both names by which scripts call them, and waits for asynchronous ones."""
    dist = torch.distributed
    if not dist.is_available():
        return
    for name in COLLECTIVES:
        original = getattr(dist, name, None)
        if original is not None:
            timed = _timed(probe, original)
            for module in (dist, dist.distributed_c10d):
                if getattr(module, name, None) is original:
                    setattr(module, name, timed)
    try:
        dist.Work.wait = _timed(probe, dist.Work.wait)
    except (AttributeError, TypeError):  # a build whose class cannot be changed: asynchronous waits count as compute
        return


def _timed(probe: Probe, original: Any) -> Any:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        span = probe.enter("comm")
        try:
            return original(*args, **kwargs)
        finally:
            probe.leave(span)

    return call
