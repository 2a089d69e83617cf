"""How many floating point operations does a token cost, and what share of the device's peak is that?

Per token, forward and backward, for a dense decoder: six per matrix parameter, plus attention. Conventions differ by
what attention is taken to be: `palm` counts every pair of positions (arXiv 2204.02311, appendix B), `causal` half of
them, `packed` only pairs within a document. A utilisation is meaningless without its convention, so each is named.
Recomputation is not counted. Equal to torch's FlopCounterMode on the math attention backend (`palm`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from amdahl_trainer.config import Model

#: Dense bfloat16 peak, TFLOP/s, by the words of a device's name that say which part it is: the vendors' data sheets,
#: without sparsity.
PEAK_BF16: Mapping[str, float] = {
    "A10": 125,
    "A30": 165,
    "A40": 149.7,
    "A100": 312,
    "A100 PCIe": 312,
    "A800": 312,
    "A800 PCIe": 312,
    "B200": 2250,
    "B300": 2250,
    "GB200": 2500,
    "GB300": 2500,
    "GH200": 989.5,
    "H20": 148,
    "H100": 989.5,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H200": 989.5,
    "H200 NVL": 836,
    "H800": 989.5,
    "H800 PCIe": 756,
    "L4": 121,
    "L40": 181,
    "L40S": 362,
    "MI250X": 191.5,  # of one of its two dies, each a device
    "MI300X": 1307.4,
    "MI325X": 1307.4,
    "MI355X": 2500,
    "RTX 3090": 71,
    "RTX 4090": 165.2,
    "RTX 5090": 209.5,
    "RTX A6000": 154.85,
}

#: Words of names that say nothing of the peak: makers and brands, sizes and kinds of memory, sockets. Any other word
#: makes another part, as in `RTX 4090 D` or `H100 80GB HBM3 MIG 1g.10gb`.
_PLAIN = re.compile(r"cuda|nvidia|amd|tesla|geforce|instinct|\d+gb?|hbm\d\w?|sxm\d?|oam|vf|ac")


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


def peak_flops(device_name: str, compute: str, stated_tflops: float = 0.0) -> float | None:
    """Peak FLOP/s for matrix products in `compute`, or None where we do not know it (every CPU, unknown GPUs).

    What the owner states goes before what we know. float32 has no entry: with and without tensor cores it differs by an
    order of magnitude.
    """
    known = _PEAKS.get(_part(device_name)) if compute == "bfloat16" else None
    tflops = stated_tflops or known
    return tflops * 1e12 if tflops else None


def _part(device_name: str) -> tuple[str, ...]:
    """The words of a name that tell one part from another."""
    words = re.findall(r"\w+", device_name.lower())
    return tuple(word for word in words if not _PLAIN.fullmatch(word))


_PEAKS = {_part(name): tflops for name, tflops in PEAK_BF16.items()}


def utilisation(cost: PerToken, tokens_per_s: float, peak: float | None) -> dict[str, float]:
    """Model FLOP utilisation of one device by convention; empty where the peak is unknown."""
    if peak is None:
        return {}
    return {name: flops * tokens_per_s / peak for name, flops in vars(cost).items()}
