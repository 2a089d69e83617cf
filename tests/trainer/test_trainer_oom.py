"""Is the memory at its end? By what each allocator and library says, and no other failure."""

from __future__ import annotations

import errno

import pytest
import torch
import torch.distributed as dist

from amdahl_trainer import device as devices
from amdahl_trainer import oom, train
from amdahl_trainer.errors import Exit, OutOfMemoryError
from amdahl_trainer.peers import Alone, Place

#: torch appends this to what a GPU's driver says.
ADVICE = "\nCUDA kernel errors might be asynchronously reported at some other API call"
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, unhandled cuda error, NCCL version 2.29.3\n"
)
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"

FULL = {
    "the GPU's allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB"),
    "Python": MemoryError(),
    "a fork": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "the CPU's allocator": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    "the driver": torch.AcceleratorError("CUDA error: out of memory" + ADVICE),
    "the driver, before torch 2.8": RuntimeError("CUDA error: out of memory" + ADVICE),
    "the driver's own interface": RuntimeError("CUDA driver error: out of memory"),
    "the driver of AMD": RuntimeError("HIP error: out of memory"),
    "products": RuntimeError(CUBLAS),
    "solvers": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    "convolutions": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "collectives": dist.DistBackendError(NCCL + "Last error:\nCuda failure 2 'out of memory'"),
    "collectives, of old": dist.DistBackendError(NCCL + "Last error:\nCuda failure 'out of memory'"),
    "buffers of collectives": dist.DistBackendError(NCCL + "Last error:\nFailed to CUDA calloc async 608 bytes"),
}

OTHER = {
    "a kernel": torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + ADVICE),
    "products": RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    "collectives": dist.DistBackendError(NCCL + "Last error:\nCuda failure 'peer access is not supported'"),
    "another rank": dist.DistBackendError("NCCL error: remote process exited or there was a network error"),
    "a disk": OSError(errno.ENOSPC, "No space left on device"),
    "a value": ValueError("CUDA error: out of memory"),
}


@pytest.mark.parametrize("name", FULL)
def test_whatever_has_no_memory_left_is_told_by_its_words(name, tiny):
    """Code 77, and what would help, whichever allocator or library was the first to be refused."""
    found = oom.explain(FULL[name], tiny(), Place(), torch.device("cpu"))
    assert isinstance(found, OutOfMemoryError)
    assert found.code == Exit.OUT_OF_MEMORY


@pytest.mark.parametrize("name", OTHER)
def test_other_failures_are_not_taken_for_it(name, tiny):
    """A failed kernel, disk or connection needs no smaller batch."""
    assert oom.explain(OTHER[name], tiny(), Place(), torch.device("cpu")) is None


class Blaming(Alone):
    """Peers that take whatever failed for another rank's fault."""

    def blame(self, error):
        raise AssertionError(f"must not be called: {error}")


def test_a_rank_whose_collectives_lack_memory_blames_no_other(tiny):
    """To the ranks it looks like a collective that failed."""
    found = train._explain(FULL["collectives"], Blaming(), tiny(), Place(), torch.device("cpu"))
    assert isinstance(found, OutOfMemoryError)


def test_a_gpu_that_another_process_has_filled_is_told_of(tiny, monkeypatch):
    """The first thing that is asked of it fails, and so does asking how much is free."""

    def refuse(*_):
        raise FULL["the driver"]

    monkeypatch.setattr(devices, "choose", refuse)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    with pytest.raises(OutOfMemoryError, match=r"out of memory on rank 0 \(cuda:0\): more was asked for, and the GPU"):
        train._choose(tiny(), Place())
