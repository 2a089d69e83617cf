"""Run in each rank by test_trainer_context: attention spread over ranks against the same in one process."""

import os
import time
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from amdahl_trainer.attention import attend
from amdahl_trainer.context import Context
from amdahl_trainer.documents import find_documents

torch.set_num_threads(1)
CPU = torch.device("cpu")
ROWS, TOKENS, HEADS, HEAD = 2, 48, 12, 8
RAGGED = [[1] * 5 + [2] * 1 + [3] * 30 + [4] * 9 + [0] * 3, [1] * 48]
SHORT = [[1 + at // 3 for at in range(48)], [1 + at // 2 for at in range(48)]]
DOCUMENTS = {name: find_documents(torch.tensor(rows), CPU) for name, rows in (("ragged", RAGGED), ("short", SHORT))}
DOCUMENTS["one"] = None


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def differ(found, wanted):
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max())


def compare(context, documents, kv_heads, dtype=torch.float32):
    """Greatest relative differences of the output and of the gradients by queries, keys and values."""
    whole = [drawn(seed, ROWS, TOKENS, heads, HEAD) for seed, heads in enumerate((HEADS, kv_heads, kv_heads))]
    weights = drawn(3, ROWS, TOKENS, HEADS, HEAD)
    own = [context.shard(part).to(dtype).requires_grad_() for part in whole]
    whole = [part.requires_grad_() for part in whole]
    out, wanted = attend(*own, documents, context), attend(*whole, documents)
    found = torch.autograd.grad((out * context.shard(weights)).sum(), own)
    expected = torch.autograd.grad((wanted * weights).sum(), whole)
    pairs = zip((out, *found), (wanted, *expected), strict=True)
    return [differ(context.unshard(one.detach().float()), other) for one, other in pairs]


class Mini(nn.Module):
    """Tokens to logits through one layer of attention; positions count in whole rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(64, HEADS * HEAD)
        self.positions = nn.Embedding(TOKENS, HEADS * HEAD)
        self.mix = nn.ModuleList(nn.Linear(HEADS * HEAD, heads * HEAD) for heads in (HEADS, 4, 4))
        self.out = nn.Linear(HEADS * HEAD, 64)

    def forward(self, tokens, positions, documents, context=None):
        x = self.embedding(tokens) + self.positions(positions)
        parts = (part(x).unflatten(2, (-1, HEAD)) for part in self.mix)
        return self.out(attend(*parts, documents, context).flatten(2))


def recompute(model):
    """The model with nothing of its forward pass kept: it is run again, messages and all, in the backward pass."""
    return lambda *of: checkpoint(model, *of, use_reentrant=False)


def train(context, documents, wrap=lambda model: model):
    """Relative differences of a model's gradients from those of one process: summed over ranks, and this rank's own."""
    tokens = torch.randint(0, 64, (ROWS, TOKENS), generator=torch.Generator().manual_seed(2))
    targets, positions = tokens.roll(-1, 1), torch.arange(TOKENS)

    def gradients(place, within):
        model = Mini()
        run = wrap(model) if within else model
        logits = run(place(tokens, 1), place(positions, 0), documents, within)
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), place(targets, 1).flatten(), reduction="sum")
        (losses / tokens.numel()).backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters()])

    wanted = gradients(lambda whole, _: whole, None)
    own = gradients(context.shard, context)
    total = own.clone()
    dist.all_reduce(total, group=context.spread.group)
    return differ(total, wanted), differ(own, wanted)


class Sent(TorchDispatchMode):
    """Counts the bytes that collectives send, once for each rank that they go to."""

    def __init__(self, world):
        super().__init__()
        self.world, self.bytes = world, 0

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        name = str(function)
        if name.startswith("c10d.send"):
            self.bytes += args[0][0].nbytes
        elif name.startswith(("c10d.alltoall_base", "c10d._reduce_scatter_base")):
            self.bytes += args[1].nbytes * (self.world - 1) // self.world
        elif name.startswith("c10d._allgather_base"):
            self.bytes += args[1].nbytes * (self.world - 1)
        return function(*args, **(kwargs or {}))


def weigh(context, documents, kv_heads):
    """Bytes that attention keeps for its backward pass, and sends in each pass."""
    kept = {}

    def keep(tensor):
        is_mask = tensor.dim() in {2, 4} and tensor.shape[-1] not in {HEAD, HEADS}  # a GPU has none
        if tensor.is_floating_point() and not is_mask:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # several views of one are kept once
        return tensor

    shapes = [(ROWS, TOKENS, heads, HEAD) for heads in (HEADS, kv_heads, kv_heads)]
    own = [context.shard(drawn(0, *shape)).requires_grad_() for shape in shapes]
    world = dist.get_world_size()
    with Sent(world) as forward, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = attend(*own, documents, context)
    with Sent(world) as backward:
        torch.autograd.grad(out.sum(), own)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), forward.bytes, backward.bytes


dist.init_process_group("gloo")
world = dist.get_world_size()
found = {"parity": {}, "groups": {}, "half": {}, "model": {}, "bytes": {}, "seconds": time.monotonic()}
for mode, balance in product(("allgather", "ulysses", "ring"), ("zigzag", "contiguous")):
    context = Context.over(dist.group.WORLD, mode, balance)
    for name, kv_heads in product(DOCUMENTS, (12, 3, 1)):
        found["parity"][mode, balance, name, kv_heads] = compare(context, DOCUMENTS[name], kv_heads)
        found["bytes"][mode, balance, name, kv_heads] = weigh(context, DOCUMENTS[name], kv_heads)
    found["half"][mode, balance] = compare(context, DOCUMENTS["ragged"], 3, torch.bfloat16)
    found["model"][mode, balance] = train(context, DOCUMENTS["ragged"])
    found["model"][mode, balance, "recomputed"] = train(context, DOCUMENTS["ragged"], recompute)
found["model"]["compiled"] = train(context, DOCUMENTS["ragged"], partial(torch.compile, backend="eager"))
if world == 4:  # groups whose ranks are not the world's: next to each other, and apart
    for name, layout in (("near", ((0, 1), (2, 3))), ("far", ((0, 2), (1, 3)))):
        group = [dist.new_group(ranks) for ranks in layout][[dist.get_rank() in ranks for ranks in layout].index(True)]
        for mode in ("allgather", "ulysses", "ring"):
            found["groups"][name, mode] = compare(Context.over(group, mode, "zigzag"), DOCUMENTS["ragged"], 3)
found["seconds"] = time.monotonic() - found["seconds"]
home = Path(os.environ["AMDAHL_TELEMETRY_DIR"])
torch.save(found, home / f"parity-{dist.get_rank()}.pt")
dist.barrier()
os._exit(0)  # as the trainer ends: gloo's threads may abort a process that has succeeded
