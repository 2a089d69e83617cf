"""How does the probe get into a namespace? As an immutable ConfigMap that is named after its content.

The operator ships the probe and never imports it: a process of its own packs it, once. An object of the right name with
other content is somebody's attempt to run code in other people's pods, and is never mounted.
"""

import base64
import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path

from amdahl_loop.adapters.kube.client import KubeClient, Refused
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.render import PROBE_KEY, PROBE_VOLUME
from amdahl_loop.domain.children import JOB_LABEL, PROBE_LABEL, probe_name

PART_OF = {"app.kubernetes.io/part-of": "amdahl-loop"}
"""As on every object of the chart: what belongs to no job can be found, and removed, by one selector."""

MAX_PROBE_BYTES = 700_000
"""A ConfigMap holds 1 MiB, and base64 takes a third more."""


class ProbeError(Exception):
    """The probe cannot be packed: the installation is broken; the message says what is missing."""


@dataclass(frozen=True)
class Probe:
    """The probe as a zip; equal sources give equal bytes and so the same name."""

    content: bytes
    compared: dict[str, tuple[str, float]] = field(default_factory=dict, compare=False)
    """UIDs of its ConfigMaps, by namespace, whose content was found to be its own, and when they were last seen there.

    They are immutable.
    """

    @cached_property
    def name(self) -> str:
        """Name of its ConfigMap."""
        return probe_name(hashlib.sha256(self.content).hexdigest())

    def render(self, namespace: str) -> Object:
        """Its ConfigMap."""
        return {
            "metadata": {"name": self.name, "namespace": namespace, "labels": {PROBE_LABEL: "zip"} | PART_OF},
            "immutable": True,
            "binaryData": {PROBE_KEY: base64.b64encode(self.content).decode()},
        }


def pack_probe() -> Probe:
    """The probe that is installed beside the operator. ProbeError where there is none."""
    with tempfile.TemporaryDirectory(prefix="amdahl-probe-") as folder:
        command = [sys.executable, "-I", "-m", "amdahl_probe.bundle", folder]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode != 0:
            raise ProbeError(f"the probe cannot be packed: {told.stderr.strip().rpartition(chr(10))[2]}")
        content = Path(told.stdout.strip()).read_bytes()
    if len(content) > MAX_PROBE_BYTES:
        raise ProbeError(f"the probe has {len(content)} bytes, more than the {MAX_PROBE_BYTES} a ConfigMap can carry")
    return Probe(content)


async def place_probe(client: KubeClient, namespace: str, probe: Probe, trust_s: float = 0.0) -> bool | Refused:
    """Create or find the probe's ConfigMap. True: created now; False: it was there; Refused: it cannot be used.

    A probe that is new in a namespace takes the place of older versions: those that no Job mounts are swept. What was
    seen within `trust_s` is not looked for again: whoever can do without it need not know to the second.
    """
    uid, seen_s = probe.compared.get(namespace, ("", -inf))
    now_s = client.now_s()
    if uid and 0 <= now_s - seen_s < trust_s:
        return False
    if uid and await client.get_uid(Kind.CONFIG_MAP, namespace, probe.name) == uid:
        probe.compared[namespace] = uid, now_s
        return False
    wanted = probe.render(namespace)
    present = await client.get(Kind.CONFIG_MAP, namespace, probe.name)
    if present is None:
        made = await client.create(Kind.CONFIG_MAP, namespace, wanted)
        if not isinstance(made, Refused):
            probe.compared[namespace] = made["metadata"]["uid"], now_s
            await sweep_probes(client, namespace, probe)
            return True
        present = await client.get(Kind.CONFIG_MAP, namespace, probe.name) if made.is_taken else None
        if present is None:
            return made
    if (
        present.get("immutable") is True
        and present.get("binaryData") == wanted["binaryData"]
        and not present.get("data")
    ):
        probe.compared[namespace] = present["metadata"]["uid"], now_s
        return False
    return Refused(
        status=409, reason="Squatted", message=f"ConfigMap {probe.name} is there with other content; delete it"
    )


async def sweep_probes(client: KubeClient, namespace: str, present: Probe) -> None:
    """Delete probes of other versions that no Job of ours mounts any more."""
    found = client.list(Kind.CONFIG_MAP, namespace, PROBE_LABEL)
    old = [item["metadata"] async for item in found if item["metadata"]["name"] != present.name]
    if not old:
        return
    used = {name async for job in client.list(Kind.JOB, namespace, JOB_LABEL) for name in _mounted(job)}
    for metadata in old:
        if metadata["name"] not in used:
            await client.delete(Kind.CONFIG_MAP, namespace, metadata["name"], metadata["uid"])


def _mounted(job: Object) -> list[str]:
    """The probes that a Job's pods mount."""
    volumes = job["spec"]["template"]["spec"].get("volumes") or ()
    return [volume["configMap"]["name"] for volume in volumes if volume["name"] == PROBE_VOLUME]
