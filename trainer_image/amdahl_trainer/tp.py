"""Tensor parallelism: each matrix is split over ranks. On torch's DTensor and its parallel styles.

A block has two pairs of matrices: (q, k, v) then out, (gate, up) then down. The first of a pair is split by columns, so
each rank has some heads or hidden units and needs no one; the second by rows, and its results are summed over ranks
(arXiv 1909.08053). With sequence parallelism (arXiv 2205.05198) norms and the stream between pairs are split by tokens:
the sum becomes a reduce-scatter, followed by an all-gather before the next pair. The same bytes, less memory.

The embedding is split by rows of the vocabulary and so is the head, tied or not; `VocabParallel` computes the loss from
each rank's own columns of the logits, which never exist whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from amdahl_trainer.errors import ConfigError
from amdahl_trainer.fit import nearest_divisors, nearest_multiples
from amdahl_trainer.loss import IGNORED
from amdahl_trainer.model import Llama
from amdahl_trainer.sections import Model

#: Dimension of the stream that holds tokens.
TOKENS = 1


def check(model: Model, tokens: int, tp: int, sp: bool) -> None:
    """Each rank must get whole heads and equal shares. `tokens` of a row are this rank's. Raises ConfigError."""
    for name in ("n_kv_heads", "n_heads", "d_ff", "vocab_size"):
        whole = int(getattr(model, name))
        if whole % tp:
            raise ConfigError(
                f"parallel.tp is {tp}, which does not divide model.{name} {whole}; nearest legal: parallel.tp "
                f"{nearest_divisors(tp, whole)}, or model.{name} {nearest_multiples(whole, tp)}"
            )
    if sp and tokens % tp:
        raise ConfigError(
            f"parallel.tp is {tp}, which does not divide the {tokens} tokens that a rank has of each row; nearest "
            f"legal: {nearest_divisors(tp, tokens)}, or set parallel.sp to false"
        )


def split(part: Llama, mesh: DeviceMesh, *, sp: bool, own_columns: bool) -> None:
    """Split a model's parameters over a mesh of one dimension, in place. They may be on the meta device.

    Args:
        part: the model.
        mesh: ranks that split each matrix.
        sp: split norms and the stream by tokens.
        own_columns: the first matrices of pairs are applied by a `project` of the model's seams, see `tp_async`.
    """
    between = Shard(TOKENS) if sp else Replicate()
    norm: ParallelStyle = _Sequence(sequence_dim=TOKENS, use_local_output=True) if sp else _Replicated()
    column: ParallelStyle = _Columns() if own_columns else ColwiseParallel()
    plan: dict[str, ParallelStyle] = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        "norm": norm,
        "head": ColwiseParallel(input_layouts=between, output_layouts=Shard(-1)),
    }
    for layer in part.part.layers:
        block = f"blocks.{layer}"
        plan |= {f"{block}.norm_attention": norm, f"{block}.norm_feed": norm}
        plan |= {f"{block}.attention.{name}": column for name in ("q", "k", "v")}
        plan |= {f"{block}.feed.{name}": column for name in ("gate", "up")}
        plan |= {f"{block}.{name}": RowwiseParallel(output_layouts=between) for name in ("attention.out", "feed.down")}
        if not own_columns:
            plan[f"{block}.attention"] = _gather_first(between, 4)
            plan[f"{block}.feed"] = _gather_first(between, 1)
    parallelize_module(part, mesh, {name: style for name, style in plan.items() if _has(part, name)})
    part.tie()


def _gather_first(layout: Shard | Replicate, arguments: int) -> ParallelStyle:
    """Gather the first argument once for all that take it, and sum its gradients once."""
    rest = (None,) * (arguments - 1)
    return PrepareModuleInput(input_layouts=(layout, *rest), desired_input_layouts=(Replicate(), *rest))


def _has(part: Llama, name: str) -> bool:
    return name not in ("embedding", "norm", "head") or getattr(part, name) is not None


