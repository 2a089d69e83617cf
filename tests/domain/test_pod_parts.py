"""Which shapes may the parts of a pod template have, and what is said of the others?"""

from typing import Any

import pytest

from amdahl_loop.domain.parsing import ManifestError, parse_training_job
from builders import make_manifest

NOTHING: dict[str, Any] = {}
AFFINITY = "requiredDuringSchedulingIgnoredDuringExecution"


def parse(pod: dict[str, Any], container: dict[str, Any], more: dict[str, Any]) -> str:
    """What is said of a template with further fields of the pod, of the trainer and beside the pod; empty: it is sound."""
    manifest = make_manifest()
    template = manifest["spec"]["template"]
    template["spec"]["containers"][0] |= container
    template["spec"] |= pod
    template |= more
    try:
        parse_training_job(manifest)
    except ManifestError as error:
        return str(error)
    return ""


def volume(**source: Any) -> dict[str, Any]:
    """A pod with one volume."""
    return {"volumes": [{"name": "data", **source}]}


def limit(**amounts: Any) -> dict[str, Any]:
    """A container with limits."""
    return {"resources": {"limits": amounts}}


LIST, MAP, TEXT = (
    "write a list: an item a line, each behind '- '",
    "write a map: lines of 'name: value'",
    "write text: put it into quotes",
)
POD, TRAINER, META = "spec.template.spec", "spec.template.spec.containers.0", "spec.template.metadata"
BAD = [
    # line, pod, container, beside the pod
    (f"{META}: 'mine': is text; {MAP}", NOTHING, NOTHING, {"metadata": "mine"}),
    (f"{META}: ['mine']: is a list; {MAP}", NOTHING, NOTHING, {"metadata": ["mine"]}),
    (f"{META}.labels: ['team']: is a list; {MAP}", NOTHING, NOTHING, {"metadata": {"labels": ["team"]}}),
    (f"{META}.labels.team: 1: is a number; {TEXT}", NOTHING, NOTHING, {"metadata": {"labels": {"team": 1}}}),
    (f"{META}.annotations.on: True: is true or false; {TEXT}", NOTHING, NOTHING, {"metadata": {"annotations": {"on": True}}}),
    (f"{POD}.volumes: {{'data': {{}}}}: is a map; {LIST}", {"volumes": {"data": {}}}, NOTHING, NOTHING),
    (f"{POD}.volumes: 'all': is text; {LIST}", {"volumes": "all"}, NOTHING, NOTHING),
    (f"{POD}.volumes: 1: is a number; {LIST}", {"volumes": 1}, NOTHING, NOTHING),
    (f"{POD}.volumes.0: 'data': is text; {MAP}", {"volumes": ["data"]}, NOTHING, NOTHING),
    (f"{POD}.volumes.0: None: is nothing; {MAP}", {"volumes": [None]}, NOTHING, NOTHING),
    (f"{POD}.volumes.0.name: absent: required; add it", {"volumes": [{"emptyDir": {}}]}, NOTHING, NOTHING),
    (f"{POD}.volumes.0.nfs: 'nas:/data': is text; {MAP}", volume(nfs="nas:/data"), NOTHING, NOTHING),
    (f"{POD}.volumes.0.tapeRobot: 1: is a number; {MAP}", volume(tapeRobot=1), NOTHING, NOTHING),
    (f"{POD}.volumes.0.persistentVolumeClaim: 'c': is text; {MAP}", volume(persistentVolumeClaim="c"), NOTHING, NOTHING),
    (f"{POD}.volumes.0.persistentVolumeClaim.claimName: 1: is a number; {TEXT}", volume(persistentVolumeClaim={"claimName": 1}), NOTHING, NOTHING),
    (f"{POD}.volumes.0.persistentVolumeClaim.claimName: '../c': no claim can have this name", volume(persistentVolumeClaim={"claimName": "../c"}), NOTHING, NOTHING),
    (f"{POD}.volumes.0.projected.sources: {{}}: is a map; {LIST}", volume(projected={"sources": {}}), NOTHING, NOTHING),
    (f"{POD}.initContainers: {{'a': {{}}}}: is a map; {LIST}", {"initContainers": {"a": {}}}, NOTHING, NOTHING),
    (f"{POD}.initContainers.0.name: absent", {"initContainers": [{"image": "x"}]}, NOTHING, NOTHING),
    (f"{POD}.initContainers.0.env: 'A=1': is text; {LIST}", {"initContainers": [{"name": "a", "env": "A=1"}]}, NOTHING, NOTHING),
    (f"{POD}.initContainers.0.resources.limits.cpu: 'many': 'many' is no resource quantity", {"initContainers": [{"name": "a", **limit(cpu="many")}]}, NOTHING, NOTHING),
    (f"{POD}.containers: {{}}: is a map; {LIST}", {"containers": {}}, NOTHING, NOTHING),
    (f"{POD}.affinity: 'gpu': is text; {MAP}", {"affinity": "gpu"}, NOTHING, NOTHING),
    (f"{POD}.affinity.nodeAffinity.{AFFINITY}: []: is a list; {MAP}", {"affinity": {"nodeAffinity": {AFFINITY: []}}}, NOTHING, NOTHING),
    (f"{POD}.affinity.podAntiAffinity.{AFFINITY}: {{}}: is a map; {LIST}", {"affinity": {"podAntiAffinity": {AFFINITY: {}}}}, NOTHING, NOTHING),
    (f"{POD}.hostNetwork: 'maybe'", {"hostNetwork": "maybe"}, NOTHING, NOTHING),
    (f"{POD}.securityContext: 'root': is text; {MAP}", {"securityContext": "root"}, NOTHING, NOTHING),
    (f"{TRAINER}.securityContext: ['privileged']: is a list; {MAP}", NOTHING, {"securityContext": ["privileged"]}, NOTHING),
    (f"{TRAINER}.command: 'train': is text; {LIST}", NOTHING, {"command": "train"}, NOTHING),
    (f"{TRAINER}.env: {{'A': '1'}}: is a map; {LIST}", NOTHING, {"env": {"A": "1"}}, NOTHING),
    (f"{TRAINER}.env.0.value: 1: is a number; {TEXT}", NOTHING, {"env": [{"name": "A", "value": 1}]}, NOTHING),
    (f"{TRAINER}.env.0.valueFrom: 'secret': is text; {MAP}", NOTHING, {"env": [{"name": "A", "valueFrom": "secret"}]}, NOTHING),
    (f"{TRAINER}.envFrom: {{}}: is a map; {LIST}", NOTHING, {"envFrom": {}}, NOTHING),
    (f"{TRAINER}.volumeMounts: {{'a': '/a'}}: is a map; {LIST}", NOTHING, {"volumeMounts": {"a": "/a"}}, NOTHING),
    (f"{TRAINER}.volumeMounts.0: '/a': is text; {MAP}", NOTHING, {"volumeMounts": ["/a"]}, NOTHING),
    (f"{TRAINER}.volumeMounts.0.mountPath: 1: is a number; {TEXT}", NOTHING, {"volumeMounts": [{"name": "a", "mountPath": 1}]}, NOTHING),
    (f"{TRAINER}.resources: '8Gi': is text; {MAP}", NOTHING, {"resources": "8Gi"}, NOTHING),
    (f"{TRAINER}.resources.limits: ['8Gi']: is a list; {MAP}", NOTHING, {"resources": {"limits": ["8Gi"]}}, NOTHING),
    (f"{TRAINER}.resources.requests: 8: is a number; {MAP}", NOTHING, {"resources": {"requests": 8}}, NOTHING),
    (f"{TRAINER}.resources.limits.nvidia.com/gpu: 'all': 'all' is no resource quantity; write a number such as 2", NOTHING, limit(**{"nvidia.com/gpu": "all"}), NOTHING),
    (f"{TRAINER}.resources.limits.memory: 'lots': 'lots' is no resource quantity", NOTHING, limit(memory="lots"), NOTHING),
    (f"{TRAINER}.resources.limits.memory: '-1Gi': is less than nothing; write an amount", NOTHING, limit(memory="-1Gi"), NOTHING),
    (f"{TRAINER}.resources.limits.memory: True: 'True' is no resource quantity", NOTHING, limit(memory=True), NOTHING),
    (f"{TRAINER}.resources.limits.disk: 'x': 'x' is no resource quantity", NOTHING, limit(disk="x"), NOTHING),
]  # fmt: skip


