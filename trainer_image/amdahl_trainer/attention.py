"""Which tokens may see which, and who computes it?

On every device attention is torch's scaled dot product. Rows that hold one document use its causal flag; packed rows
use a boolean mask, the one form of document mask whose backward pass works on CPU as well as on GPU.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (the name every torch reader knows)
from torch import Tensor


def needs_mask(segments_bs: Tensor) -> bool:
    """Whether any row holds more than one document; else the causal flag says it all, padding being last.

    Reads the tensor, so it belongs before the copy to a GPU.
    """
    return int(segments_bs.max()) > 1


def document_mask(segments_bs: Tensor) -> Tensor:
    """What each token may see, from the segment number of each slot of a row.

    Args:
        segments_bs: (batch, seq) integers; equal numbers in a row are one document, 0 is padding.

    Returns:
        (batch, 1, seq, seq) bool, true where a query (third axis) sees a key (fourth).
    """
    same = segments_bs[:, :, None] == segments_bs[:, None, :]
    return same.tril()[:, None]


def attend(q_bhsd: Tensor, k_bgsd: Tensor, v_bgsd: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention of H query heads over G shared key and value heads.

    Args:
        q_bhsd: (batch, H, seq, head) queries.
        k_bgsd: (batch, G, seq, head) keys; G divides H.
        v_bgsd: like the keys.
        mask: from `document_mask`; None is plain causal.

    Returns:
        (batch, H, seq, head).
    """
    shared = q_bhsd.shape[1] // k_bgsd.shape[1]
    if shared > 1:  # not enable_gqa: only some of torch's kernels have it
        k_bgsd = k_bgsd.repeat_interleave(shared, dim=1)
        v_bgsd = v_bgsd.repeat_interleave(shared, dim=1)
    return F.scaled_dot_product_attention(q_bhsd, k_bgsd, v_bgsd, attn_mask=mask, is_causal=mask is None)
