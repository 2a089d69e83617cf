"""How is a piece of a cluster kept apart from the machine? In namespaces of its own, held open by a process that does nothing.

A node has its own mounts, network, host name and process ids: whatever a kubelet, containerd or a pod does to them is gone when the holder is gone,
because the kernel kills every process of a process namespace with its first one.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Namespaces:
    """A set of namespaces, known by a process in them."""

    pid: int

    def command(self, *arguments: str | Path, network_only: bool = False) -> tuple[str | Path, ...]:
        """A command line that runs another one inside; `network_only` leaves it in the machine's file system and process ids."""
        which = ("--net",) if network_only else ("--mount", "--net", "--pid", "--uts")
        return ("nsenter", "--target", str(self.pid), *which, "--", *arguments)

    def run(self, *arguments: str | Path, network_only: bool = False) -> str:
        """Run a command inside and return its output.

        Raises:
            subprocess.CalledProcessError: it failed; the note on it holds what it said.
        """
        return run(self.command(*arguments, network_only=network_only))


def holder_command(pause: Path, *, is_node: bool) -> tuple[str | Path, ...]:
    """The command that makes new namespaces and holds them: for a node, or for a network only."""
    for_node = ("--mount", "--propagation=private", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL")
    return ("unshare", "--net", *(for_node if is_node else ()), pause)


def first_child(pid: int) -> int | None:
    """The process that `unshare --fork` or nsenter runs for us; None when there is none (yet)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


def run(command: Sequence[str | Path]) -> str:
    """Run a command and return its output.

    Raises:
        subprocess.CalledProcessError: it failed; the note on it holds what it said.
    """
    try:
        return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as problem:
        problem.add_note(f"{problem.stdout}{problem.stderr}".strip())
        raise
