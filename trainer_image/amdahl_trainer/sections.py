"""Which settings are there? Each key with its default, its text, its bounds and whether it changes the mathematics.

Where values come from is `config.py`'s matter, which of them fit one another `fit.py`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

#: A value as YAML, an environment variable or the command line may give it.
Scalar = bool | int | float | str


def key(
    default: Scalar, text: str, *, maths: bool = False, low: float = -math.inf, choices: tuple[str, ...] = ()
) -> Any:
    """Declare a configuration key: default, one-line text, whether it changes the mathematics, and its bounds."""
    return field(default=default, metadata={"text": text, "maths": maths, "low": low, "choices": choices})


@dataclass(frozen=True)
class Run:
    """The run as a whole."""

    seed: int = key(1, "initial weights and order of samples", maths=True, low=0)
    max_steps: int = key(
        100,
        "optimizer steps in all, over every restart; the schedule ends with them, unless optim.decay_steps is set",
        low=1,
    )
    out_dir: str = key("runs/trainer", "checkpoints and the resolved configuration go here")
    torch_threads: int = key(0, "threads of one torch operator on the CPU; 0 leaves torch's choice", low=0)
    gc_every: int = key(50, "steps between collections of Python's garbage, on all ranks at once", low=1)
    deterministic: bool = key(False, "the same bits in every run: of two ways the repeatable one, or an error")
    compile: str = key(
        "none", "fuse the operations of each block and of the loss, by torch.compile", choices=("none", "blocks")
    )


@dataclass(frozen=True)
class Model:
    """The decoder."""

    n_layers: int = key(4, "blocks", maths=True, low=1)
    d_model: int = key(128, "width of the residual stream", maths=True, low=2)
    n_heads: int = key(4, "query heads; must divide d_model into an even head size", maths=True, low=1)
    n_kv_heads: int = key(2, "key and value heads; must divide n_heads", maths=True, low=1)
    d_ff: int = key(352, "hidden width of the SwiGLU", maths=True, low=1)
    vocab_size: int = key(320, "rows of the embedding; at least the tokenizer's 257", maths=True, low=257)
    rope_theta: float = key(10_000.0, "base of the rotary frequencies", maths=True, low=1.0)
    norm_eps: float = key(1e-5, "epsilon of RMSNorm", maths=True, low=0.0)
    tie_embeddings: bool = key(True, "the output head is the embedding matrix", maths=True)


@dataclass(frozen=True)
class Data:
    """Corpus, tokens and the loader."""

    corpus: str = key(
        "pydocs",
        "Python's own documentation, or folders of token shards",
        maths=True,
        choices=("pydocs", "tokens"),
    )
    path: str = key("", "of corpus tokens: the folders, separated by commas; a folder's name names the source")
    mix: str = key("", "share of rows from each source, as in books=0.7, code=0.3; empty reads all alike", maths=True)
    subset: str = key("all", "training documents of each source: all, a share such as 10%, or a number", maths=True)
    subset_seed: int = key(0, "which documents the subset takes", maths=True, low=0)
    digest: str = key("", "of what the sources hold, filled in at the start; another one is refused", maths=True)
    cache_dir: str = key("~/.cache/amdahl", "where corpus, merges and packed rows are built once")
    max_documents: int = key(0, "use only the first n documents of each source; 0 uses all", maths=True, low=0)
    tokenizer: str = key(
        "bytes", "of pydocs: bytes, or byte pairs learnt on the corpus", maths=True, choices=("bytes", "bpe")
    )
    tokenize: str = key("cached", "tokens from a file, or made again for each batch", choices=("cached", "on_the_fly"))
    bad_samples: str = key(
        "fail", "a sample that cannot be trained on ends the run, or is left out", choices=("fail", "skip")
    )
    max_bad_samples: int = key(100, "different samples that all ranks together leave out before the run fails", low=0)
    max_restarts: int = key(3, "times that each rank's loader is started again after a failure", low=0)
    seq_len: int = key(256, "tokens in a row", maths=True, low=64)
    packing: str = key(
        "best_fit",
        "no document that fits a row is cut, or documents lie end to end and are cut where rows end",
        maths=True,
        choices=("best_fit", "concat"),
    )
    doc_mask: bool = key(True, "tokens see only their own document", maths=True)
    num_workers: int = key(0, "loader processes a rank; 0 loads in the training process", low=0)
    prefetch_factor: int = key(2, "batches each loader process keeps ready", low=1)
    pin_memory: bool = key(True, "page-locked batches, for copies to a GPU; nothing where there is none")


@dataclass(frozen=True)
class Batch:
    """How many samples a step takes. Accumulation is derived."""

    global_sequences: int = key(16, "rows of an optimizer step over all ranks", maths=True, low=1)
    micro_batch: int = key(0, "rows of one forward pass; 0 takes a rank's whole share", low=0)


@dataclass(frozen=True)
class Optim:
    """AdamW and its schedule."""

    lr: float = key(3e-3, "peak learning rate", maths=True, low=0.0)
    beta1: float = key(0.9, "decay of the first moment", maths=True, low=0.0)
    beta2: float = key(0.95, "decay of the second moment", maths=True, low=0.0)
    eps: float = key(1e-8, "Adam's epsilon", maths=True, low=0.0)
    weight_decay: float = key(0.1, "decay of matrices; norms never decay", maths=True, low=0.0)
    warmup_steps: int = key(10, "steps of linear warm-up", maths=True, low=0)
    decay_steps: int = key(
        0, "step at which the schedule ends, unless it is constant; 0 takes run.max_steps", maths=True, low=0
    )
    schedule: str = key("cosine", "shape after the warm-up", maths=True, choices=("cosine", "linear", "constant"))
    min_lr_ratio: float = key(0.1, "last learning rate over the peak", maths=True, low=0.0)
    grad_clip: float = key(1.0, "largest gradient norm; 0 does not clip", maths=True, low=0.0)


@dataclass(frozen=True)
class Precision:
    """Number formats."""

    compute: str = key(
        "float32", "matrix products; parameters stay float32", maths=True, choices=("float32", "bfloat16")
    )
    matmul_tf32: bool = key(False, "on a GPU, products in float32 take factors of 10 bits", maths=True)


@dataclass(frozen=True)
class Parallel:
    """How the ranks share the work. Nothing here changes what is trained."""

    dp: str = key("auto", "data-parallel ranks; auto takes what pp, cp and tp leave")
    dp_mode: str = key(
        "ddp",
        "whole parameters a rank, in pieces over all ranks, or in pieces over some",
        choices=("ddp", "fsdp2", "hsdp"),
    )
    shard: int = key(0, "ranks that hold one copy of the parameters in hsdp; 0 takes those of a machine", low=0)
    bucket_mb: float = key(25.0, "gradients that ddp reduces in one message, MiB", low=0.01)
    tp: int = key(1, "ranks that split each matrix; must divide heads and widths", low=1)
    sp: bool = key(True, "with tp, norms and the residual stream are split by tokens")
    async_tp: bool = key(False, "with tp, gradients of inputs are reduced while those of weights are computed")
    pp: int = key(1, "ranks that split the blocks into stages", low=1)
    pp_schedule: str = key(
        "1f1b",
        "all forwards first, one forward one backward, or that with several stages a rank",
        choices=("afab", "1f1b", "interleaved"),
    )
    pp_stages: int = key(2, "stages of a rank in the interleaved schedule", low=2)
    cp: int = key(1, "ranks that split each row by tokens", low=1)
    cp_mode: str = key(
        "allgather",
        "how attention sees other ranks' tokens",
        choices=("allgather", "ulysses", "ring"),
    )
    cp_balance: str = key(
        "zigzag",
        "tokens a rank of cp takes: chunks from both ends, or one",
        choices=("zigzag", "contiguous"),
    )


@dataclass(frozen=True)
class Memory:
    """What is kept, and what is computed again."""

    activation_checkpoint: str = key(
        "none",
        "activations computed again in the backward pass: none, whole blocks, or all but products of matrices",
        choices=("none", "block", "selective"),
    )
    loss_chunks: int = key(1, "pieces of a row whose logits exist one at a time", low=1)
    cpu_offload: bool = key(False, "with fsdp2 or hsdp, parameters, gradients and moments lie in host memory")


@dataclass(frozen=True)
class Checkpoint:
    """When and how state is saved."""

    every_steps: int = key(0, "steps between checkpoints; 0 saves only at the end and on SIGTERM", low=0)
    every_seconds: float = key(0.0, "seconds between checkpoints, by rank 0's clock; 0 asks no clock", low=0.0)
    async_save: bool = key(False, "write behind the training, which goes on once the state is copied")
    async_mode: str = key(
        "thread",
        "what writes an asynchronous save: a thread, or a process (first save about 9 s late)",
        choices=("thread", "process"),
    )
    keep: int = key(3, "newest checkpoints kept", low=1)
    resume: str = key("auto", "auto (newest in out_dir), none, or the directory of one checkpoint")
    allow_semantics_change: bool = key(False, "continue a checkpoint although what is trained has changed")


@dataclass(frozen=True)
class Eval:
    """Bits per byte on held-out documents."""

    every_steps: int = key(0, "steps between evaluations; 0 evaluates never", low=0)
    sequences: int = key(64, "held-out rows of one evaluation, over all ranks", low=1)


@dataclass(frozen=True)
class Metrics:
    """What is said on the console and in the run's folder. Records and /metrics follow the AMDAHL_* environment."""

    log_every: int = key(10, "steps between console lines", low=1)
    jsonl: bool = key(True, "a line for each step in out_dir/metrics.jsonl; never in a trial")
    profile_every_steps: int = key(0, "steps between those that torch's profiler records; 0 records none", low=0)
    peak_tflops: float = key(
        0.0, "dense peak of a device, TFLOP/s, for MFU; 0 takes the data sheet's if known", low=0.0
    )
    kubeflow_status: bool = key(False, "post progress to Kubeflow Trainer, which tells pods where; never in a trial")


@dataclass(frozen=True)
class Limits:
    """What ends a run that hangs."""

    comm_timeout_s: int = key(600, "seconds a collective may take", low=1)
