"""What is minimised? The sum of the tokens' cross entropy over the number of valid tokens of the *whole* step.

Never a mean of means: with ragged rows the mean over micro-batches, or over ranks, weights tokens unequally, and the
result then depends on how the work is split. A sum divided by one global count does not.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (the name every torch reader knows)
from torch import Tensor

#: Target of a slot that is padding.
IGNORED = -100


def loss_sum(logits_bsv: Tensor, targets_bs: Tensor) -> Tensor:
    """Cross entropy in nats, summed over valid slots, in float32.

    Args:
        logits_bsv: (batch, seq, vocabulary).
        targets_bs: (batch, seq) token ids; `IGNORED` marks padding.
    """
    return F.cross_entropy(
        logits_bsv.float().flatten(0, 1), targets_bs.flatten(), ignore_index=IGNORED, reduction="sum"
    )
