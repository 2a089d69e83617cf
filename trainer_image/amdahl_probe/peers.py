"""When does a window of several pods begin and end? In all of them at once, at steps that the first pod chooses.

Ranks wait for each other in their collectives: a supervisor that ended its own ranks at a step of its own would hang or
crash the others. So supervisors talk, one line of JSON at a time, over a connection from each pod to the first. A
window begins when every pod is ready for it; the first pod says which steps are measured; launches end when all have
measured them. What fails in one pod is given up in all.
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from amdahl_probe.plan import Meeting
from amdahl_probe.windows import Edges

#: How often a pod that is not there yet is looked for again, seconds.
RETRY_S = 0.5

#: No message of ours comes near: who writes more is nobody of ours.
MAX_LINE_BYTES = 4096

#: How long the last word may take to be heard.
CLOSE_S = 5.0

Check = Callable[[], None]


class PeerError(Exception):
    """The pods of this block cannot go on together; the message says which one is missing."""


class Alone:
    """A block of one pod: nobody to wait for."""

    is_leader = True

    def gather(self, check: Check) -> None:
        """Wait until every pod is there, `check`ing all the while."""

    def begin(self, number: int, check: Check) -> None:
        """Wait until every pod is ready for a window."""

    def choose(self, number: int, own: Optional[Edges]) -> Optional[Edges]:
        """The steps that a window measures, once they are known; `own` is what this pod's ranks suggest."""
        del number
        return own

    def finish(self, number: int) -> bool:
        """Say that this pod has measured a window; whether all have."""
        del number
        return True

    def fail(self, number: int, why: str) -> None:
        """Say that a window is lost in this pod, and so in all."""

    def find_loss(self, number: int) -> str:
        """Why a window is lost in another pod; empty while it is not."""
        del number
        return ""

    def close(self) -> None:
        """Part."""


class _Line(NamedTuple):
    """One message: what it is about, the window, and the rest."""

    kind: str
    number: int
    rest: Any


class _Wire:
    """One connection: whole lines in, whole lines out."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._partial = b""
        self.is_open = True
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(CLOSE_S)

    def say(self, kind: str, number: int = 0, rest: Any = None) -> None:
        """Send one message; a lost connection is noticed when it is read."""
        try:
            self._socket.sendall(json.dumps([kind, number, rest]).encode() + b"\n")
        except OSError:
            self.is_open = False

    def hear(self) -> List[_Line]:
        """What has arrived, without waiting. Closes itself on anything that is no message."""
        lines: List[_Line] = []
        while self.is_open and select.select([self._socket], [], [], 0)[0]:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                data = b""
            whole, newline, self._partial = (self._partial + data).rpartition(b"\n")
            if not data or len(self._partial) > MAX_LINE_BYTES:
                self.is_open = False
            for line in (whole + newline).splitlines():
                try:
                    kind, number, rest = json.loads(line)
                    lines.append(_Line(str(kind), int(number), rest))
                except (ValueError, TypeError, RecursionError):
                    self.is_open = False
        return lines

    def drop(self) -> None:
        """Close at once."""
        self._socket.close()

    def close(self) -> None:
        """Let the other side read to the end, then close."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            until_s = time.monotonic() + CLOSE_S
            while self.is_open and time.monotonic() < until_s:
                self.hear()
                time.sleep(0.01)
        except OSError:  # it is gone already
            pass
        self.drop()


class Leader(Alone):
    """The first pod's side."""

    def __init__(self, meeting: Meeting, key: str) -> None:
        self._meeting, self._key = meeting, key
        self._followers: Dict[int, _Wire] = {}
        self._said: Dict[Tuple[str, int], Set[int]] = {}
        self._losses: Dict[int, str] = {}
        self._chosen: Dict[int, Edges] = {}
        self._server: Optional[socket.socket] = None

    def gather(self, check: Check) -> None:
        """Listen under the name that the others look for, and wait until each of them has come."""
        until_s = time.monotonic() + self._meeting.wait_s
        strangers: List[_Wire] = []
        while len(self._followers) < self._meeting.pods - 1:
            check()
            if self._server is None:
                self._server = _listen(self._meeting)
            elif select.select([self._server], [], [], 0)[0]:
                strangers.append(_Wire(self._server.accept()[0]))
            for stranger in strangers:
                self._greet(stranger)
            strangers = [s for s in strangers if s not in self._followers.values()]
            for stranger in [s for s in strangers if not s.is_open]:
                strangers.remove(stranger)
                stranger.drop()
            if time.monotonic() > until_s:
                missing = sorted(set(range(1, self._meeting.pods)) - self._followers.keys())
                raise PeerError(f"pods {missing} have not come in {self._meeting.wait_s:.0f} s")
            time.sleep(0.01)

    def _greet(self, stranger: _Wire) -> None:
        """Take in one of ours; whoever else comes is turned away."""
        lines = stranger.hear()
        if not lines:
            return
        hello, *more = lines
        is_ours = hello.kind == "hello" and hello.rest == self._key
        if not is_ours or not 0 < hello.number < self._meeting.pods or hello.number in self._followers:
            stranger.is_open = False
            return
        self._followers[hello.number] = stranger
        for line in more:
            self._note(hello.number, line)

    def begin(self, number: int, check: Check) -> None:
        """Wait until every pod is ready, then give the word."""
        while len(self._who_said("ready", number)) < len(self._followers):
            check()
            self._hear(number)
            lost = [index for index, wire in sorted(self._followers.items()) if not wire.is_open]
            if lost:
                raise PeerError(f"pods {lost} are gone")
            time.sleep(0.01)
        self._tell("go", number)

    def choose(self, number: int, own: Optional[Edges]) -> Optional[Edges]:
        """The first pod's own edges count, and are told once."""
        if own is not None and number not in self._chosen:
            self._chosen[number] = own
            self._tell("measure", number, list(own))
        return self._chosen.get(number)

    def finish(self, number: int) -> bool:
        """Whether all others have measured the window too: then it is over for everybody."""
        self._hear(number)
        if len(self._who_said("done", number)) < len(self._followers):
            return False
        self._tell("over", number)
        return True

    def fail(self, number: int, why: str) -> None:
        """Tell everybody."""
        self._losses.setdefault(number, why)
        self._tell("lost", number, f"pod 0: {why}")

    def find_loss(self, number: int) -> str:
        """What a follower has said, or its silence; the others are told."""
        self._hear(number)
        return self._losses.get(number, "")

    def close(self) -> None:
        """Part when the others have heard the last word."""
        for wire in self._followers.values():
            wire.close()
        if self._server is not None:
            self._server.close()

    def _hear(self, number: int) -> None:
        for index, wire in sorted(self._followers.items()):
            for line in wire.hear():
                self._note(index, line)
            if not wire.is_open and index not in self._who_said("done", number):
                self._lose(number, f"pod {index} is gone")

    def _note(self, index: int, line: _Line) -> None:
        if line.kind == "lost":
            self._lose(line.number, f"pod {index}: {str(line.rest)[:60]}")
        else:
            self._who_said(line.kind, line.number).add(index)

    def _lose(self, number: int, why: str) -> None:
        if number not in self._losses:
            self._losses[number] = why
            self._tell("lost", number, why)

    def _who_said(self, kind: str, number: int) -> Set[int]:
        return self._said.setdefault((kind, number), set())

    def _tell(self, kind: str, number: int, rest: Any = None) -> None:
        for wire in self._followers.values():
            wire.say(kind, number, rest)


