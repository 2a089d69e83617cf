"""How much memory does a rank need? Bytes by what they are for, from the configuration alone.

Counted is what training keeps, tensor by tensor; what a kernel needs for a moment is not, nor what an allocator loses
between blocks, nor the library's own (about 1 GiB on a CUDA device). Activations are what autograd saves of one token:

    stream, before either norm        2 D       in the stream's type (float32 under autocast, else as computed)
    after either norm                 2 D       as computed, like all below
    queries, what attention gave      2 D
    keys and values                   2 G E     G key heads of size E
    gate, its activation, up, product 4 F
    statistics of norms and softmax   H + 2     float32

On a CPU a norm is made of smaller operations, and what it normalised is saved as well: 2 D more, float32. Where the
tokens of rows are spread over ranks, `attention` says what is kept in place of the second and third line, and what is
sent. Not all is there at once: what a rank needs is what it holds at the dearest of a few moments (`Rank.moments`).
Tests hold these counts to what torch allocates, on one process and on meshes, and to what collectives are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import ceil, lcm
from typing import cast

from amdahl_trainer import fit, pp
from amdahl_trainer.config import Config
from amdahl_trainer.mesh import Degrees
from amdahl_trainer.model import Part
from amdahl_trainer.sections import Model
from amdahl_trainer.shards import Mode

#: Bytes of float32: parameters, sums of gradients, Adam's moments, each query's log-sum-exp.
FULL = 4


@dataclass(frozen=True)
class Shape:
    """Attention over whole rows, of the heads that a rank computes."""

    rows: int
    tokens: int
    heads: int
    kv_heads: int
    head_size: int
    element_bytes: int


@dataclass(frozen=True)
class Cost:
    """Of one layer's attention on one rank. A byte counts as sent once for each rank that it is sent to."""

    kept_bytes: int
    sent_forward_bytes: int
    sent_backward_bytes: int


def attention(mode: Mode, shape: Shape, world: int, hops: int | None = None) -> Cost:
    """What the attention of a layer keeps for its backward pass and sends, without the projections around it.

    Args:
        mode: how attention is computed; indifferent for one rank.
        shape: of whole rows; world divides the tokens.
        world: ranks that the tokens are spread over.
        hops: of the ring, see `cp_ring.count_hops`; None is all, as where a row is one document.
    """
    slots = shape.rows * shape.tokens // world  # own tokens
    queries = slots * shape.heads * shape.head_size
    pair = 2 * slots * shape.kv_heads * shape.head_size  # own keys and values
    output_and_queries = 2 * queries * shape.element_bytes + slots * shape.heads * FULL
    others = world - 1
    if mode == "allgather":
        return Cost(
            kept_bytes=output_and_queries + world * pair * shape.element_bytes,
            sent_forward_bytes=others * pair * shape.element_bytes,
            sent_backward_bytes=others * pair * FULL,
        )
    if mode == "ulysses":
        pair = pair * lcm(shape.kv_heads, world) // shape.kv_heads
        sent = (2 * queries + pair) * others // world * shape.element_bytes
        return Cost(output_and_queries + pair * shape.element_bytes, sent, sent)
    passed = (world if hops is None else hops) - 1
    forward = passed * pair * shape.element_bytes
    gradients = (passed + 1) * pair * FULL if passed else 0  # the last message takes them home
    return Cost(output_and_queries + pair * shape.element_bytes, forward, forward + gradients)


@dataclass(frozen=True)
class Needs:
    """Bytes of one rank, on its device but for the last."""

    parameters: int
    gradients: int
    moments: int
    gathered: int  # whole blocks that sharded ranks put together, or copies of parameters in half precision
    activations: int  # and a pipeline's messages
    working: int  # of the moment: gradients of logits, or a block that is computed again
    host: int = 0  # in host memory: parameters, gradients and moments that are offloaded

    @property
    def total(self) -> int:
        """All that is on the device at once."""
        return sum(int(getattr(self, field.name)) for field in fields(self)) - self.host


