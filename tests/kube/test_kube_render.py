"""The pods of a running job and of its blocks: the user's template, and nothing changed but what is declared."""

import copy
import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from amdahl_loop.adapters.kube.placement import Placement
from amdahl_loop.adapters.kube.render import find_clashes
from amdahl_loop.adapters.kube.render_block import PATHS, Unfit
from amdahl_loop.adapters.kube.render_running import (
    RUNNING_PATHS,
    digest_declared,
    knob_data,
    render_job,
    render_knobs,
    render_service,
)
from amdahl_loop.domain.commands import expand
from amdahl_loop.domain.knob_values import KnobName, Knobs, environment_name
from amdahl_loop.domain.knobs import CATALOGUE, KnobKind
from amdahl_loop.domain.trackers import TRACKERS_OFF
from pod_builders import (
    PROBE,
    env_of,
    find_changes,
    is_allowed,
    make_cluster_job,
    make_request,
    make_template,
    pod_of,
    render_for,
    templates,
    trainer_in,
)

OURS = ("AMDAHL_", "MASTER_", "PET_")
EVERY_KNOB = {
    "dataloaderWorkers": (0, 2),
    "prefetchFactor": (2, 4),
    "pinMemory": (False, True),
    "persistentWorkers": (False, True),
    "checkpointEverySteps": (10, 50),
    "asyncCheckpoint": (False, True),
    "gpusPerReplica": (2, 1),
    "microBatch": (1, 8),
    "bucketMb": (25, 100),
    "compile": (False, True),
    "activationCheckpointing": ("block", "none"),
    "dataParallel": ("fsdp", "ddp"),
}
fuzzed = settings(max_examples=60)


def changes(before: Any, after: Any) -> list[str]:
    return list(find_changes(before, after))


@fuzzed
@given(template=templates(), replicas=st.sampled_from([1, 3]))
def test_the_running_job_is_the_users_template_and_the_declared_changes(
    template: dict[str, Any], replicas: int
) -> None:
    """Fuzzed templates: every difference lies in a declared path; the user's own variables and mounts are all kept."""
    job = make_cluster_job(
        copy.deepcopy(template), knobs={"dataloaderWorkers": 0, "gpusPerReplica": 2}, replicas=replicas
    )
    body = render_job(job, 0, PROBE)
    allowed = tuple(path.replace("deviceResource", "nvidia.com/gpu") for path in RUNNING_PATHS)
    assert [path for path in changes(template, body["spec"]["template"]) if not is_allowed(path, allowed)] == []
    _assert_own_kept(template, body, also_changed={"PYTHONPATH"})
    before = next(c for c in template["spec"]["containers"] if c["name"] == "trainer")
    assert [m for m in trainer_in(body)["volumeMounts"] if not m["mountPath"].startswith("/amdahl")] == before.get(
        "volumeMounts", []
    )


@fuzzed
@given(
    template=templates(), replicas=st.sampled_from([1, 3]), scratch=st.sampled_from([(), ("/checkpoints", "/out/x")])
)
def test_a_block_is_the_users_template_and_the_declared_changes(
    template: dict[str, Any], replicas: int, scratch: tuple[str, ...]
) -> None:
    """Fuzzed templates: every difference lies in a declared path, nothing shared is writable, no account is left."""
    job = make_cluster_job(
        copy.deepcopy(template),
        knobs={"dataloaderWorkers": 0, "gpusPerReplica": 2},
        replicas=replicas,
        tuning={"trial": {"scratchPaths": list(scratch)}},
    )
    request = make_request({"dataloaderWorkers": 0, "gpusPerReplica": 2}, {"dataloaderWorkers": 2, "gpusPerReplica": 1})
    body = render_for(job, request, Placement(required=("n1", "n2"), avoided=("n3",)))
    assert not isinstance(body, Unfit)
    allowed = tuple(path.replace("deviceResource", "nvidia.com/gpu") for path in PATHS)
    assert [path for path in changes(template, body["spec"]["template"]) if not is_allowed(path, allowed)] == []
    _assert_own_kept(template, body, also_changed=set(TRACKERS_OFF))
    _assert_harmless(template, body)


