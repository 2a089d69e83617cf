"""Pod templates of every kind, blocks to render, and what a server and kubelets say of Jobs and pods."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from amdahl_loop.adapters.kube.placement import Placement
from amdahl_loop.adapters.kube.render_block import Unfit, render_block
from amdahl_loop.domain.children import read_run
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import RunRequest, WindowRequest
from amdahl_loop.domain.telemetry import Arm

EXPERIMENT = "pydocs-0123456789"
RUN = f"{EXPERIMENT}-d0"
UID = "11111111-2222-3333-4444-555555555555"
PROBE = "amdahl-probe-0123456789"


def make_cluster_job(
    template: Mapping[str, Any] | None = None,
    knobs: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    name: str = "pydocs",
    **spec: Any,
) -> TrainingJob:
    """A job as it is read from a server: with namespace and UID."""
    return parse_training_job(
        {
            "apiVersion": "amdahl-loop.io/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": "team", "uid": UID, "labels": dict(labels or {})},
            "spec": {
                "template": dict(template) if template else make_template(),
                "knobs": {"dataloaderWorkers": 0} if knobs is None else dict(knobs),
                **spec,
            },
        }
    )


def make_template(pod: Mapping[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
    """A pod template with a trainer; further fields of the container and of the pod as given."""
    container = {"name": "trainer", "image": "example/trainer:1", "command": ["python", "train.py"]} | trainer
    return {"spec": {"containers": [container], **(pod or {})}}


def make_request(before: Mapping[str, Any], after: Mapping[str, Any], run: str = RUN, live: bool = False) -> RunRequest:
    """An ABBA block of two sets of knobs."""
    arms = {Arm.BASELINE: Knobs.model_validate(dict(before)), Arm.VARIANT: Knobs.model_validate(dict(after))}
    windows = tuple(
        WindowRequest(
            arm=arm,
            index=index,
            knobs=arms[arm],
            seed=7 + index,
            offset=4096 * index,
            warmup_s=1.0,
            warmup_steps=3,
            measure_s=2.0,
            min_steps=8,
        )
        for index, arm in enumerate((Arm.BASELINE, Arm.VARIANT, Arm.VARIANT, Arm.BASELINE))
    )
    return RunRequest(
        run=run,
        plan_hash="0123456789abcdef",
        live=live,
        windows=windows,
        startup_timeout_s=180,
        step_timeout_s=60,
        deadline_s=600,
    )


def render_for(
    job: TrainingJob, request: RunRequest | None = None, placement: Placement | None = None
) -> dict[str, Any] | Unfit:
    """The Job of a block of this job."""
    request = request or make_request({"dataloaderWorkers": 0}, {"dataloaderWorkers": 2})
    block = read_run(request.run)
    assert block is not None
    return render_block(job, request, block, "experiment-uid", PROBE, placement or Placement())


def pod_of(body: Any) -> dict[str, Any]:
    """The pod spec of a rendered Job."""
    pod: dict[str, Any] = body["spec"]["template"]["spec"]
    return pod


def trainer_in(body: Any) -> dict[str, Any]:
    """The trainer of a rendered Job."""
    return next(c for c in pod_of(body)["containers"] if c["name"] == "trainer")


def env_of(container: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a container by name: the value, or where it comes from."""
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container.get("env", ())}


# --- differences ----------------------------------------------------------------------------------------------------------