def estimate(config: Config, degrees: Degrees, stage: int = 0, *, on_gpu: bool = True) -> Needs:
    """What a rank of a pipeline's stage needs at the moment when that is the most."""
    return max(Rank(config, degrees, stage, on_gpu).moments(), key=lambda needs: needs.total)


def shapes(model: Model, part: Part) -> Iterator[tuple[int, int]]:
    """Rows and columns of each parameter of a part; a norm, which tp never splits, is (D, 0)."""
    width, keys = model.d_model, _keys(model)
    for _ in part.layers:
        yield from ((width, width), (keys, width), (keys, width), (width, width), (width, 0), (width, 0))
        yield from ((model.d_ff, width), (model.d_ff, width), (width, model.d_ff))
    if part.is_first:
        yield model.vocab_size, width
    if part.is_last:
        yield width, 0
        if not (model.tie_embeddings and part.is_first):
            yield model.vocab_size, width


def count_parameters(model: Model) -> int:
    """Parameters of the whole model."""
    return count(shapes(model, Part(range(model.n_layers), model.n_layers)), 1, 1)


def _keys(model: Model) -> int:
    """Width of all key heads."""
    return model.n_kv_heads * (model.d_model // model.n_heads)


def count(parameters: Iterator[tuple[int, int]], tp: int, shard: int) -> int:
    """Elements that a rank holds: the first of `shard` ranks, which gets the longer pieces."""
    return sum(ceil(rows / shard) * columns // tp if columns else ceil(rows / shard) for rows, columns in parameters)


def attention_cost(config: Config, degrees: Degrees) -> Cost:
    """Of one block and micro-batch, on one rank."""
    model, tp = config.model, degrees.tp
    head = model.d_model // model.n_heads
    shape = Shape(
        rows=fit.check_batch(config.batch, degrees.dp),
        tokens=config.data.seq_len,
        heads=model.n_heads // tp,
        kv_heads=model.n_kv_heads // tp,
        head_size=head,
        element_bytes=size_of(config),
    )
    return attention(cast("Mode", config.parallel.cp_mode), shape, degrees.cp)


def size_of(config: Config) -> int:
    """Bytes of what is computed."""
    return 2 if config.precision.compute == "bfloat16" else FULL


@dataclass(frozen=True)
class Rank:
    """A rank of a stage. Activations are of one micro-batch and one of the rank's parts unless said otherwise."""

    config: Config
    degrees: Degrees
    stage: int
    on_gpu: bool = True

    def moments(self) -> Iterator[Needs]:
        """When most is there: as many passes under way as ever, and once more with whole gradients; and at the end."""
        flight = self.flight
        yield from self._in_backward(flight, begun=self.passes > flight)
        if self.passes == flight > 1:
            yield from self._in_backward(flight - 1, begun=True)
        yield self._at_end()

    def _in_backward(self, flight: int, *, begun: bool) -> Iterator[Needs]:
        """In the loss, in the last block and in the one before it; `begun` if there are gradients already."""
        gradients = self._gradients(begun)
        kept = flight * sum(map(self._part, self.parts)) // len(self.parts) + self._messages(flight)
        if self.has_head:
            losses = flight if self.config.parallel.pp_schedule == "afab" else 1
            yield self._needs(gradients, self._gathered(flight, 1, begun), kept + losses * self.softmax, self._loss)
            kept += (losses - 1) * self.softmax
        gathered = self._gathered(flight, 2, begun) + (0 if begun else self.head_gradient)
        working = self.again + 3 * self.tokens * self.config.model.d_ff * self.size // self.degrees.tp
        yield self._needs(gradients, gathered, kept, working)
        if self.is_sharded and self.layers > 1 and self.degrees.pp == 1:  # the last block's gradients are on their way
            yield self._needs(gradients, gathered + FULL * self.block_elements, kept - self.kept, working)

    def _at_end(self) -> Needs:
        """No activations. What lies outside blocks is scattered last, in a pipeline while those of blocks are whole.

        Gradients are put together for it in float32, on a CPU by way of a copy.
        """
        outer = self.whole - self.layers * self.block_elements
        waiting = FULL * self.whole if self.degrees.pp > 1 else self.size * outer
        gathered = waiting + FULL * outer * (1 if self.on_gpu else 2)
        return self._needs(1, gathered if self.is_sharded else 0, self._messages(0), 0)

    def _needs(self, gradients: int, gathered: int, activations: int, working: int) -> Needs:
        here, there = (0, self.own) if self.config.memory.cpu_offload and self.on_gpu else (self.own, 0)
        return Needs(
            parameters=FULL * here,
            gradients=FULL * here * gradients,
            moments=2 * FULL * here,
            host=4 * FULL * there,
            gathered=gathered,
            activations=activations,
            working=working,
        )

    def _gradients(self, begun: bool) -> int:
        """How many of each parameter's. DDP's buckets stay, and several micro-batches are summed beside them."""
        if self.is_sharded:
            return int(begun and self.degrees.pp == 1)
        if self.degrees.dp_cp == 1:
            return int(begun)
        return 1 + (begun and self.passes > len(self.parts))

    def _messages(self, flight: int) -> int:
        """Of a pipeline: buffers for all that is received in a step, and what was sent until its gradient has come.

        What passes under way took in is counted with their blocks.
        """
        takes = sum(not part.is_first for part in self.parts)
        gives = sum(not part.is_last for part in self.parts)
        return self.inputs * (self.passes * (takes + gives) + flight * (gives - takes)) // len(self.parts)

    def _gathered(self, flight: int, blocks: int, begun: bool) -> int:
        """Whole blocks (one is fetched while one computes) and what lies outside blocks, which stays.

        In a pipeline every block stays, and so do whole gradients: torch's schedules scatter them when all are summed.
        Where nothing is sharded, autocast's copies of the parameters, which each pass makes for itself.
        """
        blocks = min(blocks, self.layers)
        if self.is_sharded and self.degrees.pp > 1:
            return (self.size + FULL * begun) * self.whole
        if self.is_sharded:
            return self.size * (self.whole - self.block_elements * (self.layers - blocks))
        if self.size == FULL:
            return 0
        if self.config.memory.activation_checkpoint != "none":
            return self.size * blocks * self.block_elements
        return self.size * flight * self.whole // len(self.parts)

    @property
    def parts(self) -> list[Part]:
        """Of this rank."""
        stages = pp.count_stages(self.config.parallel) if self.degrees.pp > 1 else 1
        return pp.split_layers(self.config.model.n_layers, stages)[self.stage :: self.degrees.pp]

    @property
    def layers(self) -> int:
        """Blocks of all parts."""
        return sum(len(part.layers) for part in self.parts)

    @property
    def has_head(self) -> bool:
        """Whether the loss is computed here."""
        return any(part.is_last for part in self.parts)

    @property
    def is_sharded(self) -> bool:
        """Whether a rank holds pieces of the parameters."""
        return self.degrees.is_sharded(self.config.parallel.dp_mode)

    @property
    def own(self) -> int:
        """Elements that the rank keeps."""
        shard = self.degrees.shard * self.degrees.cp if self.is_sharded else 1
        return sum(count(shapes(self.config.model, part), self.degrees.tp, shard) for part in self.parts)

    @property
    def whole(self) -> int:
        """Elements before they are cut into pieces."""
        return sum(count(shapes(self.config.model, part), self.degrees.tp, 1) for part in self.parts)

    @property
    def block_elements(self) -> int:
        """Of one block, before it is cut into pieces."""
        return count(shapes(self.config.model, Part(range(1, 2), 3)), self.degrees.tp, 1)

    @property
    def head_gradient(self) -> int:
        """Bytes of the gradient of the head's weight; of FSDP's gathered one in its own type."""
        columns = self.config.model.vocab_size // self.degrees.tp
        return columns * self.config.model.d_model * (self.size if self.is_sharded else FULL) * self.has_head

    @property
    def size(self) -> int:
        """Bytes of what is computed."""
        return size_of(self.config)

    @property
    def stream(self) -> int:
        """Bytes of an element of the stream: under autocast it stays float32."""
        return self.size if self.is_sharded else FULL

    @property
    def tokens(self) -> int:
        """Tokens on this rank."""
        return self.rows * self.config.data.seq_len // self.degrees.cp

    @property
    def rows(self) -> int:
        """Rows of a micro-batch."""
        return fit.check_batch(self.config.batch, self.degrees.dp)

    @property
    def sp(self) -> int:
        """Ranks over which the tokens of the stream are split beside cp."""
        return self.degrees.tp if self.config.parallel.sp else 1

    @property
    def passes(self) -> int:
        """Micro-batches times stages of a rank."""
        return self.config.batch.global_sequences // self.degrees.dp // self.rows * len(self.parts)

    @property
    def flight(self) -> int:
        """Of these, those between their forward and backward passes at once, at most; torch's schedules say."""
        chunks, pipeline = len(self.parts), self.degrees.pp
        if pipeline == 1:
            return 1
        return {
            "afab": self.passes,
            "1f1b": min(self.passes, pipeline - self.stage),
            "interleaved": min(self.passes, pipeline * (chunks - 1) + 2 * (pipeline - 1 - self.stage) + 1),
        }[self.config.parallel.pp_schedule]

    def _part(self, part: Part) -> int:
        """Of the blocks of a part, and of the last norm."""
        norm = self.inputs + self.normalised + self.tokens * self.config.model.d_model * self.size // self.sp
        return len(part.layers) * self.kept + (norm if part.is_last else 0)

    @property
    def kept(self) -> int:
        """Of a block between its passes."""
        return {"none": self.block, "block": self.inputs, "selective": self.products}[
            self.config.memory.activation_checkpoint
        ]

    @property
    def again(self) -> int:
        """Of a block whose forward pass is made again: what was kept of it is there already."""
        model, width = self.config.model, self.config.model.d_model
        shared = (2 * width + 2 * _keys(model) + 2 * model.d_ff) * self.size * self.tokens // self.degrees.tp
        return {
            "none": 0,
            "block": self.block - self.inputs,
            "selective": self.block - self.inputs - shared,
        }[self.config.memory.activation_checkpoint]

    @property
    def block(self) -> int:
        """Everything of one block; see the module."""
        model, width = self.config.model, self.config.model.d_model
        gathers_again = self.config.parallel.async_tp and self.sp > 1  # DTensor keeps what it gathered
        normed = 2 * width * self.size // (self.sp if gathers_again else 1)
        feed = 4 * model.d_ff * self.size // self.degrees.tp
        statistics = 2 * FULL * self.tokens // self.sp
        outer = 2 * (self.inputs + self.normalised) + statistics
        return outer + self.tokens * (normed + feed) + attention_cost(self.config, self.degrees).kept_bytes

    @property
    def inputs(self) -> int:
        """The stream before a block."""
        return self.tokens * self.config.model.d_model * self.stream // self.sp

    @property
    def normalised(self) -> int:
        """What a norm saves beside its input."""
        return 0 if self.on_gpu else self.tokens * self.config.model.d_model * FULL // self.sp

    @property
    def products(self) -> int:
        """The stream before a block, and what its products of matrices and its attention gave."""
        model, width = self.config.model, self.config.model.d_model
        given = (4 * width + 2 * _keys(model) + 2 * model.d_ff) * self.size + FULL * model.n_heads
        return self.inputs + self.tokens * given // self.degrees.tp

    @property
    def softmax(self) -> int:
        """Of the logits of all tokens, float32; in pieces it is made again."""
        is_kept = self.config.memory.loss_chunks == 1
        return FULL * self.tokens * (self.config.model.vocab_size // self.degrees.tp) * is_kept

    @property
    def _loss(self) -> int:
        """Gradients of the softmax and of the logits, in pieces the softmax as well; those of the head's weight."""
        columns, chunks = self.config.model.vocab_size // self.degrees.tp, self.config.memory.loss_chunks
        logits = FULL * ceil(self.tokens / chunks) * columns
        if chunks == 1:
            return 2 * logits + self.head_gradient
        summed = columns * self.config.model.d_model * (FULL + self.size)  # the sum so far, and a piece's own
        return 3 * logits + summed
