"""What is trained? A Llama-style decoder: RMSNorm, rotary positions, grouped queries, SwiGLU. Unaware of parallelism.

A model may be a part of the whole, for a stage of a pipeline: some of the blocks, with or without embedding and head.
Every parameter has the name it has in the whole, and the value: each draws from a generator of its own, seeded by the
run's seed and that name, so that the first weights do not depend on who holds what.

Shape letters: B rows, S tokens of a row, D width, H query heads, G key heads, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812 (the name every torch reader knows)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from amdahl_trainer.config import Model
from amdahl_trainer.documents import Documents
from amdahl_trainer.seams import Seams


@dataclass(frozen=True)
class Part:
    """Which blocks a model has. The first one's part has the embedding, the last one's the final norm and the head."""

    layers: range
    of: int

    @property
    def is_first(self) -> bool:
        """Whether it takes tokens."""
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        """Whether it gives logits, or the loss."""
        return self.layers.stop == self.of


@lru_cache(maxsize=8)  # a run's positions are one tensor; tensors are told apart by identity
def rope_tables(positions_s: Tensor, head: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding (arXiv 2104.09864), each (seq, 1, head / 2), float32.

    Constants, so not buffers of the module: DDP and checkpoints would carry them about.
    """
    frequencies = theta ** (-torch.arange(0, head, 2, dtype=torch.float64, device=positions_s.device) / head)
    angles = positions_s.double()[:, None, None] * frequencies
    return angles.cos().float(), angles.sin().float()


@lru_cache(maxsize=8)
def whole_positions(seq: int, device: torch.device) -> Tensor:
    """(seq,) the position of each token of a row that is all here."""
    return torch.arange(seq, device=device)


def rotate(x_bshd: Tensor, cos_s1d: Tensor, sin_s1d: Tensor) -> Tensor:
    """Turn each (first half, second half) pair of a head by its position's angle."""
    first, second = x_bshd.chunk(2, dim=-1)
    return torch.cat((first * cos_s1d - second * sin_s1d, second * cos_s1d + first * sin_s1d), dim=-1).type_as(x_bshd)


