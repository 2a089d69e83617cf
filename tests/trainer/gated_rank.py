"""Run in each of two ranks: computes gradients in one mode after the other, while the other rank is held back.

One rank is not let into the step. The other one waits for it, somewhere; on the clock of its ledger, which nothing else
moves, 20 ms pass as soon as it does, and then the first one is let in. What each ledger says is left as JSON.
"""

import gc
import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from amdahl_probe.spans import Ledger
from amdahl_trainer import config as configs
from amdahl_trainer import dp, entry, parallel, peers, waits
from amdahl_trainer.device import HostClock, attribute
from amdahl_trainer.errors import Exit
from amdahl_trainer.mesh import Mesh

sys.path.insert(0, str(Path(__file__).parents[1]))

from mesh_parity import CPU, TINY, make_rows

DELAY_NS = 20_000_000


class Gate:
    """Opens when the rank that is not held waits for the other, once 20 ms have passed on its clock."""

    def __init__(self, path):
        self.path = path
        self.now_ns = 0
        self.is_waiting = False
        self.lock = threading.Lock()

    def __call__(self):
        with self.lock:
            return self.now_ns

    @contextmanager
    def within(self):
        """A wait. Its end is told before the span that counts it is closed, so the clock moves within the span."""
        self.tell(True)
        yield
        self.tell(False)

    def tell(self, is_waiting):
        with self.lock:
            self.is_waiting = is_waiting

    def watch(self):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with self.lock:
                if self.is_waiting:
                    self.now_ns += DELAY_NS
                    break
            time.sleep(0.001)
        self.path.touch()

    def pass_through(self):
        while not self.path.exists():
            time.sleep(0.001)


def take_step(values, held, place, gate):
    """Phases of one step's gradients, as this rank's ledger has them."""
    config = configs.build({**TINY, **values})
    mesh = Mesh(parallel.fit(config, place), place.rank, CPU)
    ledger = Ledger(clock=gate, bottom="compute")
    clock = HostClock(ledger)
    left = [0]

    def on_gradient():
        clock.gradient()
        left[0] -= 1
        if not left[0]:
            gate.tell(True)  # DDP waits below Python from here on

    rows = make_rows(config)
    mine = rows[:, mesh.seat.dp :: mesh.degrees.dp]
    replica = parallel.parallelize(config, mesh, CPU, on_gradient)
    is_ddp = mesh.degrees.dp_cp > 1 and not mesh.degrees.is_sharded(config.parallel.dp_mode)
    left[0] = min(dp.MARKED, len(list(replica.model.parameters()))) * (mine.shape[1] // 2 if is_ddp else -1)

    @contextmanager
    def waiting():
        with clock.waiting(), gate.within():
            yield

    clock.begin()
    if place.rank == held:
        gate.pass_through()
    else:
        threading.Thread(target=gate.watch, daemon=True).start()
    with waits.told_to(waiting):
        replica.accumulate(mine, int((rows[2] > 0).sum()))
    clock.backward_done()
    clock.finish(torch.zeros(3))
    (reading,) = clock.ready()
    return {phase: ns for phase, ns in attribute(ledger.take(), reading).items() if ns}


def main():
    torch.set_num_threads(1)
    place = peers.Place.from_environ(os.environ)
    others = peers.join(place, CPU, 300)
    home = Path(os.environ["AMDAHL_TELEMETRY_DIR"])
    found = {}
    for name, case in json.loads((home.parent / "cases.json").read_text()).items():
        found[name] = take_step(case["values"], case["held"], place, Gate(home / f"gate-{name}"))
        gc.collect()
        others.barrier()
    (home / f"found-{place.rank}.json").write_text(json.dumps(found))
    entry.leave(Exit.FINISHED)


if __name__ == "__main__":
    main()
