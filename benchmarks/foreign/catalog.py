"""Which public scripts are measured, and where in their own text a phase begins and ends?

Nothing here knows how the probe works. The profiler sees stacks of functions and lines; what they mean is read off the
script: the lines of its training loop from the batch in hand to the optimizer's step are `compute`, the functions that
evaluate are `eval`, a function that makes batches by hand is `input`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prepare import write_characters, write_images


@dataclass(frozen=True)
class Loop:
    """A training loop: the file and function that hold it, the line that gets a batch and the one that steps.

    Lines are given by their text. The computing lines lie after the last `gets` before `steps`, and end with `steps`.
    """

    file: str
    function: str
    gets: str
    steps: str


@dataclass(frozen=True)
class Script:
    """One script. Paths are relative to the clone, but `saves` to the folder that the script runs in."""

    name: str
    clone: str
    folder: str
    command: tuple[str, ...]
    loop: Loop
    saves: str
    evaluates: tuple[tuple[str, str], ...] = ()
    fetches: tuple[tuple[str, str], ...] = ()
    prepare: Callable[[Path], None] | None = None


SCRIPTS = (
    Script(  # batches made in the training process, evaluation and samples drawn from the model now and then
        name="makemore",
        clone="makemore",
        folder=".",
        command=(
            "makemore.py",
            *("--max-steps", "3001", "--num-workers", "0", "--batch-size", "64"),
            *("--n-layer", "2", "--n-embd", "32"),
        ),
        loop=Loop("makemore.py", "<module>", "batch = batch_loader.next()", "optimizer.step()"),
        saves="out/model.pt",
        evaluates=(("makemore.py", "evaluate"),),
    ),
    Script(  # a loader process, and long evaluations inside a callback
        name="minGPT",
        clone="minGPT",
        folder=".",
        command=("projects/adder/adder.py", "--trainer.max_iters=2401", "--trainer.num_workers=1"),
        loop=Loop("mingpt/trainer.py", "run", "batch = next(data_iter)", "self.optimizer.step()"),
        saves="out/adder/model.pt",
        evaluates=(("projects/adder/adder.py", "eval_split"),),
    ),
    Script(  # no DataLoader at all; its README's options for a CPU, with frequent checkpoints
        name="nanoGPT",
        clone="nanoGPT",
        folder=".",
        command=(
            *("train.py", "config/train_shakespeare_char.py", "--device=cpu", "--compile=False"),
            *("--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--dropout=0.0"),
            *("--max_iters=1000", "--lr_decay_iters=1000", "--log_interval=1"),
            *("--eval_interval=10", "--eval_iters=2", "--always_save_checkpoint=True"),
        ),
        loop=Loop(
            "train.py",
            "<module>",
            "for micro_step in range(gradient_accumulation_steps):",
            "scaler.step(optimizer)",
        ),
        saves="out-shakespeare-char/ckpt.pt",
        evaluates=(("train.py", "estimate_loss"),),
        fetches=(("train.py", "get_batch"),),
        prepare=write_characters,
    ),
    Script(  # loader processes that decode images, for training and evaluation, started anew every epoch
        name="super_resolution",
        clone="examples",
        folder="super_resolution",
        command=(
            *("main.py", "--upscale_factor", "8", "--threads", "1", "--batchSize", "8", "--testBatchSize", "10"),
            *("--nEpochs", "36"),
        ),
        loop=Loop(
            "main.py",
            "train",
            "for iteration, batch in enumerate(training_data_loader, 1):",
            "optimizer.step()",
        ),
        saves="model_epoch_36.pth",
        evaluates=(("main.py", "test"),),
        prepare=write_images,
    ),
)
