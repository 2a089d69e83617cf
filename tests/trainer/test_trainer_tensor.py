"""Tensor parallelism in detail: communication that hides behind arithmetic, and a loss that never sees whole logits."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from amdahl_trainer.loss import IGNORED, Criterion, cross_entropy_sum
from amdahl_trainer.tp import VocabParallel
from amdahl_trainer.tp_async import AsyncColumns


@pytest.fixture
def alone():
    """A process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


class Order(TorchDispatchMode):
    """Notes products of matrices and collectives as they are issued."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        if name in ("mm", "bmm") or "all" in name or "reduce" in name:
            self.seen.append("product" if name in ("mm", "bmm") else name.strip("_"))
        return function(*args, **(kwargs or {}))


def make_layers(outs=(8, 4, 4)):
    """Linear layers on a mesh of one rank, as tensor parallelism leaves them."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (1,))
    layers = [nn.Linear(8, out, bias=False) for out in outs]
    for layer in layers:
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
    return layers


@pytest.mark.parametrize("splits_tokens", [False, True])
def test_gradients_of_inputs_are_under_way_while_those_of_weights_are_computed(alone, splits_tokens):
    """Three layers, one message: it is issued after the products for the input and before those for the weights."""
    layers = make_layers()
    x = torch.randn(2, 6, 8, requires_grad=True)
    results = AsyncColumns(alone, splits_tokens)(x, layers)
    with Order() as order:
        torch.cat(results, dim=2).sum().backward()
    first, *rest = [at for at, what in enumerate(order.seen) if what != "product"]
    message = rest[-1] if splits_tokens else first
    assert order.seen.count("product") == 6
    assert order.seen[:message].count("product") == 3
    assert order.seen[message + 1 :].count("product") == 3
    assert len(rest) == int(splits_tokens)  # the input is gathered again, before everything
    assert first == 0 or not splits_tokens


@pytest.mark.parametrize("splits_tokens", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_asynchronous_columns_equal_plain_layers(alone, splits_tokens, dtype):
    """Results and gradients to rounding, under autocast to that of half precision."""
    found = {}
    for kind in ("async", "plain"):
        layers = make_layers()
        x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            if kind == "async":
                results = AsyncColumns(alone, splits_tokens)(x, layers)
            else:
                results = [nn.functional.linear(x, layer.weight.to_local()) for layer in layers]
        sum(result.float().square().sum() for result in results).backward()
        found[kind] = [*results, x.grad, *(layer.weight.grad.to_local() for layer in layers)]
    for ours, plain in zip(*found.values(), strict=True):
        assert ours.dtype == plain.dtype
        assert (ours - plain).abs().max() <= (1e-6 if dtype is None else 1e-2) * plain.abs().max()


def make_loss(kind, logits, targets, group):
    leaf = logits.clone().requires_grad_()
    loss = VocabParallel(group)(leaf, targets) if kind == "ours" else cross_entropy_sum(leaf, targets)
    (loss * 3).backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_vocab_parallel_loss_is_cross_entropy(alone, scale, dtype):
    """Also with huge logits, with padding, and with nothing but padding."""
    torch.manual_seed(0)
    logits = (torch.randn(12, 20) * scale).to(dtype)
    for targets in (torch.randint(0, 20, (12,)), torch.tensor([IGNORED, 3] * 6), torch.full((12,), IGNORED)):
        (loss, gradient), (wanted, slope) = (make_loss(kind, logits, targets, alone) for kind in ("ours", "torch's"))
        assert torch.allclose(loss, wanted, rtol=1e-6)
        assert torch.allclose(gradient, slope, atol=1e-6 if dtype == torch.float32 else 1e-2)
        assert gradient.dtype == dtype


class Counting(nn.Linear):
    """A head that remembers the most tokens it was ever given at once."""

    most = 0

    def forward(self, x):
        self.most = max(self.most, x.shape[1])
        return super().forward(x)


@pytest.mark.parametrize(("chunks", "tokens", "most"), [(1, 12, 12), (3, 12, 4), (5, 12, 3), (20, 12, 1)])
def test_logits_of_one_piece_exist_at_a_time(chunks, tokens, most):
    """Loss and gradients are those of one piece, also where pieces do not come out even."""
    torch.manual_seed(0)
    head, x, targets = Counting(8, 20, bias=False), torch.randn(2, tokens, 8), torch.randint(0, 20, (2, tokens))
    targets[1, 9:] = IGNORED
    found = []
    for pieces in (1, chunks):
        head.zero_grad()
        head.most = 0
        leaf = x.clone().requires_grad_()
        loss = Criterion(pieces)(head, leaf, targets)
        loss.backward()
        found.append((loss.detach(), leaf.grad, head.weight.grad.clone()))
    assert head.most == most
    assert all(torch.allclose(ours, whole, atol=1e-5) for ours, whole in zip(*found, strict=True))


@pytest.mark.parametrize("is_half", [False, True], ids=["autocast", "half as FSDP gathers it"])
def test_the_gradient_of_the_head_is_as_exact_in_pieces_as_in_one(is_half):
    """In bfloat16 a sum of pieces would lose a little with each: 32 of them three times as much as one, 128 five."""
    torch.manual_seed(0)
    head, x, targets = nn.Linear(64, 512, bias=False), torch.randn(1, 2048, 64), torch.randint(0, 512, (1, 2048))

    def find_gradient(pieces, dtype):
        half = copy.deepcopy(head).to(dtype if is_half else torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16 and not is_half):
            Criterion(pieces)(half, x.to(half.weight.dtype), targets).backward()
        return half.weight.grad.float()

    exact = find_gradient(1, torch.float32)
    errors = [float((find_gradient(pieces, torch.bfloat16) - exact).norm() / exact.norm()) for pieces in (1, 32, 128)]
    assert 0 < max(errors) < 1.5 * errors[0]