@pytest.mark.parametrize(("line", "pod", "container", "more"), BAD, ids=[row[0][14:60] for row in BAD])
def test_a_part_of_another_shape_is_refused_with_its_fix(
    line: str, pod: dict[str, Any], container: dict[str, Any], more: dict[str, Any]
) -> None:
    """One line: the field, its value, what that is and what it must be."""
    said = parse(pod, container, more)
    assert said.startswith(line)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("pod", "container", "more"),
    [
        (NOTHING, NOTHING, {"metadata": None}),
        (NOTHING, NOTHING, {"metadata": {"labels": None, "annotations": {"a": None}, "finalizers": ["x/y"]}}),
        ({"volumes": None, "initContainers": None, "affinity": None, "securityContext": None}, NOTHING, NOTHING),
        (volume(persistentVolumeClaim=None), NOTHING, NOTHING),
        (volume(projected={"sources": None}), NOTHING, NOTHING),
        (volume(tapeRobot={"slot": 1}), NOTHING, NOTHING),
        (volume(persistentVolumeClaim={"claimName": "a.claim-1"}), NOTHING, NOTHING),
        ({"affinity": {"nodeAffinity": {AFFINITY: {"nodeSelectorTerms": None}}}}, NOTHING, NOTHING),
        ({"initContainers": [{"name": "a", "resources": {"limits": {"cpu": None}}}]}, NOTHING, NOTHING),
        ({"dnsConfig": 7, "tolerations": "all"}, NOTHING, NOTHING),
        (NOTHING, {"ports": [{"name": None, "containerPort": 80}], "volumeMounts": None, "envFrom": None}, NOTHING),
        (NOTHING, limit(cpu=2, memory="16e9", disk=" 1Pi "), NOTHING),
    ],
)
def test_what_kubernetes_takes_for_nothing_and_what_nobody_reads_pass(
    pod: dict[str, Any], container: dict[str, Any], more: dict[str, Any]
) -> None:
    """A null is no fault where Kubernetes knows none; of what the loop does not read, the server judges."""
    assert parse(pod, container, more) == ""
