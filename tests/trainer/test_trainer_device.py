"""What computes, and how: the memory of a CPU's steps is kept, and arithmetic is what was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

#: Page faults of ten steps that each make and drop 32 MiB of tensors, after two that did.
STEPS = """
import json, os, resource, torch
from amdahl_trainer import device

told = device.keep_memory(os.environ)
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(1 << 20) for _ in range(8)]
    del made
print(json.dumps([told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


@pytest.mark.parametrize(
    ("environ", "is_kept"),
    [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False), ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}, False)],
)
def test_memory_is_kept_unless_somebody_else_has_seen_to_it(environ, is_kept):
    """Kept, a step finds its pages where the one before left them; else the kernel mostly gives each of them anew."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS], env={**plain, **environ}, capture_output=True, text=True, check=True
    )
    told, faults = json.loads(done.stdout)
    assert told == is_kept
    assert not is_kept or faults < 8000, faults  # of 80,000 pages; each thread of torch has some of its own


ARITHMETIC = """
import json, sys, torch
from amdahl_trainer import device

environ, deterministic, tf32, has_gpu = map(json.loads, sys.argv[1:])
torch.cuda.is_available = lambda: has_gpu
device.set_arithmetic(environ, deterministic=deterministic, tf32=tf32)
found = [torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision() != "highest"]
print(json.dumps([*found, torch.are_deterministic_algorithms_enabled(), environ.get("CUBLAS_WORKSPACE_CONFIG")]))
"""


@pytest.mark.parametrize(
    ("environ", "deterministic", "tf32", "has_gpu", "found"),
    [
        ({}, False, False, True, [False, False, False, None]),
        ({}, False, True, True, [True, True, False, None]),
        ({}, False, True, False, [False, False, False, None]),
        ({}, True, False, True, [False, False, True, ":4096:8"]),
        ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, True, False, True, [False, False, True, ":16:8"]),
    ],
)
def test_arithmetic_is_what_was_asked_for(environ, deterministic, tf32, has_gpu, found):
    """TF32 on GPUs alone, asked for as torch's compiler reads it; a workspace of cuBLAS's that repeats itself."""
    asked = [json.dumps(value) for value in (environ, deterministic, tf32, has_gpu)]
    done = subprocess.run([sys.executable, "-c", ARITHMETIC, *asked], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == found
