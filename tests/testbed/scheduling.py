"""Which file does a worker take next? One of the folder that it is in: its cluster is up already.

A folder's tests share a cluster, which every worker that comes to the folder starts for itself. So workers keep to their
folders, each to one of its own for as long as there is such a one. Within a folder long files come first: one that was
begun last would keep a single core busy at the end.
"""

from collections import Counter

import pytest
from xdist.remote import Producer
from xdist.scheduler.loadfile import LoadFileScheduling
from xdist.workermanage import WorkerController

LONG = (
    "test_trainer_parity.py",
    "test_trainer_ends.py",
    "test_trainer_launch.py",
    "test_trainer_learning.py",
    "test_probe_scripts.py",
    "test_probe_checkpoint.py",
    "test_object_store.py",
    "test_trainer_pods.py",
    "test_testbed_cluster.py",
    "test_reliability_answers.py",
    "test_cluster_parity.py",
)
"""Files that take the better part of a minute and more, longest first; another name costs only balance."""


class FolderScheduling(LoadFileScheduling):
    """A file at a time, as `--dist loadfile` has it; which one hangs on the folder."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        self._places: dict[WorkerController, str] = {}

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Put the file in front that this worker should take."""
        left: Counter[str] = Counter()
        for file, tests in self.workqueue.items():
            left[_folder(file)] += len(tests)
        others = {place for worker, place in self._places.items() if worker is not node}
        here = self._places.get(node, "")
        if here not in left:
            here = max(left, key=lambda folder: (folder not in others, left[folder]))
        self._places[node] = here
        file = min((file for file in self.workqueue if _folder(file) == here), key=_rank)
        self.workqueue.move_to_end(file, last=False)
        super()._assign_work_unit(node)


def _folder(file: str) -> str:
    return file.rpartition("/")[0]


def _rank(file: str) -> int:
    name = file.rpartition("/")[2]
    return LONG.index(name) if name in LONG else len(LONG)