def _assert_own_kept(template: dict[str, Any], body: Any, also_changed: set[str]) -> None:
    """Every variable of the user's is there, in its order, and ours bear our names."""
    before = next(c for c in template["spec"]["containers"] if c["name"] == "trainer").get("env", [])
    after = trainer_in(body)["env"]
    kept = [item for item in after if item["name"] not in also_changed and not item["name"].startswith(OURS)]
    assert kept == [item for item in before if item["name"] not in also_changed]


def _assert_harmless(template: dict[str, Any], body: Any) -> None:
    pod = pod_of(body)
    private = {
        volume["name"]
        for volume in pod["volumes"]
        if set(volume) & {"emptyDir", "ephemeral", "configMap", "secret", "downwardAPI", "projected"}
    }
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        assert all(mount["name"] in private or mount["readOnly"] for mount in container.get("volumeMounts", ()))
    for volume in pod["volumes"]:
        for kind in ("persistentVolumeClaim", "nfs", "csi"):
            assert volume.get(kind, {"readOnly": True})["readOnly"] is True
    assert {"serviceAccountName", "serviceAccount", "priority", "preemptionPolicy"} & pod.keys() == set()
    assert pod["automountServiceAccountToken"] is False
    assert pod["priorityClassName"] == "amdahl-loop-trial"
    assert pod["restartPolicy"] == "Never"
    assert body["spec"]["backoffLimit"] == 0
    assert 600 < pod["activeDeadlineSeconds"] < body["spec"]["activeDeadlineSeconds"]
    names = [c["name"] for c in template["spec"]["containers"]]
    assert [c["name"] for c in pod["containers"]] == names
    for field in ("securityContext", "runtimeClassName", "tolerations", "initContainers", "nodeSelector"):
        assert (field in pod) == (field in template["spec"])


@pytest.mark.parametrize("knob", list(CATALOGUE))
def test_a_knob_touches_its_own_paths_alone(knob: KnobName) -> None:
    """S0: the ConfigMap and nothing else. S1: its variable, the devices, and what tells revisions apart."""
    before, after = EVERY_KNOB[knob]
    template = make_template(resources={"limits": {"nvidia.com/gpu": "2", "memory": "8Gi"}})
    old, new = (make_cluster_job(template, knobs={knob.value: value}) for value in (before, after))
    jobs = [render_job(job, 0, PROBE) for job in (old, new)]
    maps = [render_knobs(job, live=True, sequence=1, annotations={}) for job in (old, new)]
    if CATALOGUE[knob].kind is KnobKind.S0:
        assert changes(*jobs) == []
        assert len(changes(*maps)) == 2  # the variable and the live file
    else:
        allowed = (
            f"spec.template.spec.containers[trainer].env[{environment_name(knob)}]",
            "spec.template.spec.containers[trainer].resources.limits.nvidia.com/gpu",
            "spec.template.metadata.annotations.amdahl-loop.io/gpus-per-replica",
            "metadata.annotations.amdahl-loop.io/gpus-per-replica",
        )
        assert [path for path in changes(*jobs) if not path.startswith(allowed)] == []
        assert changes(*maps) == []


@pytest.mark.parametrize("knob", list(CATALOGUE))
def test_arms_of_a_block_differ_by_the_knob_alone(knob: KnobName) -> None:
    """The windows of both arms are alike but for arm, index, seed, offset and the knob's own variable."""
    before, after = EVERY_KNOB[knob]
    template = make_template(resources={"limits": {"nvidia.com/gpu": "2"}}, env=[{"name": "A", "value": "1"}])
    body = render_for(
        make_cluster_job(template, knobs={knob.value: before}), make_request({knob.value: before}, {knob.value: after})
    )
    a, b = read_plan(body)["windows"][:2]
    assert {key for key in a if a[key] != b[key]} == {"arm", "index", "seed", "offset", "knobs", "env"}
    names = {name for name in a["env"].keys() | b["env"].keys() if a["env"].get(name) != b["env"].get(name)}
    masks = {"CUDA_VISIBLE_DEVICES"} if knob is KnobName.GPUS_PER_REPLICA else set()
    assert names == {environment_name(knob)} | masks


def read_plan(body: Any) -> Any:
    """The plan as the supervisor reads it: after the kubelet has expanded the variable."""
    return json.loads(expand(env_of(trainer_in(body))["AMDAHL_PLAN"], {}))


