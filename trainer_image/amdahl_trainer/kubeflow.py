"""How far is the run, for Kubeflow Trainer? Its controller takes a POST now and then, and shows it in the TrainJob.

The controller tells a pod where, in three variables (its proposal 2779): the URL, a file with its certificate authority
and a file with a token. Here a thread of its own posts the newest state, at most every few seconds. Nothing waits for
it: a state that comes while another is on its way replaces the one before, and a refusal is said once.
"""

from __future__ import annotations

import json
import math
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from amdahl_trainer.errors import ConfigError

#: Shortest time between two posts, and longest wait for an answer, seconds.
EVERY_S, TIMEOUT_S = 5.0, 5.0


@dataclass(frozen=True)
class Address:
    """Where to post. The token is read anew each time: the kubelet replaces it."""

    url: str
    authority: str | None
    token: str | None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Address:
        """What the controller told the pod. Raises ConfigError where it told nothing."""
        url = environ.get("KUBEFLOW_TRAINER_STATUS_URL", "")
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"metrics.kubeflow_status is true, but KUBEFLOW_TRAINER_STATUS_URL is {url!r}; the controller of a "
                "TrainJob sets it where its feature gate is on; else set metrics.kubeflow_status to false"
            )
        names = "KUBEFLOW_TRAINER_STATUS_CA_CERT", "KUBEFLOW_TRAINER_STATUS_TOKEN"
        authority, token = (environ.get(name) or None for name in names)
        return cls(url, authority, token)


@dataclass(frozen=True)
class State:
    """How far the run is."""

    step: int
    last_step: int
    left_s: float | None
    metrics: Mapping[str, float]

    def body(self, now: datetime) -> bytes:
        """The request. Numbers that are not finite are left out."""
        finite = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        status: dict[str, object] = {
            "progressPercentage": min(100, self.step * 100 // self.last_step),
            "metrics": [{"name": name, "value": f"{value:.6g}"} for name, value in finite.items()],
            "lastUpdatedTime": now.isoformat(),
        }
        if self.left_s is not None:
            status["estimatedRemainingSeconds"] = int(self.left_s)
        return json.dumps({"trainerStatus": status}).encode()


class Sink:
    """Posts states from a thread that ends with the process."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._newest: State | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="amdahl-kubeflow", daemon=True)
        self._thread.start()

    def post(self, state: State) -> None:
        """Hand over a state, without waiting."""
        with self._changed:
            self._newest = state
            self._changed.notify()

    def close(self) -> None:
        """Post what is left, and end; waits for one answer at most."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(2 * TIMEOUT_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._is_closed)
                state, self._newest = self._newest, None
                is_last = self._is_closed
            if state is not None:
                self._send(state)
            if is_last:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, EVERY_S)

    def _send(self, state: State) -> None:
        try:
            headers = {"Content-Type": "application/json"}
            if self._address.token is not None:
                headers["Authorization"] = f"Bearer {Path(self._address.token).read_text().strip()}"
            request = urllib.request.Request(self._address.url, state.body(datetime.now(UTC)), headers)  # noqa: S310 (http or https, see Address)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=self._context()):  # noqa: S310 (as above)
                self._has_failed = False
        except (OSError, ValueError) as error:  # urllib's own are OSErrors
            if not self._has_failed:
                print(f"amdahl_trainer: progress not told to {self._address.url}: {error}", file=sys.stderr)
            self._has_failed = True

    def _context(self) -> ssl.SSLContext | None:
        is_plain = self._address.url.startswith("http://")
        return None if is_plain else ssl.create_default_context(cafile=self._address.authority)
