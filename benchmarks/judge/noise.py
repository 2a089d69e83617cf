"""What noise does a shared machine put on a window? A model, with its parameters in one table.

The model and the parameters quiet / default / harsh follow the project's reliability research, section 1.2: step times
are lognormal and autocorrelated with rare stragglers; each launch, each node and each hour shifts them; neighbours come
and go. `LIVE` models blocks in one process on two shared cores with short steps; it is set so that a block of 2.5 s
windows spreads by 4 to 6 %, which is what was measured there. Everything is in log cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.signal import lfilter

DAY_S = 86400.0
_CHUNK = 256
_POOL = 20_000


@dataclass(frozen=True)
class Noise:
    """Parameters of the model; shifts are in log cost, times in seconds."""

    step_s: float = 1.0
    step_sd: float = 0.04
    step_correlation: float = 0.5
    straggler_share: float = 0.01  # a straggler takes 1 + Exp(1) times as long
    launch_sd: float = 0.010
    node_sd: float = 0.04
    slow_node_share: float = 0.03
    node_drift: tuple[float, float] = (0.025, 2700.0)  # sd and memory
    cluster_drift: tuple[float, float] = (0.020, 1200.0)
    diurnal: float = 0.020
    neighbour_every_s: float = 3 * 3600.0
    neighbour_stays_s: float = 480.0
    neighbour_takes: tuple[float, float] = (0.05, 0.40)
    effect_by_node_sd: float = 0.007
    cold: tuple[float, float] = (0.08, 600.0)  # a node's first minutes: size and memory
    launch: tuple[float, float] = (0.40, 15.0)
    grid_s: float = 30.0


QUIET = Noise(
    step_sd=0.02,
    straggler_share=0.003,
    launch_sd=0.005,
    node_sd=0.02,
    slow_node_share=0.01,
    node_drift=(0.008, 2700.0),
    cluster_drift=(0.006, 1200.0),
    diurnal=0.005,
    neighbour_every_s=12 * 3600.0,
    effect_by_node_sd=0.003,
    cold=(0.03, 600.0),
)
DEFAULT = Noise()
HARSH = Noise(
    step_sd=0.08,
    step_correlation=0.7,
    straggler_share=0.03,
    launch_sd=0.02,
    node_sd=0.06,
    slow_node_share=0.06,
    node_drift=(0.05, 2700.0),
    cluster_drift=(0.04, 1200.0),
    diurnal=0.05,
    neighbour_every_s=3600.0,
    neighbour_stays_s=600.0,
    effect_by_node_sd=0.012,
    cold=(0.15, 600.0),
)
LIVE = Noise(
    step_s=0.075,
    step_sd=0.08,
    step_correlation=0.6,
    straggler_share=0.02,
    launch_sd=0.02,
    node_drift=(0.02, 60.0),
    cluster_drift=(0.015, 15.0),
    diurnal=0.0,
    neighbour_every_s=600.0,
    neighbour_stays_s=30.0,
    effect_by_node_sd=0.0,
    cold=(0.05, 3.0),
    launch=(0.40, 0.5),
    grid_s=1.0,
)
NOISES = {"quiet": QUIET, "default": DEFAULT, "harsh": HARSH, "live": LIVE}


@lru_cache(maxsize=64)
def window_pool(noise: Noise, steps: int) -> np.ndarray:
    """Log of the mean of `steps` consecutive step times, for many windows; only the noise of steps."""
    rng = np.random.default_rng(steps)
    size = min(_POOL, 4_000_000 // steps)
    state = rng.standard_normal(size) * noise.step_sd
    fresh = noise.step_sd * np.sqrt(1 - noise.step_correlation**2)
    total = np.zeros(size)
    for _ in range(steps):
        state = noise.step_correlation * state + rng.standard_normal(size) * fresh
        straggling = np.where(rng.random(size) < noise.straggler_share, rng.exponential(1.0, size), 0.0)
        total += np.exp(state) * (1 + straggling)
    return np.log(total / steps)


class Place:
    """One node over time: its level, its drift, its neighbours, and how much the variant's effect differs there."""

    def __init__(self, rng: np.random.Generator, noise: Noise, time_of_day_s: float, node: str) -> None:
        self.rng, self.noise, self.time_of_day_s, self.node = rng, noise, time_of_day_s, node
        slow = np.log1p(rng.uniform(0.10, 0.40)) if rng.random() < noise.slow_node_share else 0.0
        self.level = rng.standard_normal() * noise.node_sd + slow
        self.effect_shift = rng.standard_normal() * noise.effect_by_node_sd
        self.elapsed_s = 0.0
        self._drift = np.empty(0)
        self._state = [rng.standard_normal() * sd for sd, _ in (noise.node_drift, noise.cluster_drift)]
        self._visits = self._neighbours()
        self._visiting: list[tuple[float, float, float]] = []

    def later(self, time_of_day_s: float) -> "Place":
        """The same node hours later: level and effect stay, drift and neighbours are forgotten."""
        place = Place(self.rng, self.noise, time_of_day_s, self.node)
        place.level, place.effect_shift = self.level, self.effect_shift
        return place

    def shift(self, start_s: float, end_s: float) -> float:
        """Mean log shift of everything but steps and launches between two times since this place was taken."""
        noise = self.noise
        cells = slice(int(start_s / noise.grid_s), int(end_s / noise.grid_s) + 1)
        while len(self._drift) < cells.stop:
            self._extend()
        middle = (start_s + end_s) / 2
        day = noise.diurnal * np.sin(2 * np.pi * (self.time_of_day_s + middle) / DAY_S)
        cold = noise.cold[0] * np.exp(-middle / noise.cold[1])
        return float(self.level + self._drift[cells].mean() + day + cold + self._neighbour(start_s, end_s))

    def _extend(self) -> None:
        noise, chunk = self.noise, np.zeros(_CHUNK)
        for index, (sd, memory_s) in enumerate((noise.node_drift, noise.cluster_drift)):
            keep = np.exp(-noise.grid_s / memory_s)
            fresh = self.rng.standard_normal(_CHUNK) * sd * np.sqrt(1 - keep**2)
            walk, _ = lfilter([1.0], [1.0, -keep], fresh, zi=[keep * self._state[index]])
            self._state[index] = walk[-1]
            chunk += walk
        self._drift = np.concatenate([self._drift, chunk])

    def _neighbours(self) -> Iterator[tuple[float, float, float]]:
        """Visits as (start, end, shift); the chain begins in its steady state."""
        noise, rng = self.noise, self.rng
        cycle_s = noise.neighbour_every_s + noise.neighbour_stays_s
        start_s = 0.0 if rng.random() < noise.neighbour_stays_s / cycle_s else rng.exponential(noise.neighbour_every_s)
        while True:
            end_s = start_s + rng.exponential(noise.neighbour_stays_s)
            yield start_s, end_s, float(np.log1p(rng.uniform(*noise.neighbour_takes)))
            start_s = end_s + rng.exponential(noise.neighbour_every_s)

    def _neighbour(self, start_s: float, end_s: float) -> float:
        while not self._visiting or self._visiting[-1][0] < end_s:
            self._visiting.append(next(self._visits))
        overlaps = ((min(end_s, until) - max(start_s, since), shift) for since, until, shift in self._visiting)
        return sum(overlap * shift for overlap, shift in overlaps if overlap > 0) / (end_s - start_s)


def node_lottery(noise: Noise) -> Noise:
    """The same noise where the variant works on some nodes only."""
    return replace(noise, effect_by_node_sd=0.03)
