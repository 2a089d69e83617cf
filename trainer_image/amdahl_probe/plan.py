# ruff: noqa: TRY004 (a plan is text: a field of the wrong type is a wrong value)
"""What block is to be run? The supervisor's plan (telemetry contract, section 4), parsed once, with clear errors."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, TypeVar

VERSION = "amdahl.plan/1"

#: The default for a plan that sets no memory bound: none worth the name.
NO_LIMIT_BYTES = 1 << 62

Parsed = TypeVar("Parsed")


class PlanError(ValueError):
    """A plan that cannot be run; the message names the field, its value and what it should be."""


@dataclass(frozen=True)
class Window:
    """One window: which arm, with what, for how long."""

    arm: str
    index: int
    scored: bool
    knobs: Mapping[str, Any]
    env: Mapping[str, str]
    offset: int
    seed: int
    warmup_s: float
    warmup_steps: int
    measure_s: float
    min_steps: int
    steps: Optional[int]
    save_every: Optional[int]

    @property
    def name(self) -> str:
        """As in file names: `A0`."""
        return f"{self.arm}{self.index}"

    @property
    def is_proof(self) -> bool:
        """Whether it measures exactly the first `steps` steps of a fresh launch."""
        return self.steps is not None


class Meeting(NamedTuple):
    """Where the supervisors of a block of several pods find the first of them, and how long they wait for it."""

    pods: int
    host: str
    port: int
    wait_s: float


class Plan(NamedTuple):
    """One block. `inherit`: variables of the supervisor's own that the command may refer to, beside the plan's.

    `base_paths`: what each scratch path begins as at every launch; None for one that begins empty. `peers`: where
    supervisors of several pods meet; `key` is the same in all of them.
    """

    run: str
    is_live: bool
    command: Tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    inherit: Tuple[str, ...]
    probe: str
    directory: Path
    startup_timeout_s: float
    step_timeout_s: float
    deadline_s: float
    grace_s: float
    mem_bytes: int
    scratch_paths: Tuple[Path, ...]
    base_paths: Tuple[Optional[Path], ...]
    windows: Tuple[Window, ...]
    peers: Optional[Meeting] = None
    key: str = ""


def parse(text: str) -> Plan:
    """Parse a plan. Raises PlanError."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise PlanError(f"the plan is not JSON: {error}") from None
    fields = _Fields(raw, "plan")
    if fields.take("v", _text) != VERSION:
        raise PlanError(f'plan.v={raw.get("v")!r}: this supervisor reads "{VERSION}"')
    switch = fields.take("switch", _text)
    if switch not in ("relaunch", "live"):
        raise PlanError(f'plan.switch={switch!r}: give "relaunch" or "live"')
    plan = Plan(
        run=fields.take("run", _text),
        is_live=switch == "live",
        command=tuple(fields.take("command", _texts)),
        cwd=Path(fields.take("cwd", _text)),
        env=fields.take("env", _environment, {}),
        inherit=tuple(fields.take("inherit", _texts, [])),
        probe=fields.take("probe", _text),
        directory=Path(fields.take("dir", _text)),
        startup_timeout_s=fields.take("startup_timeout_s", _seconds),
        step_timeout_s=fields.take("step_timeout_s", _seconds),
        deadline_s=fields.take("deadline_s", _seconds),
        grace_s=fields.take("grace_s", _seconds, 5.0),
        mem_bytes=fields.take("mem_bytes", _count, NO_LIMIT_BYTES),
        scratch_paths=tuple(Path(path) for path in fields.take("scratch_paths", _texts, [])),
        base_paths=tuple(Path(path) if path else None for path in fields.take("base_paths", _texts, [])),
        windows=tuple(_parse_window(item, at) for at, item in enumerate(fields.take("windows", _list))),
        peers=_parse_meeting(fields.take("peers", _mapping, None)),
        key=hashlib.sha256(json.dumps([raw["run"], raw["windows"]]).encode()).hexdigest()[:32],
    )
    _check(plan)
    return plan