def find_changes(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Paths at which two documents differ; items of lists are told by mount path or name, else by number."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _compare(before, after, key, f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(after, list):
        old, new = _keyed(before), _keyed(after)
        for key in sorted(old.keys() | new.keys()):
            yield from _compare(old, new, key, f"{path}[{key}]")
    elif before != after or type(before) is not type(after):
        yield path


def _compare(before: dict[str, Any], after: dict[str, Any], key: str, path: str) -> Iterator[str]:
    """What is missing on one side counts as empty, so that its parts are told one by one."""
    present = before.get(key) if key in before else after.get(key)
    is_whole = key in before and key in after
    if is_whole or (isinstance(present, dict | list) and present):
        empty = type(present)() if isinstance(present, dict | list) else None
        yield from find_changes(before.get(key, empty), after.get(key, empty), path)
    else:
        yield path


def _keyed(items: list[Any]) -> dict[str, Any]:
    def key(at: int, item: Any) -> str:
        if isinstance(item, dict):
            return str(item.get("mountPath") or item.get("name") or at)
        return str(at)

    return {key(at, item): item for at, item in enumerate(items)}


def is_allowed(path: str, allowed: tuple[str, ...]) -> bool:
    """Whether a path is one of these or lies below one; `[]` is any item, `*` any one name."""
    return any(re.match(f"{_pattern(entry)}($|[.\\[])", path) for entry in allowed)


def _pattern(entry: str) -> str:
    return re.escape(entry).replace(r"\[\]", r"\[[^\]]*\]").replace(r"\*", r"[^.\[\]]*")


# --- templates of every kind ----------------------------------------------------------------------------------------------

words = st.sampled_from(["a", "data", "b-2", "model", "cache", "x0", "a-rather-long-name", "logs"])
texts = st.text(st.sampled_from(list("ab $(){}\"\\'%=-/é")), max_size=12)
variable_names = st.sampled_from(["A", "B", "HOME", "DATA_DIR", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "N_1", "OMP"])
quantities = st.sampled_from(["1", "2", "500m", "8Gi", 4, "1e3"])
paths = st.sampled_from(["/data", "/a/b", "/checkpoints", "/model/x0", "/out/x", "/out", "/dev/shm"])

_SOURCES: dict[str, st.SearchStrategy[Any]] = {
    "emptyDir": st.sampled_from([{}, {"medium": "Memory"}]),
    "configMap": st.builds(lambda name: {"name": name}, words),
    "secret": st.builds(lambda name: {"secretName": name}, words),
    "projected": st.just({"sources": [{"configMap": {"name": "c"}}]}),
    "downwardAPI": st.just({"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}),
    "persistentVolumeClaim": st.builds(
        lambda n, r: {"claimName": n} | r, words, st.sampled_from([{}, {"readOnly": False}])
    ),
    "nfs": st.just({"server": "nas", "path": "/data"}),
    "csi": st.just({"driver": "bucket.example", "volumeAttributes": {"bucket": "b"}}),
    "ephemeral": st.just({"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}),
    "image": st.just({"reference": "example/model:1"}),
}


@st.composite
def volumes(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Volumes of all kinds that can be closed."""
    names = draw(st.lists(words, unique=True, max_size=5))
    kinds = [draw(st.sampled_from(sorted(_SOURCES))) for _ in names]
    return [{"name": name, kind: draw(_SOURCES[kind])} for name, kind in zip(names, kinds, strict=True)]


def _mounts(names: list[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    if not names:
        return st.just([])
    one = st.builds(
        lambda name, path, more: {"name": name, "mountPath": path} | more,
        st.sampled_from(names),
        paths,
        st.sampled_from([{}, {"readOnly": True}, {"readOnly": False}, {"subPath": "sub"}]),
    )
    return st.lists(one, max_size=4, unique_by=lambda mount: mount["mountPath"])


_variables = st.one_of(
    st.builds(lambda n, v: {"name": n, "value": v}, variable_names, texts),
    st.builds(lambda n, v: {"name": n, "value": f"$({v})/x"}, variable_names, variable_names),
    st.builds(lambda n: {"name": n, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, variable_names),
    st.sampled_from(
        [
            {"name": "PYTHONPATH", "value": "/app"},
            {"name": "PYTHONPATH", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
            {"name": "WANDB_MODE", "value": "online"},
        ]
    ),
)

_EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "workingDir": paths,
        "args": st.lists(texts, max_size=3),
        "ports": st.just([{"containerPort": 8080, "name": "web"}]),
        "securityContext": st.sampled_from(
            [{"runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}, {"readOnlyRootFilesystem": True}]
        ),
        "livenessProbe": st.just({"httpGet": {"path": "/", "port": 8080}}),
        "startupProbe": st.just({"exec": {"command": ["true"]}}),
        "lifecycle": st.just({"preStop": {"exec": {"command": ["sync"]}}}),
        "terminationMessagePath": st.just("/tmp/message"),
        "imagePullPolicy": st.sampled_from(["Always", "Never"]),
        "resizePolicy": st.just([{"resourceName": "cpu", "restartPolicy": "NotRequired"}]),
    },
)
_RESOURCES = st.fixed_dictionaries(
    {},
    optional={
        "limits": st.dictionaries(st.sampled_from(["nvidia.com/gpu", "memory", "cpu", "example.com/nic"]), quantities),
        "requests": st.dictionaries(st.sampled_from(["nvidia.com/gpu", "memory", "cpu"]), quantities),
    },
)
_POD_EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "restartPolicy": st.sampled_from(["Never", "OnFailure", "Always"]),
        "serviceAccountName": words,
        "serviceAccount": words,
        "automountServiceAccountToken": st.booleans(),
        "priorityClassName": words,
        "priority": st.integers(0, 1000),
        "preemptionPolicy": st.just("PreemptLowerPriority"),
        "nodeSelector": st.dictionaries(words, words, max_size=2),
        "tolerations": st.just([{"operator": "Exists"}]),
        "securityContext": st.just({"runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}),
        "terminationGracePeriodSeconds": st.integers(0, 3600),
        "activeDeadlineSeconds": st.integers(1, 100000),
        "subdomain": words,
        "hostname": words,
        "dnsPolicy": st.just("ClusterFirst"),
        "runtimeClassName": words,
        "imagePullSecrets": st.just([{"name": "registry"}]),
        "topologySpreadConstraints": st.just(
            [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]
        ),
        "schedulingGates": st.just([{"name": "example.com/wait"}]),
        "affinity": st.sampled_from(
            [
                {},
                {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [
                                {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
                                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
                            ]
                        }
                    }
                },
                {
                    "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "rack"}]},
                    "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "host"}]},
                },
            ]
        ),
        "someFutureField": st.just({"deep": [1, {"x": None}]}),
    },
)


@st.composite
def templates(draw: st.DrawFn) -> dict[str, Any]:
    """Pod templates with sidecars, init containers, volumes, variables and fields that the loop knows nothing of."""
    made = draw(volumes())
    names = [volume["name"] for volume in made]
    env = draw(st.lists(_variables, max_size=5, unique_by=lambda item: item["name"]))
    trainer = {
        "name": "trainer",
        "image": "example/trainer:1",
        "command": draw(st.lists(texts, min_size=1, max_size=4)),
    }
    trainer |= draw(_EXTRAS)
    optional: dict[str, Any] = {
        "env": env,
        "resources": draw(_RESOURCES),
        "volumeMounts": draw(_mounts(names)),
    }
    trainer |= {key: value for key, value in optional.items() if value or draw(st.booleans())}
    sidecar = {"name": "sidecar", "image": "example/sidecar:1", "volumeMounts": draw(_mounts(names))} | draw(_EXTRAS)
    init = {
        "name": "fetch",
        "image": "example/fetch:1",
        "volumeMounts": draw(_mounts(names)),
        "restartPolicy": "Always",
    }
    pod: dict[str, Any] = {"containers": draw(st.permutations([trainer, sidecar][: draw(st.integers(1, 2))]))}
    pod |= {"volumes": made} if made else {}
    pod |= {"initContainers": [init]} if draw(st.booleans()) else {}
    metadata = draw(
        st.sampled_from(
            [
                None,
                {"labels": {"app": "x", "kueue.x-k8s.io/queue-name": "q"}, "annotations": {"note": "y"}},
                {"labels": {"argocd.argoproj.io/instance": "app"}},
            ]
        )
    )
    return {"spec": pod | draw(_POD_EXTRAS)} | ({"metadata": metadata} if metadata else {})
