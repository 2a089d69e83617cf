"""Who computes what each token sees? One call for the model, one kernel for each kind of device and row.

On a CPU attention is torch's scaled dot product: with its causal flag where a row is one document, else under a mask or
document by document, whichever costs less. On a GPU packed rows go to variable-length flash attention in the two half
precisions that it has. Where the tokens of a row are spread over ranks, the context computes.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (the name every torch reader knows)
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from amdahl_trainer.documents import Documents, Piece, flat, meet, take

#: torch 2.11 has no grouped heads here, 2.13 has.
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

#: Window (left, right) of a query: everything before it, nothing after. Where there are fewer queries than keys the
#: last query is beside the last key.
_CAUSAL = (-1, 0)

#: Where sequences laid end to end begin and the last ends (int32, one more than sequences), and the greatest length.
Ends = tuple[Tensor, int]


class Context(Protocol):
    """Ranks that hold the tokens of a row together, see `context.Context`."""

    def attend(self, q_bthd: Tensor, k_btgd: Tensor, v_btgd: Tensor, documents: Documents | None) -> Tensor:
        """This rank's part of `attend`."""


def attend(
    q_bshd: Tensor, k_bsgd: Tensor, v_bsgd: Tensor, documents: Documents | None = None, context: Context | None = None
) -> Tensor:
    """Causal attention of H query heads over G shared key and value heads, within documents.

    Args:
        q_bshd: (rows, tokens, H, head) queries.
        k_bsgd: (rows, tokens, G, head) keys; G divides H.
        v_bsgd: like the keys.
        documents: of the *whole* rows, also where tokens are spread over ranks; None is one document a row.
        context: ranks that the tokens of each row are spread over; None is none.

    Returns:
        (rows, tokens, H, head).
    """
    if context is not None:
        return context.attend(q_bshd, k_bsgd, v_bsgd, documents)
    if documents is None:
        return _scaled_dot_product(q_bshd, k_bsgd, v_bsgd, None, is_causal=True)
    if documents.mask is not None:
        return _scaled_dot_product(q_bshd, k_bsgd, v_bsgd, documents.mask, is_causal=False)
    if can_flash(q_bshd):
        q, k, v = (part.flatten(0, 1) for part in (q_bshd, k_bsgd, v_bsgd))
        ends = documents.offsets, documents.longest
        return _varlen(q, k, v, ends, ends).view_as(q_bshd)
    mixed: Tensor = _attend_apart(q_bshd, k_bsgd, v_bsgd, documents)
    return mixed


def can_flash(q: Tensor) -> bool:
    """Whether variable-length flash attention takes this tensor."""
    return q.is_cuda and q.dtype in {torch.float16, torch.bfloat16}


def attend_pieces(q_bthd: Tensor, k_bsgd: Tensor, v_bsgd: Tensor, pieces: tuple[Piece, ...]) -> Tensor:
    """Attention of pieces that hold each query once, in order: one call on a GPU, one for each piece elsewhere."""
    queries = take(q_bthd.flatten(0, 1), [flat(piece.row, piece.queries, q_bthd.shape[1]) for piece in pieces])
    seen = [flat(piece.row, piece.keys, k_bsgd.shape[1]) for piece in pieces]
    keys, values = (take(part.flatten(0, 1), seen) for part in (k_bsgd, v_bsgd))
    if can_flash(q_bthd):
        ends_q, ends_k = (lay_out(tuple(map(len, parts)), q_bthd.device) for parts in (queries, keys))
        q, k, v = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (queries, keys, values))
        return _varlen(q, k, v, ends_q, ends_k).view_as(q_bthd)
    return torch.cat(list(map(_attend_piece, queries, keys, values))).view_as(q_bthd)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's. A graph of this would be of these documents
def _attend_apart(q_bshd: Tensor, k_bsgd: Tensor, v_bsgd: Tensor, documents: Documents) -> Tensor:
    """Attention with a call for each document."""
    whole = 0, q_bshd.shape[1]
    return attend_pieces(q_bshd, k_bsgd, v_bsgd, meet(documents.bounds, whole, whole))


def _attend_piece(q_mhd: Tensor, k_ngd: Tensor, v_ngd: Tensor) -> Tensor:
    """Attention of the last m of n tokens: the last query sees every key, each one before it a key less."""
    m, n = len(q_mhd), len(k_ngd)
    mask = None if m == n else torch.ones(m, n, dtype=torch.bool, device=q_mhd.device).tril(n - m)
    q, k, v = (part.unsqueeze(0) for part in (q_mhd, k_ngd, v_ngd))
    return _scaled_dot_product(q, k, v, mask, is_causal=mask is None).squeeze(0)


def _scaled_dot_product(q_bshd: Tensor, k_bsgd: Tensor, v_bsgd: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    shared = q_bshd.shape[2] // k_bsgd.shape[2]
    if shared > 1 and q_bshd.is_cuda and not can_flash(q_bshd):  # torch's float32 kernel there has no grouped heads
        k_bsgd, v_bsgd = (part.repeat_interleave(shared, dim=2) for part in (k_bsgd, v_bsgd))
        shared = 1
    q, k, v = (part.transpose(1, 2) for part in (q_bshd, k_bsgd, v_bsgd))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=shared > 1)
    return mixed.transpose(1, 2)


def _varlen(q_thd: Tensor, k_tgd: Tensor, v_tgd: Tensor, of_q: Ends, of_k: Ends) -> Tensor:
    if not _GROUPED:
        shared = q_thd.shape[1] // k_tgd.shape[1]
        k_tgd, v_tgd = (part.repeat_interleave(shared, dim=1) for part in (k_tgd, v_tgd))
    (offsets_q, longest_q), (offsets_k, longest_k) = of_q, of_k
    mixed = varlen_attn(
        q_thd, k_tgd, v_tgd, offsets_q, offsets_k, longest_q, longest_k, window_size=_CAUSAL, **_GROUPED
    )
    assert isinstance(mixed, Tensor), "a tuple only where more is asked for"
    return mixed


@lru_cache(maxsize=64)  # the layers of a model ask the same, and each answer is a copy to the device
def lay_out(sizes: tuple[int, ...], device: torch.device) -> Ends:
    """Where sequences of these lengths end."""
    return torch.tensor([*accumulate(sizes, initial=0)], dtype=torch.int32, device=device), max(sizes)