def _check(plan: Plan) -> None:
    names = [window.name for window in plan.windows]
    if not plan.command or not plan.windows:
        raise PlanError("plan.command and plan.windows must not be empty")
    if len(set(names)) != len(names):
        raise PlanError(f"plan.windows: {names} are not distinct; give each arm's windows their own index")
    if plan.base_paths and len(plan.base_paths) != len(plan.scratch_paths):
        raise PlanError(
            f"plan.base_paths: {len(plan.base_paths)}, plan.scratch_paths: {len(plan.scratch_paths)}; give one for each"
        )
    for path in (plan.directory, plan.cwd, *plan.scratch_paths, *filter(None, plan.base_paths)):
        if not path.is_absolute() or ".." in path.parts:
            raise PlanError(f"plan: {str(path)!r} must be an absolute path without '..'")
    for path in plan.scratch_paths:
        if len(path.parts) < 3:
            raise PlanError(f"plan.scratch_paths: {str(path)!r} is too near the root to be emptied")


def _parse_meeting(raw: Optional[Mapping[str, Any]]) -> Optional[Meeting]:
    if raw is None:
        return None
    fields = _Fields(raw, "plan.peers")
    meeting = Meeting(
        pods=fields.take("pods", _positive),
        host=fields.take("host", _text),
        port=fields.take("port", _positive),
        wait_s=fields.take("wait_s", _seconds),
    )
    return meeting if meeting.pods > 1 else None


def _parse_window(raw: Any, at: int) -> Window:
    fields = _Fields(raw, f"plan.windows[{at}]")
    return Window(
        arm=fields.take("arm", _arm),
        index=fields.take("index", _count),
        scored=fields.take("scored", _flag, True),
        knobs=fields.take("knobs", _mapping, {}),
        env=fields.take("env", _environment, {}),
        offset=fields.take("offset", _count, 0),
        seed=fields.take("seed", _count, 0),
        warmup_s=fields.take("warmup_s", _seconds, 0.0),
        warmup_steps=fields.take("warmup_steps", _count, 0),
        measure_s=fields.take("measure_s", _seconds, 0.0),
        min_steps=fields.take("min_steps", _positive, 1),
        steps=fields.take("steps", _positive, None),
        save_every=fields.take("save_every", _positive, None),
    )


class _Fields:
    """A JSON object being taken apart; null counts as absent."""

    def __init__(self, raw: Any, where: str) -> None:
        if not isinstance(raw, dict):
            raise PlanError(f"{where}: give an object")
        self._raw, self._where = raw, where

    def take(self, name: str, parse: Callable[[Any], Parsed], *default: Any) -> Parsed:
        value = self._raw.get(name)
        if value is None:
            if default:
                return default[0]  # type: ignore[no-any-return]  # the caller's own default
            raise PlanError(f"{self._where}.{name} is missing")
        try:
            return parse(value)
        except ValueError as error:
            raise PlanError(f"{self._where}.{name}={value!r}: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("give a non-empty text")
    return value


def _arm(value: Any) -> str:
    if not isinstance(value, str) or not value.isalnum() or len(value) > 8:
        raise ValueError("give one to eight letters or digits")
    return value


def _texts(value: Any) -> List[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("give a list of texts")
    return value


def _list(value: Any) -> List[Any]:
    if not isinstance(value, list):
        raise ValueError("give a list")
    return value


def _mapping(value: Any) -> Dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("give an object")
    return value


def _environment(value: Any) -> Dict[str, str]:
    if not all(isinstance(item, str) and "\0" not in name + item for name, item in _mapping(value).items()):
        raise ValueError("give an object of texts")
    return dict(value)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError("give a number of seconds, 0 or more")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("give a whole number, 0 or more")
    return value


def _positive(value: Any) -> int:
    if _count(value) == 0:
        raise ValueError("give a whole number above 0")
    return int(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("give true or false")
    return value


def expand(text: str, env: Mapping[str, str]) -> str:
    """Expand `$(NAME)` as the kubelet does: unknown names stay as they are, `$$` is a literal `$`."""
    out: List[str] = []
    at = 0
    while at < len(text):
        follower = text[at + 1] if text[at] == "$" and at + 1 < len(text) else ""
        end = text.find(")", at) if follower == "(" else -1
        if follower == "$":
            out.append("$")
            at += 2
        elif end >= 0:
            out.append(env.get(text[at + 2 : end], text[at : end + 1]))
            at = end + 1
        else:
            out.append(text[at])
            at += 1
    return "".join(out)
