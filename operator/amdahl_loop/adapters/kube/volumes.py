"""How does a trial see the user's storage? All that outlives the pod read-only, and scratch of its own to write to.

A kind of volume that cannot be closed is refused: what is not known to be harmless is not harmless.
"""

import posixpath
from collections.abc import Sequence

from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.render import OUR_FOLDER, add_mount, add_volume, trainer_of
from amdahl_loop.domain.pod_parts import CLOSABLE_VOLUMES, IMMUTABLE_VOLUMES, PRIVATE_VOLUMES
from amdahl_loop.domain.tuning import Trial

RUN_FOLDER = f"{OUR_FOLDER}/run"
"""What the supervisor writes: records, logs and the summary of a block."""
SCRATCH_FOLDER = f"{RUN_FOLDER}/scratch"
SCRATCH_VOLUME = "amdahl-scratch"
SCRATCH_LIMIT = "64Gi"
"""A trial that writes more is evicted, before it can fill a node's disk."""


IDENTITY_SOURCES = frozenset({"serviceAccountToken", "podCertificate"})
"""What says who a pod is: no trial gets it, as none gets an account; Secrets stay, at their owner's word."""


def close_volumes(pod: Object) -> str | None:
    """`volumes[].<kind>.readOnly` and `volumeMounts[].readOnly` of everything shared; why not, where that cannot be.

    `volumes[].projected.sources`: tokens and certificates of the pod are left out.
    """
    shared = set()
    for volume in pod.get("volumes") or ():
        kinds = sorted(set(volume) - {"name"})
        if len(kinds) != 1 or kinds[0] not in PRIVATE_VOLUMES | IMMUTABLE_VOLUMES | CLOSABLE_VOLUMES:
            return f"spec.volumes[{volume.get('name')}]: {', '.join(kinds) or 'no kind'} cannot be made read-only"
        if kinds[0] in CLOSABLE_VOLUMES:
            volume[kinds[0]] = (volume[kinds[0]] or {}) | {"readOnly": True}
        if kinds[0] == "projected":
            _drop_identity(volume["projected"] or {})
        if kinds[0] not in PRIVATE_VOLUMES:
            shared.add(volume["name"])
    for container in (*pod["containers"], *(pod.get("initContainers") or ())):
        if container.get("volumeDevices"):
            return f"container {container['name']}: volumeDevices cannot be made read-only"
        for mount in container.get("volumeMounts") or ():
            if mount["name"] in shared:
                mount["readOnly"] = True
    return None


def _drop_identity(projected: Object) -> None:
    sources = projected.get("sources")
    if sources is not None:
        projected["sources"] = [source for source in sources if not IDENTITY_SOURCES & set(source)]


def is_shared(pod: Object) -> bool:
    """Whether the pod mounts storage that outlives it: where a job keeps its checkpoints, if anywhere."""
    return any(set(volume) & CLOSABLE_VOLUMES for volume in pod.get("volumes") or ())


def claims_of(pod: Object) -> tuple[str, ...]:
    """Names of the persistent volume claims that a pod mounts."""
    sources = [volume.get("persistentVolumeClaim") or {} for volume in pod.get("volumes") or ()]
    return tuple(source["claimName"] for source in sources if source.get("claimName"))


def scratch_targets(trial: Trial, working_dir: str) -> tuple[str, ...] | str:
    """The absolute paths that get scratch storage; or why one of them cannot."""
    paths = []
    for path in trial.scratch_paths:
        target = posixpath.normpath(posixpath.join(working_dir or ".", path))
        if not target.startswith("/"):
            return f"tuning.trial.scratchPaths {path}: relative, and the trainer has no workingDir; write it from /"
        if target == "/" or f"{target}/".startswith(f"{OUR_FOLDER}/"):
            return f"tuning.trial.scratchPaths {path}: is not a folder of the program's; name the one it writes to"
        paths.append(target)
    return tuple(dict.fromkeys(paths))


def add_scratch(pod: Object, targets: Sequence[str], storage_class: str | None) -> tuple[str, ...]:
    """One scratch volume, seen at `RUN_FOLDER` and, a folder each, at the targets; where the supervisor finds those.

    A mount of the user's at the very same path makes way for it, in the trainer alone.
    """
    add_volume(pod, {"name": SCRATCH_VOLUME} | _scratch_source(storage_class))
    trainer = trainer_of(pod)
    trainer["volumeMounts"] = [
        mount
        for mount in trainer.get("volumeMounts") or ()
        if posixpath.normpath(mount.get("mountPath") or "") not in targets
    ]
    add_mount(trainer, SCRATCH_VOLUME, RUN_FOLDER, readOnly=False)
    for number, target in enumerate(targets):
        add_mount(trainer, SCRATCH_VOLUME, target, readOnly=False, subPath=f"scratch/{number}")
    return tuple(f"{SCRATCH_FOLDER}/{number}" for number in range(len(targets)))


def _scratch_source(storage_class: str | None) -> Object:
    """The node's disk, or a volume of a class that comes and goes with the pod."""
    if storage_class is None:
        return {"emptyDir": {"sizeLimit": SCRATCH_LIMIT}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": storage_class,
        "resources": {"requests": {"storage": SCRATCH_LIMIT}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
