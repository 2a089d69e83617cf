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
sent. Tests hold these counts to what torch allocates and what collectives are given.
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
    activations: int
    working: int  # logits and their gradients, or what else is the most at one moment
    host: int = 0  # in host memory: parameters, gradients and moments that are offloaded

    @property
    def total(self) -> int:
        """All that is on the device at once: the peak, in the backward pass of the last micro-batch in flight."""
        return sum(int(getattr(self, field.name)) for field in fields(self)) - self.host


def estimate(config: Config, degrees: Degrees, stage: int = 0, *, on_gpu: bool = True) -> Needs:
    """What a rank of a pipeline's stage needs, at most."""
    parts = pp.split_layers(config.model.n_layers, pp.count_stages(config.parallel) if degrees.pp > 1 else 1)
    parts = parts[stage :: degrees.pp]
    saved = _Saved(config, degrees, on_gpu)
    shard = degrees.shard * degrees.cp if saved.is_sharded else 1
    own = sum(_count(shapes(config.model, part), degrees.tp, shard) for part in parts)
    here, there = (0, own) if config.memory.cpu_offload and on_gpu else (own, 0)
    return Needs(
        parameters=FULL * here,
        gradients=FULL * here,
        moments=2 * FULL * here,
        host=4 * FULL * there,
        gathered=_gathered(config, degrees, parts, saved),
        activations=saved.in_flight(stage, parts),
        working=saved.working(any(part.is_last for part in parts)),
    )


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
    return _count(shapes(model, Part(range(model.n_layers), model.n_layers)), 1, 1)


def _keys(model: Model) -> int:
    """Width of all key heads."""
    return model.n_kv_heads * (model.d_model // model.n_heads)


def _count(parameters: Iterator[tuple[int, int]], tp: int, shard: int) -> int:
    """Elements that a rank holds: the first of `shard` ranks, which gets the longer pieces."""
    return sum(ceil(rows / shard) * columns // tp if columns else ceil(rows / shard) for rows, columns in parameters)


def _gathered(config: Config, degrees: Degrees, parts: list[Part], saved: _Saved) -> int:
    """Two whole blocks (one is fetched while one computes) and what lies outside blocks, which stays.

    In a pipeline every block stays, and so do whole gradients. Where nothing is sharded, autocast's copies of
    the parameters.
    """
    whole = sum(_count(shapes(config.model, part), degrees.tp, 1) for part in parts)
    if not saved.is_sharded:
        return saved.size * whole if saved.size < FULL else 0
    layers = sum(len(part.layers) for part in parts)
    block = _count(shapes(config.model, Part(range(1, 2), 3)), degrees.tp, 1)
    if degrees.pp > 1:  # torch's schedules gather all blocks of a stage, and scatter gradients when all are summed
        return (saved.size + FULL) * whole
    kept = whole - block * (layers - min(2, layers))
    return saved.size * kept + FULL * block  # and the gradients of one block on their way


@dataclass(frozen=True)
class _Saved:
    """Bytes that autograd saves on a rank, of one micro-batch unless said otherwise."""

    config: Config
    degrees: Degrees
    on_gpu: bool

    @property
    def is_sharded(self) -> bool:
        """Whether a rank holds pieces of the parameters."""
        return self.degrees.is_sharded(self.config.parallel.dp_mode)

    @property
    def size(self) -> int:
        """Bytes of what is computed."""
        return 2 if self.config.precision.compute == "bfloat16" else FULL

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

    def in_flight(self, stage: int, parts: list[Part]) -> int:
        """Of all micro-batches that are between their forward and backward passes at once, at most."""
        again = self.block if self.config.memory.activation_checkpoint != "none" else 0
        return self._passes(stage, len(parts)) * sum(map(self._part, parts)) // len(parts) + again

    def _passes(self, stage: int, chunks: int) -> int:
        """Micro-batches times stages of a rank; torch's schedules say."""
        count, pipeline = self.config.batch.global_sequences // self.degrees.dp // self.rows, self.degrees.pp
        if pipeline == 1:
            return 1
        return {
            "afab": count * chunks,
            "1f1b": min(count, pipeline - stage),
            "interleaved": min(count * chunks, pipeline * (chunks - 1) + 2 * (pipeline - 1 - stage) + 1),
        }[self.config.parallel.pp_schedule]

    def _part(self, part: Part) -> int:
        """Of the blocks of a part, and of the last norm."""
        mode = self.config.memory.activation_checkpoint
        kept = {"none": self.block, "block": self.inputs, "selective": self.products}[mode]
        norm = self.inputs + self.normalised + self.tokens * self.config.model.d_model * self.size // self.sp
        return len(part.layers) * kept + (norm if part.is_last else 0)

    @property
    def block(self) -> int:
        """Everything of one block; see the module."""
        model, width = self.config.model, self.config.model.d_model
        gathers_again = self.config.parallel.async_tp and self.sp > 1  # DTensor keeps what it gathered
        normed = 2 * width * self.size // (self.sp if gathers_again else 1)
        feed = 4 * model.d_ff * self.size // self.degrees.tp
        statistics = 2 * FULL * self.tokens // self.sp
        outer = 2 * (self.inputs + self.normalised) + statistics
        return outer + self.tokens * (normed + feed) + self.attention.kept_bytes

    @property
    def attention(self) -> Cost:
        """Of one block."""
        model, tp = self.config.model, self.degrees.tp
        head = model.d_model // model.n_heads
        heads, kv_heads = model.n_heads // tp, model.n_kv_heads // tp
        shape = Shape(self.rows, self.config.data.seq_len, heads, kv_heads, head, self.size)
        return attention(cast("Mode", self.config.parallel.cp_mode), shape, self.degrees.cp)

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

    def working(self, has_head: bool) -> int:
        """What the dearest moment of a backward pass needs for itself: in the loss, or in a feed-forward layer."""
        feed = 3 * self.tokens * self.config.model.d_ff * self.size // self.degrees.tp
        return max(feed, self._loss if has_head else 0)

    @property
    def _loss(self) -> int:
        """One piece: the softmax, its gradient and that of the logits; and the gradients of the head's weight."""
        model, chunks = self.config.model, self.config.memory.loss_chunks
        columns = model.vocab_size // self.degrees.tp
        each = FULL + self.size if chunks > 1 else FULL  # a sum of pieces, and the next one
        return FULL * 3 * ceil(self.tokens / chunks) * columns + each * columns * model.d_model
