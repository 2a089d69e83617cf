"""How many floating point operations does a token cost, and what share of the device's peak is that?

Per token, forward and backward, for a dense decoder: six per matrix parameter, plus attention. Conventions differ by
what attention is taken to be: `palm` counts every pair of positions (arXiv 2204.02311, appendix B), `causal` half of
them, `packed` only pairs within a document. A utilisation is meaningless without its convention, so each is named.
Recomputation is not counted. Equal to torch's FlopCounterMode on the math attention backend (`palm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amdahl_trainer.config import Model

#: Dense bfloat16 peak, FLOP/s, by a part of the device's name: the vendor's data sheets, without sparsity.
PEAK_BF16: Mapping[str, float] = {
    "H200": 989.5e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.5e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


@dataclass(frozen=True)
class PerToken:
    """FLOPs of one token, forward and backward, by convention."""

    palm: float
    causal: float
    packed: float


def matmul_parameters(model: Model) -> int:
    """Parameters that multiply activations: all linear layers and the head, tied or not; no lookup, no norms."""
    head = model.d_model // model.n_heads
    attention = 2 * model.d_model * model.n_heads * head + 2 * model.d_model * model.n_kv_heads * head
    feed = 3 * model.d_model * model.d_ff
    return model.n_layers * (attention + feed) + model.d_model * model.vocab_size


def per_token(model: Model, seq_len: int, mean_document: float) -> PerToken:
    """FLOPs a token. `mean_document` is sum(len^2) / sum(len) over documents in rows: the length a token sees."""
    dense = 6 * matmul_parameters(model)
    pairwise = 6 * model.n_layers * model.d_model  # query heads times head size is the width
    return PerToken(
        palm=dense + 2 * pairwise * seq_len, causal=dense + pairwise * seq_len, packed=dense + pairwise * mean_document
    )


def peak_flops(device_name: str, compute: str) -> float | None:
    """Peak FLOP/s for matrix products in `compute`, or None where we do not know it (every CPU, unknown GPUs).

    float32 has no entry: with and without tensor cores it differs by an order of magnitude.
    """
    if compute != "bfloat16":
        return None
    return next((peak for part, peak in PEAK_BF16.items() if f" {part}" in f" {device_name}"), None)


def utilisation(cost: PerToken, tokens_per_s: float, peak: float | None) -> dict[str, float]:
    """Model FLOP utilisation of one device by convention; empty where the peak is unknown."""
    if peak is None:
        return {}
    return {name: flops * tokens_per_s / peak for name, flops in vars(cost).items()}
