"""How do gradients become parameters? AdamW with decay on matrices only, warm-up and decay, clipping, and a guard.

The guard: a step whose loss or gradient norm is not finite changes nothing. It is decided on the device, so the host
need not wait for the answer; every rank decides alike, because loss and gradients are already summed over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from amdahl_trainer.config import Optim


def build(model: nn.Module, config: Optim) -> torch.optim.AdamW:
    """AdamW over two groups: matrices decay, vectors (norms) do not."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def learning_rate(step: int, config: Optim, decay_steps: int) -> float:
    """Learning rate of the 0-based `step`: linear warm-up, then `schedule` down to `min_lr_ratio` at `decay_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(1, decay_steps - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / span)
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)


def apply(
    optimizer: torch.optim.Optimizer,
    config: Optim,
    lr: float,
    loss: Tensor,
    stages: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Clip and update, unless loss or gradients are not finite. Gradients are cleared.

    `stages` are the ranks that hold other parameters of the same model.

    Returns:
        The gradient norm before clipping and whether the step was refused (1.0 or 0.0): scalars on the device.
    """
    gradients = []
    for group in optimizer.param_groups:
        group["lr"] = lr
        gradients += [weight.grad for weight in group["params"] if weight.grad is not None]
    norm = total_norm(gradients, stages)
    step = step_on_host if norm.is_cpu else step_on_device
    refused = step(optimizer, norm, loss, config.grad_clip or math.inf)
    optimizer.zero_grad(set_to_none=True)
    return norm.to(loss.device), refused.to(loss.device)  # offloaded gradients are on the host


def step_on_device(optimizer: torch.optim.Optimizer, norm: Tensor, loss: Tensor, clip: float) -> Tensor:
    """Update, clipped to a norm of `clip`, without waiting for the device to say whether it will; 1.0 if it refuses.

    This is torch's own protocol for gradient scalers. A fused optimizer divides gradients by `grad_scale` as it reads
    them, where clipping apart would read and write them all once more; if `found_inf` is 1 it leaves all state alone.
    """
    refused = (~(torch.isfinite(norm) & torch.isfinite(loss.to(norm.device)))).float()
    excess = ((norm + 1e-6) / clip).clamp(min=1.0) if clip < math.inf else None
    optimizer.grad_scale = excess  # type: ignore[attr-defined]
    optimizer.found_inf = refused  # type: ignore[attr-defined]
    optimizer.step()
    return refused


def step_on_host(optimizer: torch.optim.Optimizer, norm: Tensor, loss: Tensor, clip: float) -> Tensor:
    """The same where host and device are one: the host looks, and has only done what is due."""
    length = norm.item()
    if not (math.isfinite(length) and math.isfinite(loss.item())):
        return torch.ones(())
    excess = (length + 1e-6) / clip
    optimizer.grad_scale = torch.tensor(excess) if excess > 1 else None  # type: ignore[attr-defined]
    optimizer.step()
    return torch.zeros(())


def total_norm(gradients: Sequence[Tensor], stages: dist.ProcessGroup | None) -> Tensor:
    """The norm of the gradients of the whole model: of this rank's parameters, and of those of other stages."""
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if stages is not None:
        norm = norm.square()
        dist.all_reduce(norm, group=stages)
        norm = norm.sqrt()
    return norm