class _Columns(ParallelStyle):
    """A linear layer whose weight is split by columns of the result, and whose input someone else prepares."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        weight = distribute_tensor(module.get_parameter("weight"), device_mesh, [Shard(0)], src_data_rank=None)
        module.register_parameter("weight", nn.Parameter(weight))
        return module


class _Replicated(ParallelStyle):
    """A module that every rank computes whole, its parameters DTensors like all others for the optimizer's sake."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def wrap(_: nn.Module, inputs: tuple[Tensor, ...], mesh: DeviceMesh) -> Any:
            return tuple(DTensor.from_local(each, mesh, [Replicate()], run_check=False) for each in inputs)

        def unwrap(_: nn.Module, output: DTensor, __: DeviceMesh) -> Tensor:
            return output.to_local()

        return distribute_module(module, device_mesh, None, wrap, unwrap)  # type: ignore[arg-type]  # hooks may return values


class _Sequence(SequenceParallel):
    """A norm of each rank's own tokens. The gradient of its weight is summed over ranks in float32.

    DTensor would sum in the weight's type, which is bfloat16 where FSDP has gathered it so.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module = super()._apply(module, device_mesh)
        module.register_forward_pre_hook(_lend_weight)
        module.register_forward_hook(_take_weight_back, always_call=True)
        return module


def _lend_weight(norm: nn.Module, _: tuple[Tensor, ...]) -> None:
    """For one forward pass; an attribute of the object comes before a parameter of its name."""
    norm.__dict__["weight"] = _SumInFull.apply(norm.get_parameter("weight"))  # type: ignore[no-untyped-call]  # untyped in torch


def _take_weight_back(norm: nn.Module, _: tuple[Tensor, ...], __: Tensor) -> None:
    norm.__dict__.pop("weight", None)


class _SumInFull(torch.autograd.Function):
    """The same DTensor. Its gradient, a share on each rank, becomes their sum, unless it is float32 and can wait."""

    @staticmethod
    def forward(ctx: Any, weight: DTensor) -> Tensor:  # noqa: ARG004 (torch's protocol)
        """See the class."""
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ARG004 (likewise)
        """See the class."""
        (grad,) = grads
        if grad.dtype == torch.float32:
            return grad
        return grad.float().redistribute(placements=[Replicate()]).to(grad.dtype)


@dataclass(frozen=True)
class VocabParallel:
    """`loss.CrossEntropy` of logits whose columns are split over a group, in order of rank."""

    group: dist.ProcessGroup

    def __call__(self, logits_nv: Tensor, targets_n: Tensor) -> Tensor:
        """Sum of cross entropies over valid targets, the same on each rank."""
        found: Tensor = _VocabParallelLoss.apply(logits_nv, targets_n, self.group)  # type: ignore[no-untyped-call]  # untyped in torch
        return found


class _VocabParallelLoss(torch.autograd.Function):
    """log(sum of exp) - target's logit, where both sums run over ranks. Two all-reduces of a few numbers a token."""

    @staticmethod
    def forward(ctx: Any, logits_nv: Tensor, targets_n: Tensor, group: dist.ProcessGroup) -> Tensor:
        """See `VocabParallel`."""
        logits = logits_nv.float()
        columns = logits.shape[1]
        largest = logits.amax(1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group)
        shifted = logits - largest[:, None]
        here = targets_n - dist.get_rank(group) * columns
        is_here = (here >= 0) & (here < columns)
        here = here.clamp(0, columns - 1)
        shares = shifted.exp()
        sums = torch.stack((shares.sum(1), shifted.gather(1, here[:, None])[:, 0] * is_here))
        dist.all_reduce(sums, group=group)
        is_valid = targets_n != IGNORED
        ctx.save_for_backward(shares.div_(sums[0][:, None]), here, is_here, is_valid)
        ctx.dtype = logits_nv.dtype
        return ((sums[0].log() - sums[1]) * is_valid).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Softmax minus one at the target."""
        shares, here, is_here, is_valid = ctx.saved_tensors
        scale = grads[0] * is_valid
        slope = shares * scale[:, None]
        slope.scatter_add_(1, here[:, None], -(scale * is_here)[:, None])
        return slope.to(ctx.dtype), None, None
