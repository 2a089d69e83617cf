"""From where does a block in turn with its job begin? From the job's checkpoint, seen where no block can write to it.

The folders that a program writes to are empty in a trial. Where one of them lies on storage that outlives the job's
pods, that storage is mounted once more, read-only, and the supervisor copies the folder before each launch.
"""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.render import OUR_FOLDER, add_mount, trainer_of
from amdahl_loop.domain.pod_parts import CLOSABLE_VOLUMES

BASE_FOLDER = f"{OUR_FOLDER}/base"


def add_base(pod: Object, targets: Sequence[str]) -> tuple[str, ...]:
    """`volumeMounts[/amdahl/base/<n>]`, read-only, of the storage below each target; empty where there is none.

    The whole of the user's mount is seen there, so that no kubelet has to make a folder on storage it may not write.
    Returns where the supervisor finds what lies in the target.
    """
    lasting = {volume["name"] for volume in pod.get("volumes") or () if set(volume) & CLOSABLE_VOLUMES}
    trainer = trainer_of(pod)
    mounts = [mount for mount in trainer.get("volumeMounts") or () if mount["name"] in lasting]
    found = []
    for number, target in enumerate(targets):
        mount = max((m for m in mounts if _holds(m, target)), key=lambda m: len(_path(m)), default=None)
        if mount is None:
            found.append("")
            continue
        kept = {key: mount[key] for key in ("subPath", "subPathExpr") if key in mount}
        folder = f"{BASE_FOLDER}/{number}"
        add_mount(trainer, mount["name"], folder, readOnly=True, **kept)
        found.append(posixpath.normpath(posixpath.join(folder, posixpath.relpath(target, _path(mount)))))
    return tuple(found)


def _path(mount: Mapping[str, Any]) -> str:
    return posixpath.normpath(mount.get("mountPath") or "")


def _holds(mount: Mapping[str, Any], target: str) -> bool:
    return f"{target}/".startswith(f"{_path(mount).rstrip('/')}/")
