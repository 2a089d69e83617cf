"""How long does a step take on machines that are not here? At least, and as expected, from the configuration alone.

*At least* counts what kernels must compute: products of matrices and pairs of a token with those before it in its
document, twice where activations are computed again, at the share of the peak that large products reach, and a
pipeline's idle ends. Rows hold documents of a length that only the data know: until it is told, a document is taken to
be as long as its row, and shorter ones take less.

*Expected* is the same work at the share that whole layers are assumed to reach, and what is exposed of the messages.
Those of gradients, pieces of parameters and the ring travel beside arithmetic, and are exposed as far as they take
longer than it; all others are exposed. Not counted are input, waits for slower ranks, the optimizer and saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from amdahl_trainer import fit, flops, memory, pp
from amdahl_trainer.config import Config
from amdahl_trainer.mesh import Degrees

#: Share of the data sheet's peak that an 8192-cubed bfloat16 product of random numbers reached on one H200.
REACHABLE = 0.78

#: Of a block and micro-batch under tp: two gathers and two scatters forward, as many backward, and none but the last
#: scatter left out where the forward pass is made again.
TP_FORWARD, TP_BACKWARD, TP_AGAIN = 4, 4, 3


@dataclass(frozen=True)
class Assumed:
    """What cannot be known without devices and data.

    Attributes:
        reached: share of the peak that whole layers reach, all but messages included.
        within: bytes a second that a device sends to others on its machine: NVLink of an H100, by its data sheet.
        between: the same between machines: a port of 400 Gbit/s for each device.
        document: tokens of the document that the average token lies in; 0 is unknown, and taken to be the row's.
    """

    reached: float = 0.5
    within: float = 450e9
    between: float = 50e9
    document: float = 0.0


@dataclass(frozen=True)
class Message:
    """What one technique sends in a step, of the rank that sends the most."""

    name: str
    sent_bytes: float
    seconds: float
    exposed_s: float


@dataclass(frozen=True)
class Speed:
    """Of a step."""

    least_s: float
    expected_s: float
    idle: float  # share of time that a pipeline's ends leave a stage without work
    again: float  # arithmetic done a second time, over that which counts
    messages: tuple[Message, ...]


def find(config: Config, degrees: Degrees, local_world: int, peak: float, assumed: Assumed) -> Speed:
    """The speed of a step on devices of this peak, FLOP/s, `local_world` of them on each machine."""
    seq, micro_batches = config.data.seq_len, _micro_batches(config, degrees)
    device_tokens = config.batch.global_sequences * seq / degrees.world
    useful, again = work(config, (config.data.doc_mask and assumed.document) or seq)
    least_s = device_tokens * (useful + again) / (peak * REACHABLE)
    compute_s = device_tokens * (useful + again) / (peak * assumed.reached)
    rank = memory.Rank(config, degrees, stage=0)  # its stage has the most blocks
    messages = tuple(_Sender(rank, local_world, assumed, compute_s, micro_batches).messages())
    at_end = sum(message.exposed_s for message in messages if message.name == "gradients")
    beside = sum(message.exposed_s for message in messages) - at_end
    idle = _idle(config, degrees, micro_batches)
    return Speed(least_s / (1 - idle), (compute_s + beside) / (1 - idle) + at_end, idle, again / useful, messages)


def work(config: Config, document: float) -> tuple[float, float]:
    """FLOPs a token that count, and those that are done a second time: forward passes of blocks, and of the head."""
    useful = flops.per_token(config.model, config.data.seq_len, document).packed
    head = 2 * config.model.d_model * config.model.vocab_size
    blocks = useful / 3 - head if config.memory.activation_checkpoint == "block" else 0.0
    return useful, blocks + (head if config.memory.loss_chunks > 1 else 0.0)


def _micro_batches(config: Config, degrees: Degrees) -> int:
    return config.batch.global_sequences // degrees.dp // fit.check_batch(config.batch, degrees.dp)


def _idle(config: Config, degrees: Degrees, micro_batches: int) -> float:
    """The ramps at either end of a pipeline: pp - 1 turns of a stage among all (arXiv 2104.04473)."""
    turns = micro_batches * pp.count_stages(config.parallel) // degrees.pp
    return (degrees.pp - 1) / (turns + degrees.pp - 1)


@dataclass(frozen=True)
class _Sender:
    """A rank that sends. Collectives go round a ring of n, in which each sends (n - 1) / n of the whole."""

    rank: memory.Rank
    local_world: int
    assumed: Assumed
    compute_s: float
    micro_batches: int

    def messages(self) -> list[Message]:
        """Those that there are."""
        degrees, repeats, compute_s = self.rank.degrees, self.micro_batches, self.compute_s
        shard, copies = self._shard, degrees.dp_cp // self._shard
        ring_s = compute_s if self.rank.config.parallel.cp_mode == "ring" else 0.0
        pieces_s = compute_s / (repeats if degrees.pp > 1 else 1)
        backward_s = compute_s / repeats * 2 / 3  # of the last micro-batch
        found = (
            self._message("tp", self.tp_bytes * repeats, 1, degrees.tp),
            self._message("cp", self.cp_bytes * repeats, degrees.tp, degrees.cp, ring_s),
            self._message("pp", self.pp_bytes * repeats, degrees.world // degrees.pp, degrees.pp),
            self._message("pieces", self.piece_bytes, degrees.tp, shard, pieces_s),
            self._message("gradients", self.gradient_bytes, degrees.tp * shard, copies, backward_s),
        )
        return [message for message in found if message.sent_bytes]

    def _message(self, name: str, sent_bytes: float, stride: int, ranks: int, beside_s: float = 0.0) -> Message:
        """Over ranks that are `stride` apart. Between machines a ring uses the ports of all its ranks on a machine."""
        near = max(1, min(ranks, self.local_world // stride))
        within, between = self.assumed.within, self.assumed.between * near
        seconds = sent_bytes / (within if near >= ranks else min(within, between))
        return Message(name, sent_bytes, seconds, max(0.0, seconds - beside_s))

    @property
    def _shard(self) -> int:
        """Ranks that hold one copy of the parameters."""
        return self.rank.degrees.shard * self.rank.degrees.cp if self.rank.is_sharded else 1

    @property
    def _is_again(self) -> bool:
        """Whether forward passes of blocks are made again, messages included."""
        return self.rank.config.memory.activation_checkpoint != "none"

    @property
    def tp_bytes(self) -> float:
        """Of a micro-batch. Without sp a gather and a scatter are one all-reduce, which sends as much."""
        parallel, tp = self.rank.config.parallel, self.rank.degrees.tp
        gathers_again = 2 if parallel.async_tp and parallel.sp else 0
        each = TP_FORWARD + TP_BACKWARD + TP_AGAIN * self._is_again + gathers_again
        whole = self.rank.tokens * self.rank.config.model.d_model * self.rank.size
        return (each * self.rank.layers + 4) * whole * (tp - 1) / tp  # 4: embedding and head

    @property
    def cp_bytes(self) -> float:
        """Of a micro-batch."""
        cost = memory.attention_cost(self.rank.config, self.rank.degrees)
        return self.rank.layers * ((1 + self._is_again) * cost.sent_forward_bytes + cost.sent_backward_bytes)

    @property
    def pp_bytes(self) -> float:
        """Of a micro-batch: the stream that each of the rank's stages gives, and the gradient of what it takes.

        Of two ranks each has an end of the pipeline, where there is nobody to send to.
        """
        pipeline = self.rank.degrees.pp
        return (2 * len(self.rank.parts) - (pipeline == 2)) * self.rank.inputs if pipeline > 1 else 0.0

    @property
    def piece_bytes(self) -> float:
        """Of a step: blocks are gathered forward and backward, the rest once; gradients are scattered in float32."""
        rank, share = self.rank, (self._shard - 1) / self._shard
        if rank.degrees.pp > 1:  # a stage's blocks stay until the last micro-batch
            return share * (rank.size + memory.FULL) * rank.whole
        gathered = rank.size * (rank.whole + rank.layers * rank.block_elements)
        return share * (gathered + memory.FULL * rank.whole) * self.micro_batches

    @property
    def gradient_bytes(self) -> float:
        """Of a step, between copies: an all-reduce, which is a scatter and a gather."""
        copies = self.rank.degrees.dp_cp // self._shard
        return 2 * (copies - 1) / copies * memory.FULL * self.rank.whole / self._shard
