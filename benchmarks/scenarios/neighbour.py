"""A neighbour who happens to be busy whenever discovery measures the baseline, and is gone when its wins are checked.

Run as a process of its own beside a loop. It finds the windows as anyone on the machine could: by the environment of
the running processes. `python neighbour.py VARIABLE VALUE` burns while a discovery window has VARIABLE=VALUE.
"""

import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import FrameType

BURNERS = 2
LOOK_EVERY_S = 0.2
DISCOVERY = re.compile(rb"^AMDAHL_RUN_ID=.*-d\d+(-t\d+)?$")


def burn() -> None:
    """Work for nothing."""
    while True:
        sum(range(100_000))


def is_measured(setting: bytes) -> bool:
    """Whether a process of a discovery window with this setting is running."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if setting in variables and any(DISCOVERY.match(variable) for variable in variables):
            return True
    return False


def end(_number: int, _frame: FrameType | None) -> None:
    """Told to leave."""
    sys.exit(0)


def main(setting: bytes) -> None:
    """Burn while the setting is measured, until told to leave or until whoever started this is gone."""
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(BURNERS)]
    host = os.getppid()
    for burner in burners:
        burner.start()
    signal.signal(signal.SIGTERM, end)
    try:
        while os.getppid() == host:
            order = signal.SIGCONT if is_measured(setting) else signal.SIGSTOP
            for burner in burners:
                assert burner.pid is not None
                os.kill(burner.pid, order)
            time.sleep(LOOK_EVERY_S)
    finally:
        for burner in burners:  # a stopped process hears nothing but this
            burner.kill()


if __name__ == "__main__":
    main(f"{sys.argv[1]}={sys.argv[2]}".encode())
