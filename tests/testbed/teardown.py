"""How is everything of a cluster removed, whoever made it and however it ended?

Works from what the state folder records, so it serves the keeper's own end and the clean-up after a keeper that was killed. Doing it twice is harmless.
"""

import shutil
from pathlib import Path

from testbed import processes, slots
from testbed.layout import Folder, read_process


class LeftoverError(Exception):
    """Something could not be removed safely; the message names it."""


def end_processes(folder: Folder) -> None:
    """Kill every recorded process that still is the one recorded, the latest first."""
    for record in sorted(folder.processes.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        process = read_process(record)
        if process is not None:
            processes.stop(process, grace_s=0)
        record.unlink()


def remove_data(folder: Folder) -> None:
    """Remove data and keys. Logs stay, to be read."""
    for data in (
        folder.etcd,
        folder.pki,
        folder.users,
        folder.images,
        *folder.nodes.glob("*/kubelet"),
        *folder.nodes.glob("*/containerd"),
    ):
        remove_tree(data)
    for file in (folder.kubeconfig, folder.control, folder.slot):
        file.unlink(missing_ok=True)


def remove_all(folder: Folder) -> None:
    """Everything in one go, for a cluster whose keeper is gone."""
    end_processes(folder)
    if folder.slot.exists():
        slots.clear_if_free(slots.Slot(int(folder.slot.read_text())))
    remove_data(folder)


def remove_tree(path: Path) -> None:
    """Delete a folder, unless something is mounted below it.

    Raises:
        LeftoverError: there is a mount, whose content is not ours to delete.
    """
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [point for point in mounted if Path(point).is_relative_to(path)]
    if below:
        raise LeftoverError(f"{path} still holds mounts and stays: umount {' '.join(below)}")
    if path.exists():
        shutil.rmtree(path)
