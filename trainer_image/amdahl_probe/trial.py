"""What does a trial change in a script? Trackers off, generators seeded, data begun elsewhere: alike for both arms."""

from __future__ import annotations

import random
import sys
from collections import deque
from itertools import chain, islice
from typing import Any, Deque, Iterator, Optional

#: A trial must not write to the outside; set over the user's own values. TensorBoard has no such variable: it writes
#: files, which the trial's scratch storage catches.
TRACKERS_OFF = {
    "WANDB_MODE": "disabled",
    "WANDB_DISABLED": "true",
    "COMET_MODE": "disabled",
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "MLFLOW_TRACKING_URI": "file:///tmp/amdahl-trial-mlruns",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "NEPTUNE_MODE": "debug",
    "CLEARML_OFFLINE_MODE": "1",
    "TRACKIO_MODE": "disabled",
    "SWANLAB_MODE": "disabled",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

#: Batches that data without a length may have to throw away at most: more would cost the trial its time.
MAX_DISCARDED = 32


def seed_generators(torch: Any, seed: int) -> None:
    """Seed Python, torch and (where imported) NumPy. All ranks alike: shards are cut from one common order."""
    random.seed(seed)
    torch.manual_seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def rotate(batches: Iterator[Any], first: int, seen: Optional[Deque[Any]] = None) -> Iterator[Any]:
    """The same batches of indices, begun at number `first`, the skipped ones last; each is appended to `seen`.

    Lazy: nothing is drawn from the sampler before the first batch is wanted, as without the probe.
    """
    skipped = list(islice(batches, first))
    for batch in chain(batches, skipped):
        if seen is not None:
            seen.append(batch)
        yield batch


def first_batch(offset_samples: int, batch_samples: int, batches: int) -> int:
    """Where an epoch of `batches` batches begins for an offset in samples, modulo the epoch."""
    return offset_samples // max(1, batch_samples) % max(1, batches)


def new_seen() -> Deque[Any]:
    """Index batches on their way through the loader; a loader holds far fewer than 100,000 in flight."""
    return deque(maxlen=100_000)
