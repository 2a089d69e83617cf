"""What every parallel mode is held against: one step of the plain model in one process, written by hand.

Ranks see the same rows: ragged, with several documents each and padding, made from nothing but the configuration.
"""

import itertools
import json
import time
import weakref
from collections import Counter
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (the name every torch reader knows)
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amdahl_trainer import config as configs
from amdahl_trainer import optim, parallel
from amdahl_trainer.documents import find_documents
from amdahl_trainer.feed import pad
from amdahl_trainer.loss import IGNORED
from amdahl_trainer.mesh import Mesh
from amdahl_trainer.model import Llama
from amdahl_trainer.replica import Reduced

CPU = torch.device("cpu")

#: Grouped heads, enough blocks for four stages, and an epsilon of Adam that does not turn rounding into steps.
TINY = {
    "model.n_layers": 4,
    "model.d_model": 32,
    "model.n_heads": 4,
    "model.n_kv_heads": 4,
    "model.d_ff": 48,
    "model.vocab_size": 320,
    "model.tie_embeddings": False,
    "data.seq_len": 64,
    "batch.global_sequences": 8,
    "batch.micro_batch": 2,
    "optim.eps": 1e-2,
    "optim.lr": 1e-2,
    "parallel.bucket_mb": 0.02,
}


def make_rows(config):
    """(3, rows, S) inputs, targets and segments; row r has r + 1 documents and 5 r slots of padding."""
    generator = torch.Generator().manual_seed(7)
    rows, seq = config.batch.global_sequences, config.data.seq_len
    inputs = torch.randint(0, 256, (rows, seq), generator=generator)
    targets = torch.randint(0, 256, (rows, seq), generator=generator)
    segments = torch.zeros(rows, seq, dtype=torch.int64)
    for row in range(rows):
        end = seq - 5 * (row % 8)
        edges = torch.linspace(0, end, row % 4 + 2).long().tolist()
        for number, (first, last) in enumerate(itertools.pairwise(edges), start=1):
            segments[row, first:last] = number
        targets[row, end:] = IGNORED
    return torch.stack((inputs, targets, segments))


def reference(values, take=None):
    """The step of one process, written by hand."""
    config = configs.build({**TINY, **values})
    torch.manual_seed(config.run.seed)
    model = Llama(config.model)
    inputs, targets, segments = make_rows(config)[:, :take]
    documents = find_documents(segments, CPU) if config.data.doc_mask else None

    def sum_of_losses():
        logits = model(inputs, documents)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")

    first, total = copies(model), sum_of_losses()
    loss = total / (segments > 0).sum()
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    norm = torch.cat([grad.flatten() for grad in gradients.values()]).norm()
    optim.apply(optim.build(model, config.optim), config.optim, config.optim.lr, loss.detach())
    with torch.no_grad():
        sums = float(total), float(sum_of_losses())
    found = {"loss": loss.detach(), "norm": norm, "sums": sums}
    return {**found, "first": first, "gradients": gradients, "after": copies(model)}


#: Classic mistakes, that the parity matrix would be worth nothing without finding.
MISTAKES = ("each micro-batch by its own tokens", "no reduction over cp")


@cache
def join_mesh(degrees, rank):
    """One mesh for all cases of its degrees: each process group has threads of its own, which never rest."""
    return Mesh(degrees, rank, CPU)


