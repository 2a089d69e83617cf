"""How do operators start in milliseconds of CPU? Each is a fork of a process that has imported everything, and nothing else.

A sweep starts hundreds of operators, and importing them takes longer than what they have to do. What runs in the fork is the
operator's own `main`, with an environment of its own, as a process that can be killed.

    python nursery.py < one JSON line per operator: {"environment": {...}, "log": PATH}; it answers with the process id
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

from amdahl_loop.handlers import main

PR_SET_PDEATHSIG = 1
CLOCK_VARIABLE = "RELIABILITY_CLOCK"


def set_clock(offset: str | None) -> None:
    """Let this process's clock on the wall go wrong by the seconds that a file holds, as a machine's clock does; others run on."""
    if offset is not None:
        true, path = time.time, Path(offset)
        time.time = lambda: true() + float(path.read_text())


def bear(environment: dict[str, str], log: str) -> int:
    """Fork an operator; returns its process id."""
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the operator waits for the process that packs the probe
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(environment)
    set_clock(environment.get(CLOCK_VARIABLE))
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        print(end.code, file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError("a child never comes here")


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    for line in sys.stdin:
        print(bear(**json.loads(line)), flush=True)
