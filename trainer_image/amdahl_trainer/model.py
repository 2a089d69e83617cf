"""What is trained? A Llama-style decoder: RMSNorm, rotary positions, grouped queries, SwiGLU. Unaware of parallelism.

Shape letters: B rows, S tokens of a row, D width, H query heads, G key heads, V vocabulary.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812 (the name every torch reader knows)
from torch import Tensor, nn

from amdahl_trainer.attention import attend
from amdahl_trainer.config import Model
from amdahl_trainer.documents import Documents


@lru_cache(maxsize=8)
def rope_tables(seq: int, head: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding (arXiv 2104.09864), each (seq, head / 2), float32.

    Constants, so not buffers of the module: DDP and checkpoints would carry them about.
    """
    frequencies = theta ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    angles = torch.arange(seq, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate(x_bshd: Tensor, cos_sd: Tensor, sin_sd: Tensor) -> Tensor:
    """Turn each (first half, second half) pair of a head by its position's angle."""
    first, second = x_bshd.chunk(2, dim=-1)
    cos, sin = cos_sd.unsqueeze(1), sin_sd.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x_bshd)


class Attention(nn.Module):
    """Self-attention with grouped key and value heads."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.head = config.d_model // config.n_heads
        self.q = nn.Linear(config.d_model, config.n_heads * self.head, bias=False)
        self.k = nn.Linear(config.d_model, config.n_kv_heads * self.head, bias=False)
        self.v = nn.Linear(config.d_model, config.n_kv_heads * self.head, bias=False)
        self.out = nn.Linear(config.n_heads * self.head, config.d_model, bias=False)

    def forward(self, x_bsd: Tensor, cos_sd: Tensor, sin_sd: Tensor, documents: Documents | None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        split = (*x_bsd.shape[:2], -1, self.head)
        q, k, v = (part(x_bsd).view(split) for part in (self.q, self.k, self.v))
        mixed = attend(rotate(q, cos_sd, sin_sd), rotate(k, cos_sd, sin_sd), v, documents)
        return self.out(mixed.flatten(2))  # type: ignore[no-any-return]  # Module.__call__ is untyped


class SwiGLU(nn.Module):
    """Gated feed-forward layer (arXiv 2002.05202)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_bsd: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.down(F.silu(self.gate(x_bsd)) * self.up(x_bsd))  # type: ignore[no-any-return]  # as above


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and added to the stream."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm_feed = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.feed = SwiGLU(config)

    def forward(self, x_bsd: Tensor, cos_sd: Tensor, sin_sd: Tensor, documents: Documents | None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        x_bsd = x_bsd + self.attention(self.norm_attention(x_bsd), cos_sd, sin_sd, documents)
        return x_bsd + self.feed(self.norm_feed(x_bsd))  # type: ignore[no-any-return]  # as above


class Llama(nn.Module):
    """Tokens and their documents to logits."""

    def __init__(self, config: Model) -> None:
        """Parameters are float32 and drawn from torch's default generator."""
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self._rope = (config.d_model // config.n_heads, config.rope_theta)
        self._initialise(config.n_layers)

    def forward(self, tokens_bs: Tensor, documents: Documents | None = None) -> Tensor:
        """Logits (B, S, V) for the token after each position.

        Args:
            tokens_bs: (B, S) token ids.
            documents: from `documents.find_documents`; None is plain causal.
        """
        cos, sin = rope_tables(tokens_bs.shape[1], *self._rope, tokens_bs.device)
        x = self.embedding(tokens_bs)
        for block in self.blocks:
            x = block(x, cos, sin, documents)
        return self.head(self.norm(x))  # type: ignore[no-any-return]  # as above

    def _initialise(self, n_layers: int) -> None:
        """GPT-2's rule: sd 0.02, and less where a block adds to the stream, so depth does not raise its variance."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                into_stream = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * n_layers) if into_stream else 0.02)