class Follower(Alone):
    """Every other pod's side."""

    is_leader = False

    def __init__(self, meeting: Meeting, key: str, index: int) -> None:
        self._meeting, self._key, self._index = meeting, key, index
        self._leader: Optional[_Wire] = None
        self._heard: Dict[Tuple[str, int], Any] = {}
        self._finished: Set[int] = set()

    def gather(self, check: Check) -> None:
        """Find the first pod, which may not be there yet."""
        until_s = time.monotonic() + self._meeting.wait_s
        while self._leader is None:
            check()
            try:
                address = (self._meeting.host, self._meeting.port)
                self._leader = _Wire(socket.create_connection(address, timeout=CLOSE_S))
            except OSError as error:
                if time.monotonic() > until_s:
                    raise PeerError(f"pod 0 has not come in {self._meeting.wait_s:.0f} s: {error}") from None
                time.sleep(RETRY_S)
        self._leader.say("hello", self._index, self._key)

    def begin(self, number: int, check: Check) -> None:
        """Say that this pod is ready, and wait for the word."""
        self._say("ready", number)
        while ("go", number) not in self._heard:
            check()
            self._hear()
            if not self._wire.is_open:
                raise PeerError("pod 0 is gone")
            time.sleep(0.01)

    def choose(self, number: int, own: Optional[Edges]) -> Optional[Edges]:
        """What the first pod has chosen."""
        del own
        self._hear()
        told = self._heard.get(("measure", number))
        if not isinstance(told, list) or len(told) != 2 or not all(isinstance(index, int) for index in told):
            return None
        return Edges(told[0], told[1])

    def finish(self, number: int) -> bool:
        """Whether the first pod has said that all are through."""
        if number not in self._finished:
            self._finished.add(number)
            self._say("done", number)
        self._hear()
        return ("over", number) in self._heard

    def fail(self, number: int, why: str) -> None:
        """Tell the first pod, which tells the others."""
        self._say("lost", number, why)

    def find_loss(self, number: int) -> str:
        """What the first pod has said, or its silence."""
        self._hear()
        lost = self._heard.get(("lost", number))
        if lost is not None:
            return str(lost)[:80]
        return "" if self._wire.is_open or ("over", number) in self._heard else "pod 0 is gone"

    def close(self) -> None:
        """Part."""
        if self._leader is not None:
            self._leader.close()

    @property
    def _wire(self) -> _Wire:
        assert self._leader is not None, "gather comes first"
        return self._leader

    def _say(self, kind: str, number: int, rest: Any = None) -> None:
        self._wire.say(kind, number, rest)

    def _hear(self) -> None:
        for line in self._wire.hear():
            self._heard[line.kind, line.number] = "" if line.rest is None else line.rest


def meet(meeting: Optional[Meeting], key: str, index: str) -> Alone:
    """This pod's side. PeerError where nothing says which pod this is."""
    if meeting is None:
        return Alone()
    if not index.isdecimal() or int(index) >= meeting.pods:
        raise PeerError(f"JOB_COMPLETION_INDEX={index!r}: give the number of this pod, below {meeting.pods}")
    return Follower(meeting, key, int(index)) if int(index) else Leader(meeting, key)


def _listen(meeting: Meeting) -> Optional[socket.socket]:
    """A server at the address that the meeting's name stands for; None while that is not this pod's yet."""
    try:
        family, _, _, _, address = socket.getaddrinfo(meeting.host, meeting.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=meeting.pods)
    except OSError:
        time.sleep(RETRY_S)
        return None
