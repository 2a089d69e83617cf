"""Where do techniques enter the model? Four functions that it calls without looking into them.

The defaults are those of one process. `parallelize` puts others in their place; the model's code, its parameters and
their names stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from amdahl_trainer import attention, loss
from amdahl_trainer.documents import Documents

#: (q, k, v, documents) -> what each query saw; see `attention.attend` for shapes.
Attend = Callable[[Tensor, Tensor, Tensor, Documents | None], Tensor]

#: Several linear layers applied to one input.
Project = Callable[[Tensor, Sequence[nn.Module]], Sequence[Tensor]]


class Run(Protocol):
    """Calls a block's function, and decides what of it is kept for the backward pass."""

    def __call__(self, function: Callable[..., Tensor], /, *arguments: Any) -> Tensor:
        """What the function returns."""


#: (head, stream (B, S, D), targets (B, S)) -> sum of cross entropies, in nats.
Criterion = Callable[[nn.Module, Tensor, Tensor], Tensor]


def project_each(x: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """One layer after the other. Autocast would cast the input, and keep the copy, once for each."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return [layer(x) for layer in layers]


def run_plainly(function: Callable[..., Tensor], /, *arguments: Any) -> Tensor:
    """Autograd keeps what it needs."""
    return function(*arguments)


@dataclass(frozen=True)
class Seams:
    """The four places."""

    attend: Attend = attention.attend
    project: Project = project_each
    run: Run = run_plainly
    criterion: Criterion = loss.WHOLE