class Attention(nn.Module):
    """Self-attention with grouped key and value heads."""

    def __init__(self, config: Model, seams: Seams) -> None:
        super().__init__()
        self.head = config.d_model // config.n_heads
        self.q = nn.Linear(config.d_model, config.n_heads * self.head, bias=False)
        self.k = nn.Linear(config.d_model, config.n_kv_heads * self.head, bias=False)
        self.v = nn.Linear(config.d_model, config.n_kv_heads * self.head, bias=False)
        self.out = nn.Linear(config.n_heads * self.head, config.d_model, bias=False)
        self._seams = seams

    def forward(self, x_bsd: Tensor, cos_s1d: Tensor, sin_s1d: Tensor, documents: Documents | None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        projected = self._seams.project(x_bsd, (self.q, self.k, self.v))
        q, k, v = (part.view(*part.shape[:2], -1, self.head) for part in projected)
        mixed = self._seams.attend(rotate(q, cos_s1d, sin_s1d), rotate(k, cos_s1d, sin_s1d), v, documents)
        return self.out(mixed.flatten(2))  # type: ignore[no-any-return]  # Module.__call__ is untyped


class SwiGLU(nn.Module):
    """Gated feed-forward layer (arXiv 2002.05202)."""

    def __init__(self, config: Model, seams: Seams) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)
        self._seams = seams

    def forward(self, x_bsd: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        gate, up = self._seams.project(x_bsd, (self.gate, self.up))
        return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]  # as above


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and added to the stream."""

    def __init__(self, config: Model, seams: Seams) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config, seams)
        self.norm_feed = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.feed = SwiGLU(config, seams)
        self._seams = seams

    def forward(self, x_bsd: Tensor, cos_s1d: Tensor, sin_s1d: Tensor, documents: Documents | None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self._seams.run(self._add_both, x_bsd, cos_s1d, sin_s1d, documents)

    def _add_both(self, x_bsd: Tensor, cos_s1d: Tensor, sin_s1d: Tensor, documents: Documents | None) -> Tensor:
        x_bsd = x_bsd + self.attention(self.norm_attention(x_bsd), cos_s1d, sin_s1d, documents)
        return x_bsd + self.feed(self.norm_feed(x_bsd))  # type: ignore[no-any-return]  # as above


class Llama(nn.Module):
    """Tokens to logits, or to the loss; or a part of that way."""

    def __init__(self, config: Model, part: Part | None = None, seams: Seams | None = None) -> None:
        """Parameters are float32, drawn for torch's present seed; on the meta device they are left to `draw`."""
        super().__init__()
        self.part = part or Part(range(config.n_layers), config.n_layers)
        seams = seams or Seams()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model) if self.part.is_first else None
        # Named by their place in the whole, which a ModuleList would not do for a part.
        self.blocks = nn.ModuleDict({str(layer): Block(config, seams) for layer in self.part.layers})
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps) if self.part.is_last else None
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False) if self.part.is_last else None
        self._rope = (config.d_model // config.n_heads, config.rope_theta)
        self._criterion = seams.criterion
        self.is_tied = config.tie_embeddings and self.embedding is not None and self.head is not None
        self.tie()
        if not next(self.parameters()).is_meta:
            draw(self, "", torch.initial_seed(), config.n_layers)

    def forward(
        self,
        x: Tensor,
        documents: Documents | None = None,
        positions_s: Tensor | None = None,
        targets_bs: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, S, V) for the token after each position; with targets, the sum of cross entropies in nats.

        Args:
            x: (B, S) token ids; the stream (B, S, D) where the embedding is another part's.
            documents: of the whole rows; None is one document a row.
            positions_s: (S,) positions of these tokens in whole rows; None is all of them in order.
            targets_bs: (B, S) token ids, `loss.IGNORED` where padded.

        Returns:
            The stream (B, S, D) where the head is another part's.
        """
        positions = whole_positions(x.shape[1], x.device) if positions_s is None else positions_s
        cos, sin = rope_tables(positions, *self._rope)
        if self.embedding is not None:
            x = self.embedding(x)
        for block in self.blocks.values():
            x = block(x, cos, sin, documents)
        if self.norm is None or self.head is None:
            return x
        x = self.norm(x)
        return self.head(x) if targets_bs is None else self._criterion(self.head, x, targets_bs)

    def tie(self) -> None:
        """Make head and embedding one parameter, if the configuration says so. What replaces parameters unties them."""
        if self.is_tied and self.embedding is not None and self.head is not None:
            self.head.weight = self.embedding.weight


@torch.no_grad()
def draw(module: nn.Module, prefix: str, seed: int, n_layers: int) -> None:
    """First values: matrices by GPT-2's rule, norms 1.

    sd is 0.02, and less where a block adds to the stream, so that depth does not raise its variance.

    Args:
        module: a model or a module of it, its parameters in memory; DTensors get their part of the whole parameter.
        prefix: name of the module in the whole model, with a dot at the end unless it is the model.
        seed: of the run.
        n_layers: of the whole model.
    """
    for name, weight in module.named_parameters():
        if weight.dim() < 2:
            weight.fill_(1.0)
            continue
        into_stream = name.endswith(("out.weight", "down.weight"))
        generator = torch.Generator(weight.device).manual_seed(_seed_of(seed, prefix + name))
        values = torch.empty(weight.shape, device=weight.device)
        values.normal_(std=0.02 / math.sqrt(2 * n_layers) if into_stream else 0.02, generator=generator)
        if isinstance(weight, DTensor):
            weight.copy_(distribute_tensor(values, weight.device_mesh, weight.placements, src_data_rank=None))
        else:
            weight.copy_(values)


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"weights {seed} {name}".encode()).digest()[:7], "little")


def gather(parts: Sequence[Llama]) -> nn.Module:
    """One module with the parameters of a rank's parts, named as in the whole model: for optimizer and checkpoints."""
    if len(parts) == 1:
        return parts[0]
    whole = nn.Module()
    for part in parts:
        for name, child in part.named_children():
            if name != "blocks":
                whole.add_module(name, child)
    whole.add_module("blocks", nn.ModuleDict(_blocks(parts)))
    return whole


def _blocks(parts: Iterable[Llama]) -> dict[str, nn.Module]:
    return {layer: block for part in parts for layer, block in part.blocks.items()}
