"""Does anybody want this process to stop? SIGTERM, or SIGINT of a person at a terminal.

Before the ranks have met there is nothing to save, and nobody to agree with: the process ends at once. Afterwards the
wish is remembered until the ranks agree before their next step; then all save the same step. Whatever they do until
then, a save or an evaluation, is finished first. Further SIGTERMs change nothing: launchers and process groups often
deliver several. A second SIGINT ends the process at once.
"""

from __future__ import annotations

import os
import signal

from amdahl_trainer.errors import Exit

_EARLY = f"amdahl_trainer: stopped before the ranks had met; nothing to save (exit code {int(Exit.YIELDED)}, yielded)\n"


class StopRequest:
    """Remembers a wish to stop until the ranks next agree."""

    def __init__(self) -> None:
        self.came = False
        self._have_met = False
        self._interrupts = 0
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def __call__(self) -> bool:
        """Whether it came."""
        return self.came

    def meet(self) -> None:
        """The ranks have met: from now on they stop together."""
        self._have_met = True

    def _note(self, number: int, _: object) -> None:
        if not self._have_met:
            leave_early()
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            os._exit(128 + signal.SIGINT)
        self.came = True


def leave_early(*_: object) -> None:
    """End the process at once. A handler may find the streams in use, so it writes past them."""
    os.write(2, _EARLY.encode())
    os._exit(Exit.YIELDED)
