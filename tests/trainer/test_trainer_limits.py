"""How long ranks wait for one another: on GPUs the time limit asked for ends control messages before anything else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from amdahl_trainer import launch

#: A group of one rank, as on a device of its kind, with gloo in the place of NCCL. Prints the limits of each of its parts.
LIMITS = """
import json, os, sys
import torch, torch.distributed as dist
from amdahl_trainer import ckpt_dcp, peers

asked, port = sys.argv[1:]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
peers.BACKENDS["cuda"] = peers.BACKENDS["cuda"].replace("nccl", "gloo")
used = []
all_reduce = dist.all_reduce
dist.all_reduce = lambda tensor, group=None: used.append(group) or all_reduce(tensor, group=group)

def limit(group, device):
    return (group or dist.group.WORLD)._get_backend(torch.device(device)).options._timeout.total_seconds()

device = torch.device(asked)
ours = peers.Group(peers.Place(0, 1), device, 20)
ours.agree(1, False, False)
ours.barrier()
control, barrier = used
ours.total(torch.zeros(1))
found = {
    "agree": limit(control, "cpu"),
    "barrier": limit(barrier, "cpu"),
    "saves": limit(ckpt_dcp.open_group("process", 1, 20), "cpu"),
    "total": limit(used[-1], asked),
    "mesh": limit(dist.new_group(), asked),  # as a device mesh makes them
    "texts": [ours.broadcast("news"), ours.gather(["bad"])],
    "groups": len({group for group in used}),
}
print(json.dumps(found))
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize(("device", "ahead_s", "groups"), [("cpu", 0, 1), ("cuda", 73, 2)])
def test_what_a_gpu_runs_ahead_with_may_take_longer_than_what_ranks_tell_each_other(device, ahead_s, groups):
    """NCCL would end the process at its limit: by then the ranks have asked who was the cause. A CPU has one group."""
    told = [sys.executable, "-c", LIMITS, device, str(launch.free_port())]
    found = json.loads(subprocess.run(told, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert [found[name] for name in ("agree", "barrier", "saves")] == [20] * 3
    assert [found[name] for name in ("total", "mesh")] == [20 + ahead_s] * 2
    assert found["texts"] == ["news", ["bad"]]
    assert found["groups"] == groups