def test_upgrades_of_the_operator_replace_nothing() -> None:
    """What tells revisions apart depends on the user's spec alone: not on the probe, the revision or anything rendered."""
    job = make_cluster_job()
    bodies = [render_job(job, revision, probe) for revision, probe in ((0, PROBE), (1, "amdahl-probe-new"), (1, None))]
    assert len({body["metadata"]["annotations"]["amdahl-loop.io/declared"] for body in bodies}) == 1


@pytest.mark.parametrize(
    ("change", "is_new"),
    [
        pytest.param({"knobs": {"dataloaderWorkers": 5}}, False, id="an S0 value"),
        pytest.param({"knobs": {"dataloaderWorkers": 0, "pinMemory": True}}, True, id="another knob declared"),
        pytest.param({"template": make_template(image="example/trainer:2")}, True, id="image"),
        pytest.param({"template": make_template(env=[{"name": "A", "value": "1"}])}, True, id="variable"),
        pytest.param(
            {"template": make_template({"nodeSelector": {"a": "b"}})}, True, id="a field the loop does not know"
        ),
        pytest.param({"replicas": 2}, True, id="replicas"),
        pytest.param({"tuning": {"mode": "Observe"}}, False, id="tuning"),
    ],
)
def test_what_makes_a_new_revision(change: dict[str, Any], is_new: bool) -> None:
    """Template, replicas and the set of knobs do; values that can be switched, and tuning, do not."""
    assert (digest_declared(make_cluster_job(**change)) != digest_declared(make_cluster_job())) is is_new


@pytest.mark.parametrize(
    ("own", "placed"),
    [
        pytest.param([], {"PYTHONPATH": "/amdahl/probe/probe.zip"}, id="none"),
        pytest.param(
            [{"name": "PYTHONPATH", "value": "/app:/lib"}],
            {"PYTHONPATH": "/amdahl/probe/probe.zip:/app:/lib"},
            id="the user's own follows",
        ),
        pytest.param(
            [{"name": "PYTHONPATH", "value": ""}],
            {"PYTHONPATH": "/amdahl/probe/probe.zip"},
            id="empty, no current folder",
        ),
        pytest.param(
            [{"name": "PYTHONPATH", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}],
            {
                "AMDAHL_USER_PYTHONPATH": {"configMapKeyRef": {"name": "c", "key": "k"}},
                "PYTHONPATH": "/amdahl/probe/probe.zip:$(AMDAHL_USER_PYTHONPATH)",
            },
            id="from elsewhere, put behind by the kubelet",
        ),
    ],
)
def test_the_probe_comes_first_and_the_users_path_follows(own: list[Any], placed: dict[str, Any]) -> None:
    """In the running job; a block leaves the path as it is, also where the image alone sets it: its supervisor does it."""
    job = make_cluster_job(make_template(env=own))
    env = env_of(trainer_in(render_job(job, 0, PROBE)))
    assert {name: env[name] for name in placed} == placed
    assert [item for item in trainer_in(render_for(job))["env"] if item["name"] == "PYTHONPATH"] == own


@pytest.mark.parametrize("own", [[], [{"name": "A", "value": "1"}]])
def test_a_path_that_comes_with_many_variables_follows_too(own: list[Any]) -> None:
    """`envFrom` may bring it: ours would replace it, so the kubelet puts it behind; without the probe all is as it was."""
    job = make_cluster_job(make_template(env=own, envFrom=[{"configMapRef": {"name": "settings"}}]))
    with_probe, without = (trainer_in(render_job(job, 0, probe)) for probe in (PROBE, None))
    assert env_of(with_probe)["PYTHONPATH"] == "/amdahl/probe/probe.zip:$(PYTHONPATH)"
    assert "PYTHONPATH" not in env_of(without)
    assert with_probe["envFrom"] == without["envFrom"] == [{"configMapRef": {"name": "settings"}}]


def test_without_the_probe_the_job_is_as_it_was() -> None:
    """Where the probe's ConfigMap cannot be had, no path, volume or mount of it is left."""
    body = render_job(make_cluster_job(make_template(env=[{"name": "PYTHONPATH", "value": "/app"}])), 0, None)
    assert env_of(trainer_in(body))["PYTHONPATH"] == "/app"
    assert [volume["name"] for volume in pod_of(body)["volumes"]] == ["amdahl-knobs"]


