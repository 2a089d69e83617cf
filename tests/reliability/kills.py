"""Where can an operator die, and what is killed there? Faults of the relay that end the operator at one of its writes."""

from dataclasses import dataclass, field
from typing import NamedTuple

from reliability.relay import Call, Cut, Send, name_write
from reliability.scenes import Scene
from reliability.wire import Reply


class Point(NamedTuple):
    """A write at which an operator dies: before the server sees it, or after it is done and before the answer is told."""

    at: int
    after: bool
    name: str = ""
    """Where it is given, the first write of this name (`relay.name_write`), whatever its number."""

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} write {self.name or self.at}"

    def is_at(self, call: Call) -> bool:
        """Whether this is the write."""
        if not call.is_write:
            return False
        return name_write(call) == self.name if self.name else call.number == self.at


@dataclass
class Killer:
    """SIGKILL at each of these points, in their order; whoever runs the scene starts the operator again."""

    scene: Scene
    points: list[Point]
    victims: list[str] = field(default_factory=list)
    """The writes that were cut."""
    is_striking: bool = False

    async def __call__(self, call: Call, send: Send) -> Reply:
        """The fault."""
        point = self.points[len(self.victims)] if len(self.victims) < len(self.points) else None
        if point is None or not point.is_at(call):
            return await send(call)
        self.is_striking = True
        if point.after:
            await send(call)
        self.scene.operator.kill()
        self.victims.append(name_write(call))
        self.is_striking = False
        raise Cut
