"""Run in place of the trainer, or loaded into the process that writes: SIGKILL before one operation on the files.

KILL_AT is a regular expression over `<audit event> <path below checkpoints>`; the first match ends the process, or
with KILL_WHOM the trainer that started it, or both.
"""

import os
import re
import signal
import sys
import time

EVENTS = ("open", "os.mkdir", "os.rename", "shutil.rmtree")


def install():
    """Watch this process."""
    wanted = re.compile(os.environ["KILL_AT"])
    whom = {"self": [os.getpid()], "trainer": [os.getppid()], "both": [os.getppid(), os.getpid()]}
    pids = whom[os.environ.get("KILL_WHOM", "self")]

    def watch(event, arguments):
        if event in EVENTS and isinstance(arguments[0], str | os.PathLike):
            _, home, path = os.fspath(arguments[0]).partition("/checkpoints")
            if home and wanted.fullmatch(f"{event} {path.lstrip('/')}"):
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                while os.getppid() == pids[0]:  # a process that is killed takes a moment to die
                    time.sleep(0.001)

    sys.addaudithook(watch)


if __name__ == "__main__":
    from amdahl_trainer import entry

    install()
    entry.run(sys.argv[1:], os.environ)
