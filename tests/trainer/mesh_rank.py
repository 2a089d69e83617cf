"""Run in each rank of a `pool.Pool`: takes cases from a directory, one after the other, and leaves what came of them.

Rank 0 sees a case first and tells the others. A case is a configuration; the result is what one step did: loss,
gradients and parameters afterwards, put together from all ranks; or how much memory each rank's tensors took.
"""

import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch

from amdahl_trainer import entry, peers
from amdahl_trainer.errors import Exit, TrainerError

sys.path.insert(0, str(Path(__file__).parents[1]))

from mesh_parity import CPU, measure_peak, take_step


def main():
    home = Path(sys.argv[1])
    torch.set_num_threads(1)
    place = peers.Place.from_environ(os.environ)
    others = peers.join(place, CPU, 900)
    number = 0
    while True:
        told = home / f"case-{number}.json"
        while place.rank == 0 and not told.exists():
            time.sleep(0.005)
        case = json.loads(others.broadcast(told.read_text() if place.rank == 0 else None))
        if case is None:
            break
        try:
            work = measure_peak if case.pop("memory", False) else take_step
            found = work(case.pop("values"), place, others, **case)
        except TrainerError as error:
            found = {"refused_with": str(error)}
        except Exception:  # noqa: BLE001 (the others may be waiting: nobody can go on)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        if place.rank == 0:
            draft = home / f"draft-{number}.pt"
            torch.save(found, draft)
            draft.rename(home / f"result-{number}.pt")
        number += 1
        gc.collect()
    entry.leave(Exit.FINISHED)


if __name__ == "__main__":
    main()
