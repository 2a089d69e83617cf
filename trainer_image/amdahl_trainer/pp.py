"""Pipeline parallelism: each rank holds some of the blocks, and micro-batches flow through. On torch's schedules.

`afab` (GPipe, arXiv 1811.06965) runs all forwards and then all backwards. `1f1b` (arXiv 2104.04473) alternates them as
soon as it can, so a stage keeps at most as many micro-batches as there are stages. `interleaved` gives each rank
several stages, which divides the idle time at either end by their number.

Gradients of micro-batches are summed. The loss of each is divided by the valid tokens of the whole step, so the sum is
the gradient of the mean; dividing by the number of micro-batches as well, or by neither, is the classic mistake here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from amdahl_trainer.errors import ConfigError
from amdahl_trainer.feed import Feed, Micro, pad
from amdahl_trainer.model import Llama, Part
from amdahl_trainer.sections import Model, Parallel


def check(model: Model, parallel: Parallel, micro_batch: int, micro_batches: int) -> None:
    """There must be a block for each stage and enough micro-batches for the schedule. Raises ConfigError."""
    stages = count_stages(parallel)
    if model.n_layers < stages:
        raise ConfigError(
            f"parallel.pp {parallel.pp} with schedule {parallel.pp_schedule} makes {stages} stages, more than "
            f"model.n_layers {model.n_layers}; nearest legal: parallel.pp {parallel.pp * model.n_layers // stages or 1}"
        )
    if model.tie_embeddings:
        raise ConfigError(
            f"model.tie_embeddings is true, but with parallel.pp {parallel.pp} embedding and head are on different "
            "ranks; set model.tie_embeddings to false, or parallel.pp to 1"
        )
    legal = [count for count in _divisors(micro_batch * micro_batches) if _suits(parallel, count)]
    if micro_batches not in legal:
        share = micro_batch * micro_batches
        near = sorted(legal, key=lambda count: abs(count - micro_batches))[:1]
        remedy = f"batch.micro_batch {share // near[0]}" if near else "a larger batch.global_sequences"
        raise ConfigError(
            f"batch.micro_batch {micro_batch} makes {micro_batches} micro-batches of a rank's {share} rows, which "
            f"schedule {parallel.pp_schedule} cannot run over parallel.pp {parallel.pp} ranks; nearest legal: {remedy}"
        )


def _suits(parallel: Parallel, micro_batches: int) -> bool:
    """Whether torch's schedule takes this number of micro-batches."""
    if parallel.pp_schedule == "afab":
        return True
    if micro_batches < parallel.pp:
        return False
    return parallel.pp_schedule == "1f1b" or micro_batches % (micro_batches // parallel.pp) == 0


def _divisors(whole: int) -> list[int]:
    return [n for n in range(1, whole + 1) if whole % n == 0]


def count_stages(parallel: Parallel) -> int:
    """Stages in all."""
    return parallel.pp * (parallel.pp_stages if parallel.pp_schedule == "interleaved" else 1)


def split_layers(n_layers: int, stages: int) -> list[Part]:
    """Which blocks each stage has: as equal as can be, the first ones longer, since the last has the head as well."""
    size, longer = divmod(n_layers, stages)
    begins = [stage * size + min(stage, longer) for stage in range(stages + 1)]
    return [Part(range(begins[stage], begins[stage + 1]), n_layers) for stage in range(stages)]


class Hand:
    """The micro-batches of the step that runs now: what stages need beside the stream, which alone is sent on.

    Each stage is given them in order, as torch's schedules run its forward passes. Their number as an argument would be
    a tensor, which data parallelism moves to the device, and reading it there would wait for the device each time.
    """

    def __init__(self) -> None:
        self._micros: Sequence[Micro] = ()
        self._taken: Counter[Part] = Counter()

    def hold(self, micros: Sequence[Micro]) -> None:
        """These, and no stage has had any."""
        self._micros = micros
        self._taken.clear()

    def take(self, stage: Part) -> Micro:
        """The first one that this stage has not had."""
        number = self._taken[stage]
        self._taken[stage] += 1
        return self._micros[number]


class Stage(nn.Module):
    """A part of the model in a pipeline. It takes the stream from the stage before, the rest from the rank's hand."""

    def __init__(
        self,
        part: Llama,
        hand: Hand,
        precision: Callable[[], AbstractContextManager[object]],
        mark: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.part = part
        self._hand = hand
        self._precision = precision
        self._mark = mark

    def forward(self, x: Tensor) -> Tensor:
        """(B, S) tokens, or (B, S, D) the stream, to the stream, or to (1,) the sum of cross entropies."""
        micro = self._hand.take(self.part.part)
        self._mark("forward")
        with self._precision():
            found: Tensor = self.part(x, *micro.beside)
        self._mark("backward")
        return torch.stack([found]) if self.part.part.is_last else found  # a view would be lost on FSDP2


@dataclass(frozen=True)
class Shape:
    """What stages take on one rank: (rows, tokens), or the stream (rows, tokens / sp, width), and the stream's type."""

    rows: int
    tokens: int
    sp: int
    width: int
    dtype: torch.dtype


def make_stage(
    module: nn.Module, part: Part, at: tuple[int, int], shape: Shape, device: torch.device, group: dist.ProcessGroup
) -> PipelineStage:
    """A stage of torch's around a `Stage`, wrapped for data parallelism or not.

    `at` is its index, and how many there are. Shapes are told, so that nothing is run or sent to find them out.
    """
    sizes = shape.rows, shape.tokens // shape.sp, shape.width
    stream = torch.empty(sizes, dtype=shape.dtype, device="meta", requires_grad=True)
    tokens = torch.empty(shape.rows, shape.tokens, dtype=torch.int64, device="meta")
    loss = torch.empty(1, device="meta", requires_grad=True)
    return PipelineStage(
        module,
        *at,
        device,
        input_args=tokens if part.is_first else stream,
        output_args=loss if part.is_last else stream,
        group=group,
    )


class Pipeline:
    """A rank's stages and their schedules. `Replica` with a pipeline.

    One schedule trains and another evaluates, each with stages of its own around the same modules: the buffers that a
    stage receives into are made with its first pass, and torch 2.11 asks no gradient of them if that was an evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        make_stages: Callable[[], Sequence[PipelineStage]],
        schedule: str,
        micro_batches: int,
        feed: Feed,
        hand: Hand,
        divisor: int,
        tells_loss: bool,
    ) -> None:
        stages = make_stages()
        self.model = model
        self.stages: dist.ProcessGroup | None = stages[0].group
        self._feed = feed
        self._hand = hand
        self._count = micro_batches
        self._divisor = divisor
        self._tells_loss = tells_loss and any(stage.is_last for stage in stages)
        self._takes_tokens = any(stage.is_first for stage in stages)
        self._scale = 1.0
        self._train = _SCHEDULES[schedule](stages, micro_batches, self._scaled).step
        self._evaluate = _SCHEDULES[schedule](make_stages(), micro_batches, self._scaled).eval

    @property
    def rows(self) -> int:
        """See `Replica`."""
        return self._count * self._feed.rows

    def accumulate(self, packed: Tensor, valid: int) -> Tensor:
        """See `Replica`."""
        self._scale = self._divisor / valid
        return self._total(self._run(packed, self._train)) / self._divisor

    @torch.no_grad()
    def evaluate(self, packed: Tensor) -> Tensor:
        """See `Replica`."""
        self._scale = 1.0
        return self._total(self._run(packed, self._evaluate)).double()

    def _run(self, packed: Tensor, run: Callable[..., object]) -> list[Tensor]:
        """The losses of all micro-batches, scaled; on ranks without the last stage none."""
        micros = list(self._feed.cut(pad(packed, self.rows)))
        self._hand.hold(micros)
        tokens = [torch.cat([micro.tokens for micro in micros])] if self._takes_tokens else []
        losses: list[Tensor] = []
        run(*tokens, target=torch.empty(self._count), losses=losses)  # torch takes no loss without a target
        self._hand.hold(())
        return losses

    def _scaled(self, total: Tensor, _: Tensor) -> Tensor:
        return total.squeeze(0) * self._scale

    def _total(self, losses: Sequence[Tensor]) -> Tensor:
        if not self._tells_loss:
            return torch.zeros((), device=self._feed.device)
        return torch.stack([loss.detach() for loss in losses]).sum()


#: Any of torch's schedules that we use, and how one is made of a rank's stages, their micro-batches and the loss.
Schedule = ScheduleGPipe | Schedule1F1B | ScheduleInterleaved1F1B
MakeSchedule = Callable[[Sequence[PipelineStage], int, Callable[[Tensor, Tensor], Tensor]], Schedule]


def _single(kind: type[ScheduleGPipe | Schedule1F1B]) -> MakeSchedule:
    return lambda stages, micro_batches, loss: kind(stages[0], micro_batches, loss_fn=loss, scale_grads=False)


def _several(kind: type[ScheduleInterleaved1F1B]) -> MakeSchedule:
    return lambda stages, micro_batches, loss: kind(list(stages), micro_batches, loss_fn=loss, scale_grads=False)


#: By `parallel.pp_schedule`. Gradients are left as they are: the loss is scaled already.
_SCHEDULES: Mapping[str, MakeSchedule] = {
    "afab": _single(ScheduleGPipe),
    "1f1b": _single(Schedule1F1B),
    "interleaved": _several(ScheduleInterleaved1F1B),
}
