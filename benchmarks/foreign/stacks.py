"""What was the training thread doing, says the profiler? Stacks sampled by py-spy, in order, into phases.

Reads the speedscope form: one list of stacks a thread, outermost frame first, in the order in which they were taken.
py-spy waits for exponentially distributed times between samples, so a phase's count is binomial.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from catalog import Loop, Script

LOADER = "torch/utils/data/dataloader.py"
SERIALIZATION = "torch/serialization.py"
PROBE = "/amdahl_probe/"

#: Functions of the probe that stand around one of torch's and call it: what runs below them is not the probe's.
WRAPPERS = frozenset(
    {
        "__call__",
        "__init__",
        "__iter__",
        "__next__",
        "_reset",
        "backward",
        "exec_module",
        "fetch",
        "part",
        "rotate",
        "save",
        "scale",
    }
)


class Frame(NamedTuple):
    """A function being run, and the line it is at."""

    name: str
    file: str
    line: int


Stack = tuple[Frame, ...]


@dataclass(frozen=True)
class Sampled:
    """Samples between the first and the last optimizer step, by phase; `probe` is the probe's own time."""

    counts: dict[str, int]

    @property
    def total(self) -> int:
        """All samples of the stretch."""
        return sum(self.counts.values())


class Reader:
    """Classifies the stacks of one script."""

    def __init__(self, script: Script, clone: Path) -> None:
        self._script = script
        self._lines = find_lines(script.loop, clone / script.folder)

    def is_stepping(self, stack: Stack) -> bool:
        """Whether the training loop is between a batch and the optimizer's step, whatever runs below it."""
        loop = self._script.loop
        return any(
            frame.line in self._lines and frame.name == loop.function and frame.file.endswith(loop.file)
            for frame in stack
        )

    def classify(self, stack: Stack) -> str:
        """The phase of one sample; what none of the rules knows is `other`."""
        if any(frame.name == "save" and frame.file.endswith(SERIALIZATION) for frame in stack):
            return "checkpoint"
        if self._holds(stack, self._script.evaluates):
            return "eval"
        ours = [frame for frame in stack if PROBE in frame.file]
        if ours and ours[-1].name not in WRAPPERS:
            return "probe"
        if any(frame.name in ("__iter__", "__next__") and frame.file.endswith(LOADER) for frame in stack):
            return "input"
        if self._holds(stack, self._script.fetches):
            return "input"
        return "compute" if self.is_stepping(stack) else "other"

    @staticmethod
    def _holds(stack: Stack, functions: tuple[tuple[str, str], ...]) -> bool:
        return any(frame.name == name and frame.file.endswith(file) for frame in stack for file, name in functions)

    def count(self, stacks: list[Stack]) -> Sampled:
        """Samples by phase, from the end of the first step to the end of the last.

        Raises ValueError when no sample shows a step.
        """
        steps = [at for at, stack in enumerate(stacks) if self.is_stepping(stack)]
        if not steps:
            raise ValueError(f"no sample shows lines {self._lines} of {self._script.loop.file}: wrong file or function")
        first, last = steps[0], steps[-1]
        while first < last and self.is_stepping(stacks[first + 1]):
            first += 1
        counts: dict[str, int] = {}
        for stack in stacks[first + 1 : last + 1]:
            phase = self.classify(stack)
            counts[phase] = counts.get(phase, 0) + 1
        return Sampled(counts)


def find_lines(loop: Loop, folder: Path) -> range:
    """The numbers of the computing lines. Raises ValueError naming the text that the script no longer holds."""
    texts = [text.strip() for text in (folder / loop.file).read_text().splitlines()]
    if texts.count(loop.steps) != 1:
        raise ValueError(f"{loop.file} holds {loop.steps!r} {texts.count(loop.steps)} times, expected once")
    last = texts.index(loop.steps)
    before = [at for at, text in enumerate(texts[:last]) if text == loop.gets]
    if not before:
        raise ValueError(f"{loop.file} does not hold {loop.gets!r} before {loop.steps!r}")
    return range(before[-1] + 2, last + 2)  # lines count from 1


def read_stacks(path: Path, script: Script) -> list[Stack]:
    """The stacks of the thread that ran the script, oldest first. Raises ValueError when there is not one such."""
    content = json.loads(path.read_text())
    frames = [Frame(frame["name"], frame["file"] or "", frame["line"] or 0) for frame in content["shared"]["frames"]]
    found = []
    for profile in content["profiles"]:
        stacks = [tuple(frames[at] for at in sample) for sample in profile["samples"]]
        if any(stack and stack[0].name == "<module>" and stack[0].file.endswith(script.command[0]) for stack in stacks):
            found.append(stacks)
    if len(found) != 1:
        raise ValueError(f"{path}: {len(found)} threads ran {script.command[0]}, expected one")
    return found[0]
