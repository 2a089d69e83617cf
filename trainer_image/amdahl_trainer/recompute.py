"""Activation checkpointing: what of a block is kept for the backward pass, and what is computed again there?

`block` keeps a block's input only: memory for activations falls to about 1/20, and the forward pass is computed twice.
`selective` keeps the results of the dear operations, products of matrices and attention, and repeats the cheap ones.
Nothing here is random, so both give the same bits as keeping everything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen  # noqa: F401 (it registers the last of `DEAR`)
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from amdahl_trainer.seams import Run, run_plainly

#: Operations whose results are kept by `selective`.
DEAR = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,  # noqa: SLF001 (so are torch's kernels named)
    torch.ops.aten._scaled_dot_product_efficient_attention.default,  # noqa: SLF001
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,  # noqa: SLF001
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,  # noqa: SLF001
    torch.ops.aten._flash_attention_forward.default,  # noqa: SLF001
    torch.ops.torch_attn._varlen_attn.default,  # noqa: SLF001 (attention of packed rows: it hides the kernel's call within)
}


def _policy(_: object, operation: object, *args: Any, **kwargs: Any) -> CheckpointPolicy:  # noqa: ARG001 (torch's form)
    return CheckpointPolicy.MUST_SAVE if operation in DEAR else CheckpointPolicy.PREFER_RECOMPUTE


def _repeat(options: dict[str, Any], function: Callable[..., Tensor], /, *arguments: Any) -> Tensor:
    found: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, **options)
    return found


def choose(mode: str) -> Run:
    """How blocks are run, by `memory.activation_checkpoint`."""
    if mode == "none":
        return run_plainly
    selective = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)}
    return partial(_repeat, selective if mode == "selective" else {})
