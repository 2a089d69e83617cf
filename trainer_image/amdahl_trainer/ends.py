"""How did a process of ours end? Its exit code in the words of the system, with what such an end usually means."""

from __future__ import annotations

import signal

#: What ends processes in this way, where it is not the person at the keyboard.
_HINTS = {
    "SIGKILL": ", as the kernel does when memory runs out",
    "SIGBUS": ", as happens when shared memory (/dev/shm) is full",
}


def describe_end(code: int) -> str:
    """`exited with code 3`, or for -9 `was ended by SIGKILL, ...`."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}{_HINTS.get(name, '')}"