def test_a_probe_that_vanishes_stops_no_running_job_but_every_block() -> None:
    """Optional in the running job; required in a block, which is nothing without it."""
    job = make_cluster_job()
    sources = [
        next(v["configMap"] for v in pod_of(body)["volumes"] if v["name"] == "amdahl-probe")
        for body in (render_job(job, 0, PROBE), render_for(job))
    ]
    assert [source.get("optional", False) for source in sources] == [True, False]


def test_knob_variables_come_first_and_from_the_config_map() -> None:
    """`$(AMDAHL_...)` expands in the user's variables and command; what is part of the pod is fixed in it."""
    job = make_cluster_job(
        make_template(env=[{"name": "N", "value": "$(AMDAHL_GPUS_PER_REPLICA)"}]),
        knobs={"dataloaderWorkers": 2, "gpusPerReplica": 4},
    )
    env = trainer_in(render_job(job, 0, PROBE))["env"]
    assert [item["name"] for item in env[:2]] == ["AMDAHL_DATALOADER_WORKERS", "AMDAHL_GPUS_PER_REPLICA"]
    assert env[0]["valueFrom"] == {"configMapKeyRef": {"name": "pydocs-knobs", "key": "AMDAHL_DATALOADER_WORKERS"}}
    assert env[1]["value"] == "4"
    assert knob_data(job.spec.knobs) == {"AMDAHL_DATALOADER_WORKERS": "2"}


@pytest.mark.parametrize(
    ("resources", "knob", "quantities"),
    [
        pytest.param({"limits": {"nvidia.com/gpu": 4}}, 2, {"limits": {"nvidia.com/gpu": "2"}}, id="limit"),
        pytest.param(
            {"limits": {"nvidia.com/gpu": "4", "cpu": 8}, "requests": {"nvidia.com/gpu": "4"}},
            2,
            {"limits": {"nvidia.com/gpu": "2", "cpu": 8}, "requests": {"nvidia.com/gpu": "2"}},
            id="both, and nothing beside",
        ),
        pytest.param({"limits": {"cpu": "8"}}, 2, {"limits": {"cpu": "8"}}, id="a CPU job requests none"),
        pytest.param({"limits": {"nvidia.com/gpu": 4}}, None, {"limits": {"nvidia.com/gpu": 4}}, id="no knob"),
    ],
)
def test_the_device_quantity_follows_the_knob(resources: Any, knob: int | None, quantities: Any) -> None:
    """Where the template requests devices, and only there."""
    knobs = {} if knob is None else {"gpusPerReplica": knob}
    job = make_cluster_job(make_template(resources=resources), knobs=knobs)
    assert trainer_in(render_job(job, 0, PROBE))["resources"] == quantities