class Sent(TorchDispatchMode):
    """How often each kind of collective was called, the types of what it was given, and what one of two ranks sent.

    Single numbers are left out: with one torch 2.11's pipeline greets its neighbours, and every version sums the norm.
    Counted is too how often a number was read from a tensor (`_local_scalar_dense`): if that is a GPU's, it is waited
    for.
    """

    def __init__(self):
        super().__init__()
        self.types, self.calls, self.bytes = {}, Counter(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.calls["_local_scalar_dense"] += 1
        if function.namespace in ("c10d", "_c10d_functional"):
            given = (leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
            name = function.overloadpacket.__name__
            self.calls[name] += 1
            many = [leaf for leaf in given if leaf.numel() > 1]
            self.types.setdefault(name, set()).update(str(leaf.dtype).removeprefix("torch.") for leaf in many)
            self.bytes += sent_by_one_of_two(name, many)
        return function(*args, **(kwargs or {}))


def sent_by_one_of_two(name, given):
    """Round a ring: half of what is gathered or scattered, and of an all-reduce, which is both, as much as it is given.

    A gather may be given its whole result beside this rank's half, or that half alone.
    """
    sizes = [leaf.nbytes for leaf in given if leaf.is_floating_point()]
    if name.startswith(("allreduce", "all_reduce", "send", "all_gather_into")):
        return sum(sizes)
    is_half = name.startswith(("_allgather_base", "_reduce_scatter_base", "reduce_scatter", "alltoall"))
    return max(sizes, default=0) // 2 if is_half else 0


def take_step(values, place, others, mistake=None, take=None, watch=False):
    """The same through the trainer's own parts; on rank 0 what came of it on all ranks, elsewhere None."""
    config = configs.build(values)
    torch._dynamo.reset()  # a case compiles its own graphs, or none
    torch._dynamo.utils.counters.clear()
    mesh = join_mesh(parallel.fit(config, place), place.rank)
    marks = []
    with (
        patch.object(parallel, "_reduce", lambda module, *_: Reduced(module))
        if mistake == MISTAKES[1]
        else nullcontext()
    ):
        replica = parallel.parallelize(config, mesh, CPU, lambda: marks.append(1))
    model, rows = replica.model, make_rows(config)[:, :take]
    mine = rows[:, mesh.seat.dp :: mesh.degrees.dp]
    optimizer = optim.build(model, config.optim)

    def sum_of_losses():
        turns = (mine[:, at : at + replica.rows] for at in range(0, mine.shape[1], replica.rows))
        return float(others.total(sum(replica.evaluate(pad(turn, replica.rows)) for turn in turns)))

    tensors, before = {"first": copies(model)}, sum_of_losses()
    valid = others.agree(int((mine[2] > 0).sum()) if mesh.seat.reads else 0, False, False).valid
    divisor = valid * config.batch.micro_batch // rows.shape[1] if mistake == MISTAKES[0] else valid
    with Sent() if watch else nullcontext() as sent:
        loss = replica.accumulate(mine, divisor)
    loss = others.total(loss)
    tensors["gradients"] = {name: whole(w.grad) for name, w in model.named_parameters() if w.grad is not None}
    norm, refused = optim.apply(optimizer, config.optim, config.optim.lr, loss, replica.stages)
    tensors["after"] = copies(model)
    held = torch.tensor(sum(local(weight).numel() for weight in model.parameters()))
    if place.world > 1:
        dist.all_reduce(held, dist.ReduceOp.MAX)
    found = {"loss": loss, "norm": norm, "refused": bool(refused), "sums": (before, sum_of_losses())}
    found["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    if watch:
        kept = [*tensors["after"].values(), *tensors["gradients"].values()]  # parameters not gathered for use
        kept += [value for state in optimizer.state.values() for value in state.values()]
        found |= {
            "sent": sent.types,
            "bytes": sent.bytes,
            "calls": dict(sent.calls),
            "kept": {str(value.dtype).removeprefix("torch.") for value in kept},
        }
    return merge(found | {"valid": valid, "marks": len(marks), "held": int(held)}, tensors, place)


def merge(found, tensors, place):
    """On rank 0 the tensors of all ranks under one another's names, and how far those of one name are apart."""
    gathered = [tensors]
    if place.world > 1:
        gathered = [None] * place.world if place.rank == 0 else None
        dist.gather_object(tensors, gathered)
    if gathered is None:
        return None
    found["spread"] = 0.0
    for kind in tensors:
        found[kind] = merged = {}
        for name, tensor in ((name, tensor) for rank in gathered for name, tensor in rank[kind].items()):
            found["spread"] = max(found["spread"], float((merged.setdefault(name, tensor) - tensor).abs().max()))
    return found


class Live(TorchDispatchMode):
    """The most bytes that tensors which operations made, and which still existed, ever took.

    Sizes are asked for each time: FSDP empties and fills the same storages. A DTensor takes itself apart, so that what
    its operations make inside is seen.
    """

    def __init__(self):
        super().__init__()
        self.known, self.peak = weakref.WeakValueDictionary(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        found = function(*args, **(kwargs or {}))
        made = [leaf.untyped_storage() for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor) and leaf.is_cpu]
        new = {storage._cdata: storage for storage in made if storage._cdata not in self.known}
        if new:
            self.known.update(new)
            self.peak = max(self.peak, sum(map(occupied, self.known.values())))
        return found


def occupied(storage):
    try:
        return storage.nbytes() if storage.data_ptr() else 0
    except RuntimeError:  # a DTensor's own, which has no memory
        return 0


def measure_peak(values, place, others):
    """The most bytes that tensors took on each rank, from the making of the model through two steps."""
    config = configs.build(values)
    mesh = join_mesh(parallel.fit(config, place), place.rank)
    rows = make_rows(config)
    valid, mine = int((rows[2] > 0).sum()), rows[:, mesh.seat.dp :: mesh.degrees.dp].contiguous()
    with Live() as live:
        replica = parallel.parallelize(config, mesh, CPU, lambda: None)
        optimizer = optim.build(replica.model, config.optim)
        for _ in range(2):
            loss = others.total(replica.accumulate(mine, valid))
            optim.apply(optimizer, config.optim, config.optim.lr, loss, replica.stages)
    return others.gather([live.peak])


def copies(model):
    """Whole parameters, on every rank that has a piece of them."""
    return {name: whole(weight) for name, weight in model.named_parameters()}


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def apart(found, wanted):
    """The greatest difference of two sets of tensors, relative to the largest entry."""
    assert set(found) == set(wanted), set(found) ^ set(wanted)
    largest = max(float(tensor.abs().max()) for tensor in wanted.values())
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted) / largest


def has_ended(pid):
    """Whether a process is a zombie, which its zygote has not yet been asked about."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


class Pool:
    """Ranks that are started once and take one case after the other."""

    def __init__(self, start, world):
        self.ranks = start(world)
        self.home = self.ranks.home
        self.count = 0
        self.is_open = True

    def run(self, values, timeout_s=900, **how):
        """What one step of a configuration does on these ranks; `how` is for `take_step`, or is its `memory`."""
        number, self.count = self.count, self.count + 1
        self._tell(number, {"values": {**TINY, **values}, **how})
        result = self.home / f"result-{number}.pt"
        deadline = time.monotonic() + timeout_s
        while not result.exists():
            if time.monotonic() > deadline or any(map(has_ended, self.ranks.pids)):
                self.is_open = False
                done = self.ranks.join(1)
                raise AssertionError(f"ranks ended with {done.codes}: {done.output[-3000:]}")
            time.sleep(0.005)
        return torch.load(result)

    def close(self):
        self._tell(self.count, None)
        done = self.ranks.join()
        assert set(done.codes) == {0}, done.output

    def _tell(self, number, values):
        draft = self.home / f"draft-{number}.json"
        draft.write_text(json.dumps(values))
        draft.rename(self.home / f"case-{number}.json")
