"""Which rank does what? The degrees of each kind of parallelism, a rank's seat among them, and torch's device mesh.

Ranks are numbered with pipeline stages outermost and tensor parallelism innermost, where it talks most:
(pp, replicate, shard, cp, tp). Data parallelism is replicate x shard: ddp replicates, fsdp2 shards, hsdp does both.
Gradients and losses are summed over data and context parallelism together, since both split tokens and neither splits
parameters; that sum is right with one data-parallel rank as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from amdahl_trainer.errors import ConfigError
from amdahl_trainer.fit import nearest_divisors
from amdahl_trainer.sections import Parallel

#: Dimensions of the mesh, outermost first.
DIMENSIONS = ("pp", "replicate", "shard", "cp", "tp")


@dataclass(frozen=True)
class Seat:
    """Where a rank is: stage, share of the rows, share of each row's tokens, share of each matrix."""

    pp: int
    dp: int
    cp: int
    tp: int

    @property
    def reads(self) -> bool:
        """Whether the rows of this rank are counted here: ranks that split a model read the same ones."""
        return self.pp == self.cp == self.tp == 0

    @property
    def tells_loss(self) -> bool:
        """Whether the loss of this rank's tokens is counted here: ranks that split a matrix compute the same one."""
        return self.tp == 0


@dataclass(frozen=True)
class Degrees:
    """How many ranks each dimension has."""

    pp: int = 1
    replicate: int = 1
    shard: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """In the order of `DIMENSIONS`."""
        return self.pp, self.replicate, self.shard, self.cp, self.tp

    @property
    def world(self) -> int:
        """Ranks in all."""
        return prod(self.shape)

    def __str__(self) -> str:
        """For people: `pp 1 x dp 4 (copies 2 x shard 2) x cp 1 x tp 1`."""
        data = f"dp {self.dp} (copies {self.replicate} x shard {self.shard})"
        return f"pp {self.pp} x {data} x cp {self.cp} x tp {self.tp}"

    @property
    def dp(self) -> int:
        """Ranks that read rows of their own."""
        return self.replicate * self.shard

    @property
    def dp_cp(self) -> int:
        """Ranks that gradients are summed over."""
        return self.dp * self.cp

    def is_sharded(self, dp_mode: str) -> bool:
        """Whether parameters are sharded. DDP knows no DTensors: beside tensors split, a copy is one shard."""
        return self.dp_cp > 1 and (dp_mode != "ddp" or self.tp > 1)

    def seat(self, rank: int) -> Seat:
        """Where a rank is."""
        rest, tp = divmod(rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        pp, dp = divmod(rest, self.dp)
        return Seat(pp, dp, cp, tp)


def fit_degrees(parallel: Parallel, world: int, local_world: int) -> Degrees:
    """The degrees of a run on `world` ranks, `local_world` of them on each machine. Raises ConfigError."""
    left = world
    for name in ("tp", "cp", "pp"):
        wanted = int(getattr(parallel, name))
        if left % wanted:
            others = "" if left == world else f", after the other degrees {left}"
            raise ConfigError(
                f"parallel.{name} is {wanted}, which does not divide the {world} ranks{others}; "
                f"nearest legal: {nearest_divisors(wanted, left)}"
            )
        left //= wanted
    _check_dp(parallel, world, left)
    shard = {"ddp": 1, "fsdp2": left, "hsdp": _copy_size(parallel, left, local_world)}[parallel.dp_mode]
    return Degrees(parallel.pp, left // shard, shard, parallel.cp, parallel.tp)


def _check_dp(parallel: Parallel, world: int, left: int) -> None:
    text = parallel.dp
    if text != "auto" and not (text.isdigit() and int(text) > 0):
        raise ConfigError(f"parallel.dp is {text!r}; set auto or a number of ranks")
    if text != "auto" and int(text) != left:
        model = parallel.pp * parallel.cp * parallel.tp
        raise ConfigError(
            f"parallel.dp is {text}, but {world} ranks with pp x cp x tp = {model} leave {left}; nearest legal: "
            f"{left}, or {int(text) * model} ranks"
        )


def _copy_size(parallel: Parallel, dp: int, local_world: int) -> int:
    """Ranks that hold one copy of the parameters in hsdp."""
    if parallel.dp_mode != "hsdp":
        return dp
    on_machine = max(1, local_world // (parallel.tp * parallel.cp))
    size = parallel.shard or min(dp, on_machine)
    if dp % size:
        raise ConfigError(
            f"parallel.shard is {size}, which does not divide the {dp} data-parallel ranks; "
            f"nearest legal: {nearest_divisors(size, dp)}"
        )
    return size


class Mesh:
    """Process groups by what they are for, of this rank. Made on first use, by all ranks alike."""

    def __init__(self, degrees: Degrees, rank: int, device: torch.device) -> None:
        self.degrees = degrees
        self.seat = degrees.seat(rank)
        self._device = device

    @cached_property
    def _root(self) -> DeviceMesh:
        return init_device_mesh(self._device.type, self.degrees.shape, mesh_dim_names=DIMENSIONS)

    @cached_property
    def tp(self) -> DeviceMesh:
        """Ranks that split each matrix."""
        return self._root["tp"]

    @cached_property
    def dp_cp(self) -> DeviceMesh:
        """Ranks that gradients are summed over."""
        return self._flatten(("replicate", "shard", "cp"), "dp_cp")

    @cached_property
    def copies(self) -> DeviceMesh:
        """Copies of the parameters x the ranks that hold one: what `fully_shard` takes. One dimension for one copy."""
        self._flatten(("shard", "cp"), "shard_cp")
        return self._root["replicate", "shard_cp"] if self.degrees.replicate > 1 else self._root["shard_cp"]

    def group(self, name: str) -> dist.ProcessGroup:
        """The process group of one dimension, or of `dp_cp`."""
        return (self.dp_cp if name == "dp_cp" else self._root[name]).get_group()

    def _flatten(self, names: tuple[str, ...], name: str) -> DeviceMesh:
        """Several dimensions as one. torch has no public way; every trainer on a device mesh calls this one."""
        return self._root[names]._flatten(name)  # noqa: SLF001 (as said)
