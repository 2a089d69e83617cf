"""Who looks on while the loop turns: a live view on a terminal, a line per event elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from amdahl_loop.cli.chronicle import Chronicle
from amdahl_loop.cli.scene import draw
from amdahl_loop.cli.session import World
from amdahl_loop.domain.runs import RunState
from amdahl_loop.ports import Clock
from amdahl_loop.reconcile import Tick

REDRAW_S = 1.0
"""The view moves once a second: often enough for people, too rarely to disturb a trial on the same cores."""


class LineWatch:
    """One line an event, with the time of day; for logs and CI."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._chronicle = Chronicle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Nothing is held."""

    def ticked(self, latest: Tick) -> None:
        """Print what this tick adds."""
        for line in self._chronicle.tell(latest):
            now = self._console.get_datetime().strftime("%H:%M:%S")
            self._console.print(f"{now}  {line}", markup=False, highlight=False, soft_wrap=True)

    def polled(self, state: RunState) -> None:
        """A log does not follow windows."""


class LiveWatch:
    """A view that is redrawn in place and leaves nothing behind; the command prints its end itself."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._clock = clock
        self._began_s = clock()
        self._submitted_s = self._drawn_s = 0.0
        self._latest: Tick | None = None

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.__exit__(kind, error, tb)

    def ticked(self, latest: Tick) -> None:
        """Draw at once: something was decided."""
        self._latest = latest
        self._submitted_s = self._clock()
        self._redraw(latest.run)

    def polled(self, state: RunState) -> None:
        """Draw now and then: the run goes on."""
        if self._clock() - self._drawn_s >= REDRAW_S:
            self._redraw(state)

    def _redraw(self, state: RunState | None) -> None:
        now = self._drawn_s = self._clock()
        if self._latest is not None:
            view = draw(self._latest, state, now - self._began_s, now - self._submitted_s)
            self._live.update(view, refresh=True)


def open_watch(output: str, world: World, is_result_alone: bool = False) -> LineWatch | LiveWatch:
    """A live view where a person looks on, else a log; on standard error where the result is to stand alone."""
    console = world.console()
    if console.is_terminal and output == "text":
        return LiveWatch(console, world.clock)
    return LineWatch(world.console(is_error=output == "json" or is_result_alone))
