"""How is the operator set up? Environment variables, each with its default, parsed once with clear errors."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

PREFIX = "AMDAHL_LOOP_"
_NAMESPACE = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")

Parsed = TypeVar("Parsed")


class SettingsError(ValueError):
    """Variables that cannot be used; a line for each, with its name, value and the fix."""


class LogFormat(StrEnum):
    """How log lines are written."""

    PLAIN = "plain"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The operator's set-up."""

    namespaces: tuple[str, ...] = ()
    """AMDAHL_LOOP_NAMESPACES: names with commas; none means the whole cluster."""
    kubeconfig: Path | None = None
    """AMDAHL_LOOP_KUBECONFIG: absent means the cluster around the pod, else kubectl's own choice."""
    metrics_port: int = 8080
    """AMDAHL_LOOP_METRICS_PORT: /metrics of the operator; 0 serves none."""
    health_port: int = 8081
    """AMDAHL_LOOP_HEALTH_PORT: /healthz for the kubelet's probes; 0 serves none."""
    log_format: LogFormat = LogFormat.JSON
    """AMDAHL_LOOP_LOG_FORMAT: json or plain."""
    workers: int = 8
    """AMDAHL_LOOP_WORKERS: jobs that are looked at at the same time."""
    parallel_trials: int = 16
    """AMDAHL_LOOP_PARALLEL_TRIALS: trials of all jobs together that may run at the same time."""
    trials: bool = True
    """AMDAHL_LOOP_TRIALS: false observes and runs jobs, and starts no trial: what holds where the admission policies
    are not installed, and the switch that stops every experiment."""


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings that the environment names. SettingsError lists every variable that is wrong."""
    reader = _Reader(environment)
    settings = Settings(
        namespaces=reader.take("NAMESPACES", _parse_namespaces, ()),
        kubeconfig=reader.take("KUBECONFIG", Path, None),
        metrics_port=reader.take("METRICS_PORT", _whole(0, 65535), Settings.metrics_port),
        health_port=reader.take("HEALTH_PORT", _whole(0, 65535), Settings.health_port),
        log_format=reader.take("LOG_FORMAT", LogFormat, Settings.log_format),
        workers=reader.take("WORKERS", _whole(1, 256), Settings.workers),
        parallel_trials=reader.take("PARALLEL_TRIALS", _whole(0, 10_000), Settings.parallel_trials),
        trials=reader.take("TRIALS", _parse_flag, Settings.trials),
    )
    reader.finish()
    return settings


class _Reader:
    """Takes variables one by one and remembers what was wrong and what nobody asked for."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._left = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
        self._wrong: list[str] = []

    def take(self, name: str, parse: Callable[[str], Parsed], default: Parsed) -> Parsed:
        text = self._left.pop(PREFIX + name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self._wrong.append(f"{PREFIX}{name}: {text!r}: {error}")
            return default

    def finish(self) -> None:
        unknown = [f"{name}: no such setting; remove it" for name in sorted(self._left)]
        if self._wrong or unknown:
            raise SettingsError("\n".join([*self._wrong, *unknown]))


def _parse_namespaces(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if not _NAMESPACE.match(name):
            raise ValueError(f"{name!r} is no namespace's name; give names with commas between them")
    return names


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"give a whole number from {least} to {most}")
        return int(text)

    return parse


def _parse_flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("give true or false")
    return text.lower() == "true"
