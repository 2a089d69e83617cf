"""What is known of a run before its first step? What the table at the start and the journal's first line say."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from amdahl_trainer import device as devices
from amdahl_trainer import fit, flops, memory
from amdahl_trainer.config import Config
from amdahl_trainer.console import Facts
from amdahl_trainer.mesh import Degrees


def find(
    config: Config, degrees: Degrees, device: torch.device, model: nn.Module, mean_document: float, resumed_step: int
) -> Facts:
    """The facts, as the first rank sees them.

    Args:
        config: of the run.
        degrees: of its mesh.
        device: of this rank.
        model: this rank's part.
        mean_document: length of the document that the average token lies in.
        resumed_step: steps that are behind.
    """
    name, rows = devices.name(device), config.batch.global_sequences
    return Facts(
        device=name,
        degrees=degrees,
        parameters=memory.count_parameters(config.model),
        rank_parameters=sum(_local(weight).numel() for weight in model.parameters()),
        expected_bytes=memory.estimate(config, degrees, on_gpu=device.type == "cuda").total,
        step_rows=rows,
        step_slots=rows * config.data.seq_len,
        micro_batches=rows // degrees.dp // fit.check_batch(config.batch, degrees.dp),
        cost=flops.per_token(config.model, config.data.seq_len, mean_document),
        peak_flops=flops.peak_flops(name, config.precision.compute, config.metrics.peak_tflops),
        resumed_step=resumed_step,
        last_step=config.run.max_steps,
    )


def _local(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
