"""Where can an operator die, and what is killed there? Faults of the relay that end the operator at one of its writes."""

from dataclasses import dataclass, field
from typing import NamedTuple

from amdahl_loop.domain.children import read_run
from reliability.relay import Call, Cut, Send
from reliability.scenes import Scene
from reliability.wire import Reply


class Point(NamedTuple):
    """A write at which an operator dies: before the server sees it, or after it is done and before the answer is told."""

    at: int
    after: bool

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} write {self.at}"


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
        if point is None or not call.is_write or call.number != point.at:
            return await send(call)
        self.is_striking = True
        if point.after:
            await send(call)
        self.scene.operator.kill()
        self.victims.append(name_write(call))
        self.is_striking = False
        raise Cut


def name_write(call: Call) -> str:
    """A write as a table names it, without names that differ from run to run: `POST jobs d0`."""
    body = call.body
    status, metadata = body.get("status") or {}, body.get("metadata") or {}
    if call.kind == "POST events":
        return f"{call.kind} {body['reason']}"
    if call.kind == "PATCH experiments/status":
        if status.get("reserved"):
            return f"{call.kind} reserve {_short(status['reserved']['run'])}"
        if status.get("blocks"):
            return f"{call.kind} block {status['blocks'][-1]['name']}"
        if status.get("holdouts"):
            return f"{call.kind} holdout {status['holdouts'][-1]['name']}"
        if status.get("applications"):
            return f"{call.kind} {status['applications'][-1]['kind']}"
        return f"{call.kind} {'verdict' if status.get('verdict') else 'loss'}"
    if call.kind == "PATCH trainingjobs/status":
        return f"{call.kind} {'observation' if 'observation' in status else 'conditions'}"
    if call.kind in ("POST jobs", "POST configmaps"):
        return f"{call.kind} {_short(metadata['name'])}"
    if call.method == "DELETE":
        return f"{call.kind} {_short(call.path.partition('?')[0].rpartition('/')[2])}"
    return call.kind


def _short(name: str) -> str:
    if name.startswith("amdahl-probe-"):
        return "amdahl-probe"
    block = read_run(name)
    is_block = block is not None and len(block.experiment.rpartition("-")[2]) == 10
    return name.removeprefix(f"{block.experiment}-") if block is not None and is_block else name
