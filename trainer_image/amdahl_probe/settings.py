"""What was this process told? The environment of the telemetry contract (section 1), parsed once."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Optional

from amdahl_probe import knobs


class Settings(NamedTuple):
    """What the process was told (telemetry contract, section 1)."""

    directory: Optional[str]
    port: Optional[int]
    host: str
    run: str
    trial: bool
    seed: Optional[int]
    offset: Optional[int]
    trace: bool
    knobs: knobs.LoaderKnobs

    @property
    def is_recording(self) -> bool:
        """Whether anybody will read what is measured; without, only knobs and trial settings are placed."""
        return self.directory is not None or self.port is not None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the environment. Raises ValueError naming the variable."""
        in_trial = env.get("AMDAHL_TRIAL") == "1"
        return cls(
            directory=env.get("AMDAHL_TELEMETRY_DIR") or None,
            port=_integer(env, "AMDAHL_METRICS_PORT"),
            host=env.get("AMDAHL_METRICS_HOST") or "127.0.0.1",
            run=env.get("AMDAHL_RUN_ID") or "local",
            trial=in_trial,
            seed=_integer(env, "AMDAHL_SEED") if in_trial else None,
            offset=_integer(env, "AMDAHL_DATA_OFFSET") if in_trial else None,
            trace=bool(env.get("AMDAHL_TRACE")),
            knobs=knobs.parse(env),
        )


def _integer(env: Mapping[str, str], name: str) -> Optional[int]:
    text = env.get(name, "").strip()
    try:
        return int(text) if text else None
    except ValueError:
        raise ValueError(f"{name}={text!r}: give a whole number") from None
