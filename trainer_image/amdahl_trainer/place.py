"""Where does a process stand among all, and where do they meet? From the environment that a launcher sets.

torchrun and our launcher set the same names. On Kubernetes our launcher derives them from what the pod of an Indexed
Job is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amdahl_trainer.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """Which rank a process is, of how many, on all machines and on its own."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Place:
        """Parse RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; absent ones say a single process.

        Raises:
            ConfigError: they are no numbers that fit, or a pod of several was started as if it were alone.
        """
        try:
            rank, world = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
            local = int(environ.get("LOCAL_RANK", str(rank)))
            local_world = int(environ.get("LOCAL_WORLD_SIZE", str(world)))
        except ValueError as error:
            raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}") from error
        if not 0 <= rank < world:
            raise ConfigError(f"RANK is {rank} of WORLD_SIZE {world}; it must be 0 to {world - 1}")
        pods = environ.get("AMDAHL_REPLICAS") or "1"
        if "WORLD_SIZE" not in environ and pods != "1":
            raise ConfigError(
                f"AMDAHL_REPLICAS is {pods} and WORLD_SIZE is not set: each pod would train by itself; start with "
                "amdahl_trainer.launch or torchrun"
            )
        return cls(rank, world, local, local_world)


@dataclass(frozen=True)
class Meeting:
    """Where the ranks find one another: the rendezvous store. torchrun holds it itself, else rank 0 does."""

    host: str
    port: int
    is_held_by_first: bool

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Meeting:
        """Parse MASTER_ADDR and MASTER_PORT. Raises ConfigError."""
        host, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
        if not host:
            raise ConfigError("WORLD_SIZE is set but MASTER_ADDR is not; start with amdahl_trainer.launch or torchrun")
        if not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise ConfigError(f"MASTER_PORT is {port!r}; it must be the same port on all ranks, 1 to 65535")
        return cls(host, int(port), environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"
