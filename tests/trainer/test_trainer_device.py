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

environ = json.loads(sys.argv[1])
device.set_arithmetic(environ, deterministic=json.loads(sys.argv[2]), tf32=json.loads(sys.argv[3]))
found = [torch.backends.cuda.matmul.fp32_precision, torch.are_deterministic_algorithms_enabled()]
print(json.dumps([*found, environ.get("CUBLAS_WORKSPACE_CONFIG")]))
"""


@pytest.mark.parametrize(
    ("environ", "deterministic", "tf32", "found"),
    [
        ({}, False, False, ["ieee", False, None]),
        ({}, False, True, ["tf32", False, None]),
        ({}, True, False, ["ieee", True, ":4096:8"]),
        ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, True, False, ["ieee", True, ":16:8"]),
    ],
)
def test_arithmetic_is_what_was_asked_for(environ, deterministic, tf32, found):
    """A workspace of cuBLAS's that repeats itself, unless somebody has chosen one."""
    asked = [json.dumps(value) for value in (environ, deterministic, tf32)]
    done = subprocess.run([sys.executable, "-c", ARITHMETIC, *asked], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == found
