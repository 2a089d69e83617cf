"""`python -m amdahl_trainer --config x.yaml [--section.key value ...]`: one process; `launch` starts several."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from amdahl_trainer import stop


def main() -> NoReturn:
    """Train, and leave with one of the exit codes of `errors.Exit`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.leave_early)  # importing torch takes seconds
    from amdahl_trainer import entry

    entry.run(sys.argv[1:], os.environ)


def _leave_probe() -> None:
    """Keep the probe out of this process: the trainer writes the same records itself.

    The probe waits for `import torch` with a finder on `sys.meta_path`; taken off before that, it never acts.
    """
    hook = sys.modules.get("amdahl_probe.hook")
    if hook is not None:
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, hook.ImportWatcher)]


_leave_probe()  # in the process that writes checkpoints as well, which imports this file under another name
if __name__ == "__main__":
    main()
