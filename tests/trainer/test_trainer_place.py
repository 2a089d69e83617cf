"""Which rank a process is and where ranks meet, from its environment; and GPUs that are too few."""

from __future__ import annotations

import re

import pytest
import torch

from amdahl_trainer import device as devices
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.place import Meeting, Place

MET = {"MASTER_ADDR": "node-a", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Place()),
        ({"AMDAHL_REPLICAS": "1"}, Place()),
        ({"AMDAHL_REPLICAS": ""}, Place()),
        ({"WORLD_SIZE": "4", "RANK": "3"}, Place(3, 4, 3, 4)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Place(3, 4, 1, 2)),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "AMDAHL_REPLICAS": "2"}, Place(1, 2, 0, 2)),
    ],
)
def test_a_process_knows_its_place(environ, expected):
    """As torchrun and our launcher say it; without, it is alone."""
    assert Place.from_environ(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": "two"}, "RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2 of WORLD_SIZE 2; it must be 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is -1 of WORLD_SIZE 2; it must be 0 to 1"),
        ({"AMDAHL_REPLICAS": "2"}, "each pod would train by itself; start with amdahl_trainer.launch or torchrun"),
    ],
)
def test_a_place_that_cannot_be_is_refused(environ, message):
    """A pod of several that was started without a launcher too: it would train alone and overwrite the others."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        Place.from_environ(environ)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (MET, Meeting("node-a", 29500, is_held_by_first=True)),
        (MET | {"TORCHELASTIC_USE_AGENT_STORE": "True"}, Meeting("node-a", 29500, is_held_by_first=False)),
        (MET | {"TORCHELASTIC_USE_AGENT_STORE": "False"}, Meeting("node-a", 29500, is_held_by_first=True)),
    ],
)
def test_ranks_know_where_they_meet(environ, expected):
    """In rank 0's store, or torchrun's."""
    assert Meeting.from_environ(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "start with amdahl_trainer.launch or torchrun"),
        ({"MASTER_ADDR": "a"}, "MASTER_PORT is ''; it must be the same port on all ranks, 1 to 65535"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "0"}, "MASTER_PORT is '0'"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "65536"}, "MASTER_PORT is '65536'"),
    ],
)
def test_a_meeting_that_cannot_be_is_refused(environ, message):
    """With the variable and what it may be."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        Meeting.from_environ(environ)


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    """With the number that would do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="LOCAL_RANK is 2, but this machine has 2 GPUs; nearest legal: --nproc 2"):
        devices.choose(2)
