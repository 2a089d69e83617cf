"""What does this torch have that the scripts use where they can? `python torch_has.py` prints it as JSON."""

import importlib.util
import json
import sys

import torch


def can_launch():
    """Whether torchrun works on this Python: before torch 2.0 it trips over how 3.11 lists a flag's members."""
    from torch.distributed.elastic.multiprocessing.api import Std

    return Std.from_str("0") is not None


def find():
    """By name: whether it is there."""
    checkpoint = None
    if importlib.util.find_spec("torch.distributed.checkpoint"):
        import torch.distributed.checkpoint as checkpoint
    return {
        "torch.distributed.run": can_launch(),
        "torch.compile": hasattr(torch, "compile"),
        "optimizer pre-hooks": hasattr(sys.modules["torch.optim.optimizer"], "register_optimizer_step_pre_hook"),
        "torch.amp.GradScaler": hasattr(torch.amp, "GradScaler"),
        "torch.distributed.checkpoint.save": hasattr(checkpoint, "save"),
        "torch.distributed.checkpoint.async_save": hasattr(checkpoint, "async_save"),
    }


if __name__ == "__main__":
    print(json.dumps({"version": torch.__version__, "has": find()}))