def test_a_block_holds_the_larger_arms_devices_and_hides_the_rest() -> None:
    """Four devices for an arm of four and one of two: the smaller arm sees the first two."""
    job = make_cluster_job(make_template(resources={"limits": {"nvidia.com/gpu": 4}}), knobs={"gpusPerReplica": 4})
    body = render_for(job, make_request({"gpusPerReplica": 4}, {"gpusPerReplica": 2}))
    assert trainer_in(body)["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert body["metadata"]["annotations"]["amdahl-loop.io/devices"] == "4"
    visible = [window["env"].get("CUDA_VISIBLE_DEVICES") for window in read_plan(body)["windows"]]
    assert visible == [None, "0,1", "0,1", None]


@pytest.mark.parametrize(
    ("volume", "why"),
    [
        pytest.param({"hostPath": {"path": "/"}}, "hostPath", id="the node's files"),
        pytest.param({"vsphereVolume": {"volumePath": "x"}}, "vsphereVolume", id="no read-only of its own"),
        pytest.param({"quantumFoam": {}}, "quantumFoam", id="a kind nobody knows"),
        pytest.param({"emptyDir": {}, "nfs": {}}, "emptyDir, nfs", id="two at once"),
        pytest.param({}, "no kind", id="none"),
    ],
)
def test_a_volume_that_cannot_be_closed_is_refused(volume: dict[str, Any], why: str) -> None:
    """What is not known to be harmless is not harmless."""
    body = render_for(make_cluster_job(make_template({"volumes": [{"name": "v", **volume}]})))
    assert isinstance(body, Unfit)
    assert why in body.why


def test_what_is_null_is_as_if_it_were_not_there() -> None:
    """As Kubernetes takes it: the running job and a block are what they are without those words."""
    nulls = make_template(
        {"volumes": [{"name": "v", "projected": None}], "restartPolicy": None, "affinity": None}, volumeMounts=None
    )
    plain = make_template({"volumes": [{"name": "v", "projected": None}]})
    written, left_out = make_cluster_job(nulls | {"metadata": None}), make_cluster_job(plain)
    assert render_job(written, 0, PROBE)["spec"]["podFailurePolicy"]
    assert pod_of(render_job(written, 0, PROBE)) == pod_of(render_job(left_out, 0, PROBE)) | {"affinity": None}
    assert pod_of(render_for(written)) == pod_of(render_for(left_out))
    for body in (render_job(written, 0, PROBE), render_for(written)):
        assert not isinstance(body, Unfit)
        assert body["spec"]["template"]["metadata"]["labels"]["amdahl-loop.io/job"] == "pydocs"


def test_raw_block_devices_are_refused() -> None:
    """A device file cannot be closed like a folder."""
    pod = {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}
    body = render_for(make_cluster_job(make_template(pod, volumeDevices=[{"name": "v", "devicePath": "/dev/x"}])))
    assert isinstance(body, Unfit)
    assert "volumeDevices" in body.why


def test_scratch_paths_lie_on_storage_of_the_trials_own() -> None:
    """The user's claim makes way at that very path, stays read-only elsewhere, and the supervisor can empty the folder."""
    pod = {"volumes": [{"name": "ckpt", "persistentVolumeClaim": {"claimName": "ckpt"}}]}
    mounts = [{"name": "ckpt", "mountPath": "/checkpoints/"}, {"name": "ckpt", "mountPath": "/old"}]
    job = make_cluster_job(
        make_template(pod, volumeMounts=mounts, workingDir="/app"),
        tuning={"trial": {"scratchPaths": ["/checkpoints", "out"]}},
    )
    body = render_for(job)
    seen = {mount["mountPath"]: mount for mount in trainer_in(body)["volumeMounts"]}
    assert seen["/checkpoints"] == {
        "name": "amdahl-scratch",
        "mountPath": "/checkpoints",
        "readOnly": False,
        "subPath": "scratch/0",
    }
    assert seen["/app/out"]["subPath"] == "scratch/1"
    assert seen["/old"]["readOnly"] is True
    assert "/checkpoints/" not in seen
    assert read_plan(body)["scratch_paths"] == ["/amdahl/run/scratch/0", "/amdahl/run/scratch/1"]


def test_scratch_of_a_storage_class_comes_and_goes_with_the_pod() -> None:
    """Cadence is judged on the storage that its owner names."""
    job = make_cluster_job(tuning={"trial": {"scratchPaths": ["/out"], "scratchStorageClass": "fast"}})
    scratch = next(v for v in pod_of(render_for(job))["volumes"] if v["name"] == "amdahl-scratch")
    claim = scratch["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["accessModes"]) == ("fast", ["ReadWriteOnce"])


@pytest.mark.parametrize(
    ("volumes", "storage_class", "is_fit"),
    [
        pytest.param(
            [{"name": "c", "persistentVolumeClaim": {"claimName": "c"}}], None, False, id="a claim, no class named"
        ),
        pytest.param(
            [{"name": "c", "persistentVolumeClaim": {"claimName": "c"}}], "fast", True, id="a claim, its class named"
        ),
        pytest.param([{"name": "c", "emptyDir": {}}], None, True, id="nothing that outlives the pod"),
    ],
)
def test_cadence_is_never_judged_on_a_nodes_own_disk(volumes: Any, storage_class: str | None, is_fit: bool) -> None:
    """Where the job's checkpoints may lie on shared storage, the trial's have to lie on the same class."""
    trial = {"scratchPaths": ["/out"]} | ({"scratchStorageClass": storage_class} if storage_class else {})
    job = make_cluster_job(make_template({"volumes": volumes}), tuning={"trial": trial})
    request = make_request({"checkpointEverySteps": 10}, {"checkpointEverySteps": 50})
    saving = tuple(window.model_copy(update={"save_every": 10}) for window in request.windows)
    body = render_for(job, request.model_copy(update={"windows": saving}))
    assert isinstance(body, Unfit) is not is_fit
    assert not isinstance(render_for(job, request), Unfit)


@pytest.mark.parametrize(
    ("path", "why"),
    [("out", "no workingDir"), ("/", "not a folder"), ("/amdahl/x", "not a folder"), ("/a/..", "not a folder")],
)
def test_scratch_paths_that_cannot_be(path: str, why: str) -> None:
    """Each is refused with its fix."""
    body = render_for(make_cluster_job(tuning={"trial": {"scratchPaths": [path]}}))
    assert isinstance(body, Unfit)
    assert why in body.why


def test_labels_of_the_user_do_not_follow_into_a_trial() -> None:
    """But for the queue, and never with the queue's priority; no finalizer keeps a trial from going."""
    queue = {"kueue.x-k8s.io/queue-name": "q", "kueue.x-k8s.io/priority-class": "high", "app": "x"}
    metadata = {"labels": queue, "annotations": {"keep": "me"}, "finalizers": ["example.com/hold"]}
    template = make_template() | {"metadata": metadata}
    body = render_for(make_cluster_job(template, labels=queue))
    ours = {
        "amdahl-loop.io/job": "pydocs",
        "amdahl-loop.io/experiment": "pydocs-0123456789",
        "amdahl-loop.io/stage": "discovery",
        "kueue.x-k8s.io/queue-name": "q",
    }
    assert body["metadata"]["labels"] == ours
    assert body["spec"]["template"]["metadata"] == {"labels": ours, "annotations": {"keep": "me"}}


def test_a_trial_has_no_identity() -> None:
    """Tokens and certificates of the pod are left out of its volumes; what else is projected stays, and so do mounts."""
    sources = [
        {"serviceAccountToken": {"path": "token"}},
        {"configMap": {"name": "c"}},
        {"secret": {"name": "s"}},
        {"podCertificate": {"keyType": "ED25519", "signerName": "example.com/me"}},
    ]
    volumes = [{"name": "v", "projected": {"sources": sources}}, {"name": "w", "projected": {"defaultMode": 0o400}}]
    mounts = [{"name": "v", "mountPath": "/var/run/secrets/me"}]
    template = make_template({"volumes": volumes}, volumeMounts=mounts)
    pod = pod_of(render_for(make_cluster_job(template)))
    assert pod["volumes"][0]["projected"] == {"sources": [{"configMap": {"name": "c"}}, {"secret": {"name": "s"}}]}
    assert pod["volumes"][1]["projected"] == {"defaultMode": 0o400}
    assert mounts[0] in trainer_in({"spec": {"template": {"spec": pod}}})["volumeMounts"]
    running = pod_of(render_job(make_cluster_job(template), 0, PROBE))
    assert running["volumes"][0]["projected"]["sources"] == sources


def test_the_jobs_own_labels_follow_where_they_name_a_queue() -> None:
    """The running Job is the user's: it keeps its queue and its priority there, and no tracking label."""
    labels = {
        "kueue.x-k8s.io/queue-name": "q",
        "kueue.x-k8s.io/priority-class": "high",
        "argocd.argoproj.io/instance": "a",
    }
    assert render_job(make_cluster_job(labels=labels), 3, PROBE)["metadata"]["labels"] == {
        "amdahl-loop.io/job": "pydocs",
        "amdahl-loop.io/revision": "3",
        "kueue.x-k8s.io/queue-name": "q",
        "kueue.x-k8s.io/priority-class": "high",
    }


def test_what_watches_the_users_process_is_dropped_with_it() -> None:
    """A liveness probe would kill the supervisor between two windows; a sidecar keeps its own."""
    watch = {"livenessProbe": {"tcpSocket": {"port": 1}}, "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}
    template = make_template(**watch, args=["--epochs", "3"])
    template["spec"]["containers"].append({"name": "sidecar", "image": "s", **watch})
    body = render_for(make_cluster_job(template))
    trainer, sidecar = pod_of(body)["containers"]
    assert {"livenessProbe", "lifecycle", "args"} & trainer.keys() == set()
    assert watch.items() <= sidecar.items()
    assert trainer["command"] == ["python3", "-S", "/amdahl/probe/probe.zip", "--plan-env", "AMDAHL_PLAN"]
    assert read_plan(body)["command"] == ["python", "train.py", "--epochs", "3"]


def test_the_summary_goes_where_the_kubelet_reads_it() -> None:
    """The container's own path for termination messages, where the user chose one."""
    own = render_for(make_cluster_job(make_template(terminationMessagePath="/tmp/m")))
    default = render_for(make_cluster_job())
    found = [env_of(trainer_in(body))["AMDAHL_TERMINATION_LOG"] for body in (own, default)]
    assert found == ["/tmp/m", "/dev/termination-log"]


def test_ranks_of_several_pods_find_each_other() -> None:
    """One host, a node rank from the index, and for each window of a block another port and meeting."""
    job = make_cluster_job(replicas=3)
    running = env_of(trainer_in(render_job(job, 2, PROBE)))
    assert running["MASTER_ADDR"] == "pydocs-r2-0.pydocs-ranks"
    assert running["PET_NNODES"] == "3"
    assert "completion-index" in running["PET_NODE_RANK"]["fieldRef"]["fieldPath"]
    body = render_for(job)
    assert pod_of(body)["subdomain"] == "pydocs-ranks"
    windows = read_plan(body)["windows"]
    assert len({window["env"]["MASTER_PORT"] for window in windows}) == 4
    assert len({window["env"]["PET_RDZV_ID"] for window in windows}) == 4
    assert read_plan(body)["env"]["MASTER_ADDR"] == "pydocs-0123456789-d0-0.pydocs-ranks"
    assert render_service(job)["spec"]["selector"] == {"amdahl-loop.io/job": "pydocs"}


def test_a_job_of_one_pod_gets_no_rendezvous() -> None:
    """Programs that look for MASTER_ADDR find what they found before."""
    env = env_of(trainer_in(render_job(make_cluster_job(), 0, PROBE)))
    assert {name for name in env if name.startswith(("MASTER_", "PET_"))} == set()


@pytest.mark.parametrize(
    ("template", "line"),
    [
        pytest.param(make_template(env=[{"name": "AMDAHL_SEED", "value": "1"}]), "env AMDAHL_SEED", id="variable"),
        pytest.param(make_template({"volumes": [{"name": "amdahl-probe"}]}), "volumes amdahl-probe", id="volume"),
        pytest.param(
            make_template(volumeMounts=[{"name": "v", "mountPath": "/amdahl/run"}]),
            "volumeMounts /amdahl/run",
            id="mount",
        ),
        pytest.param(
            make_template() | {"metadata": {"labels": {"amdahl-loop.io/experiment": "mine"}}},
            "metadata.labels amdahl-loop.io/experiment",
            id="label: trials of others would keep away from the pod's node",
        ),
        pytest.param(
            make_template() | {"metadata": {"annotations": {"amdahl-loop.io/declared": "0"}}},
            "metadata.annotations amdahl-loop.io/declared",
            id="annotation",
        ),
    ],
)
def test_names_that_are_the_loops_own_are_refused(template: dict[str, Any], line: str) -> None:
    """Each with its fix."""
    (clash,) = find_clashes(make_cluster_job(template))
    assert line in clash


@fuzzed
@given(template=templates())
def test_a_template_survives_being_read(template: dict[str, Any]) -> None:
    """What the user wrote is what is rendered from: reading and writing a template changes nothing."""
    assume("image" in template["spec"]["containers"][0])
    job = make_cluster_job(copy.deepcopy(template), knobs={})
    assert job.spec.template.model_dump(mode="json", by_alias=True, exclude_unset=True) == template


def test_knobs_are_read_back_from_the_variables() -> None:
    """The ConfigMap's names are the supervisor's and the probe's: a boolean is 0 or 1."""
    knobs = Knobs.model_validate({"pinMemory": True, "persistentWorkers": False})
    assert knob_data(knobs) == {"AMDAHL_PIN_MEMORY": "1", "AMDAHL_PERSISTENT_WORKERS": "0"}
