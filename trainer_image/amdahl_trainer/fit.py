"""Which settings fit one another, and what would be the nearest that do? Every refusal names both."""

from __future__ import annotations

from amdahl_trainer.data import mix, subset
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.sections import Batch, Data, Model


def check_model(model: Model) -> None:
    """Heads must split the width, and key heads the query heads. Raises ConfigError."""
    if model.d_model % (2 * model.n_heads):
        raise ConfigError(
            f"model.n_heads is {model.n_heads}, which does not split model.d_model {model.d_model} into even heads; "
            f"nearest legal: {nearest_divisors(model.n_heads, model.d_model // 2)}"
        )
    if model.n_heads % model.n_kv_heads:
        raise ConfigError(
            f"model.n_kv_heads is {model.n_kv_heads}, which does not divide model.n_heads {model.n_heads}; "
            f"nearest legal: {nearest_divisors(model.n_kv_heads, model.n_heads)}"
        )


def check_data(data: Data) -> None:
    """What is written as text must be legible, before anything is opened. Raises ConfigError."""
    subset.parse(data.subset, data.subset_seed)
    if data.mix:
        mix.parse(data.mix)


def check_batch(batch: Batch, shares: int) -> int:
    """Rows of a forward pass, given how many ranks take rows of their own. Raises ConfigError."""
    if batch.global_sequences % shares:
        raise ConfigError(
            f"batch.global_sequences is {batch.global_sequences}, which {shares} ranks cannot share evenly; "
            f"nearest legal: {nearest_multiples(batch.global_sequences, shares)}, "
            f"or {nearest_divisors(shares, batch.global_sequences)} ranks"
        )
    share = batch.global_sequences // shares
    micro = batch.micro_batch or share
    if share % micro:
        raise ConfigError(
            f"batch.micro_batch is {micro}, which does not divide a rank's share of {share} sequences "
            f"(batch.global_sequences {batch.global_sequences} over {shares} ranks); "
            f"nearest legal: {nearest_divisors(micro, share)}"
        )
    return micro


def nearest_divisors(wanted: int, whole: int) -> str:
    """The divisors of `whole` next to `wanted`, as text."""
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    below = [n for n in divisors if n <= wanted][-1:]
    above = [n for n in divisors if n > wanted][:1]
    return " or ".join(str(n) for n in below + above)


def nearest_multiples(wanted: int, unit: int) -> str:
    """The multiples of `unit` next to `wanted`, as text; never 0."""
    below = wanted // unit * unit
    return " or ".join(str(n) for n in (below, below + unit) if n)
