"""When does a step end, and what was its loss? Hooks on all optimizers, on backward passes and on the loss scaler."""

from __future__ import annotations

import functools
import sys
import time
from typing import Any, Optional

from amdahl_probe.comm import LastGradient
from amdahl_probe.guarding import guarded
from amdahl_probe.loader import Loaders
from amdahl_probe.probe import Probe


class Backwards:
    """The backward passes of a process."""

    def __init__(self, probe: Probe, torch: Any, loaders: Loaders) -> None:
        self.probe = probe
        self._plain = torch.Tensor
        self._loaders = loaders
        self.gradients = LastGradient(probe, torch)
        self.gradients.install()
        self._scaled_id: Optional[int] = None
        self._unscaled: Any = None

    @guarded
    def note_scaled(self, scaled: Any, loss: Any) -> None:
        """A scaler has multiplied the loss: the next backward pass will be given the product."""
        if isinstance(loss, self._plain):
            self._scaled_id, self._unscaled = id(scaled), loss.detach()

    @guarded
    def begin(self, tensors: Any) -> None:
        """A backward pass begins from `tensors`."""
        if self._loaders.is_unsure:
            self._loaders.note_backward()
        loss = tensors
        if self._scaled_id is not None:
            if id(tensors) == self._scaled_id:
                loss = self._unscaled
            self._scaled_id = self._unscaled = None
        self.probe.begin_backward(loss if type(loss) is self._plain and loss.numel() == 1 else None)
        if self.gradients.is_watching:
            self.gradients.begin()

    @guarded
    def end(self) -> None:
        """One has returned or raised, in which a gradient may have been waited for or an optimizer stepped."""
        if self.gradients.is_watching:
            self.gradients.end()
        self.probe.end_backward()


def install(probe: Probe, torch: Any, loaders: Loaders) -> None:
    """Hook optimizers, `torch.autograd.backward` (which `Tensor.backward` calls) and `GradScaler.scale`."""
    backwards = Backwards(probe, torch, loaders)
    _patch_backward(backwards, torch.autograd)
    for module in (getattr(torch, "amp", None), torch.cuda.amp):
        scaler = getattr(module, "GradScaler", None)
        if scaler is not None and "scale" in vars(scaler):
            _patch_scale(backwards, scaler)
    # The attribute `torch.optim.optimizer` is deleted by some versions; the module is not.
    _hook_steps(probe, sys.modules["torch.optim.optimizer"])
    _patch_rendezvous(probe, torch.distributed)


def _hook_steps(probe: Probe, optimizers: Any) -> None:
    def begin(*_: Any) -> None:
        if probe.ledger.bottom == "other":
            probe.begin_update()

    register = getattr(optimizers, "register_optimizer_step_post_hook", None)
    if register is not None:
        optimizers.register_optimizer_step_pre_hook(begin)
        register(probe.end_step)
        return
    # Before torch 2.0: where the hooks run now, an empty method is called, which the profiler goes by.
    original = optimizers.Optimizer._optimizer_step_code  # noqa: SLF001 (see above)

    @functools.wraps(original)
    def mark(self: Any) -> None:
        original(self)
        probe.end_step(self)

    optimizers.Optimizer._optimizer_step_code = mark  # noqa: SLF001


def _patch_backward(backwards: Backwards, autograd: Any) -> None:
    original, probe, gradients = autograd.backward, backwards.probe, backwards.gradients

    @functools.wraps(original)
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        backwards.begin(tensors)
        try:
            return original(tensors, *args, **kwargs)
        finally:
            probe.is_in_backward = False
            if probe.has_stepped_in_backward or gradients.is_watching:
                backwards.end()

    autograd.backward = backward


def _patch_scale(backwards: Backwards, scaler_class: Any) -> None:
    original = scaler_class.scale

    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        backwards.note_scaled(scaled, outputs)
        return scaled

    scaler_class.scale = scale


def _patch_rendezvous(probe: Probe, dist: Any) -> None:
    original = getattr(dist, "init_process_group", None)
    if original is None:
        return

    @functools.wraps(original)
    def init_process_group(*args: Any, **kwargs: Any) -> Any:
        begun_ns = time.monotonic_ns()
        result = original(*args, **kwargs)
        probe.add_startup("rendezvous", time.monotonic_ns() - begun_ns)
        return result

    dist.init_process_group = init_process_group
