"""Which values render which objects, and what do these say? No server: real Helm renders, a truth table reads."""

from typing import Any

import pytest

from chart.helm import CHART, HelmError, Manifests, read_values, render, run_helm

pytestmark = pytest.mark.slow  # the first run builds Helm

CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "PriorityClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
NAMESPACED = {"Deployment", "NetworkPolicy", "Role", "RoleBinding", "Service", "ServiceAccount"}
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
POLICIES = ("labels", "ledger", "operator-children", "operator-trainingjobs", "trainingjobs", "trial-pods", "trials")

NAMESPACED_SCOPE = {"scope": "Namespaced"}
ADMIN_PART = {"operator": {"enabled": False}}
TEAM_OPERATORS = {
    "namespacedOperators": [{"namespace": "team-a"}, {"namespace": "team-b", "namespaces": ["team-a", "team-b"]}]
}
TWO_TEAMS = {"watchNamespaces": ["team-a", "team-b"]}
TRIALS_CUT_OFF = {"trials": {"networkPolicy": {"enabled": True}}}
TRIALS_CAPPED = {"trials": {"quota": {"hard": {"pods": 4}}}}
WITHOUT_POLICIES = TWO_TEAMS | {"admission": {"enabled": False}}


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        pytest.param(
            {}, CLUSTER_SCOPED - {"CustomResourceDefinition"} | NAMESPACED - {"Role", "RoleBinding"}, id="cluster"
        ),
        pytest.param(
            TWO_TEAMS,
            CLUSTER_SCOPED - {"CustomResourceDefinition", "ClusterRoleBinding"} | NAMESPACED - {"Role"},
            id="cluster, namespaces named: no right anywhere else",
        ),
        pytest.param(NAMESPACED_SCOPE, NAMESPACED, id="namespaced: nothing that an administrator must install"),
        pytest.param(
            ADMIN_PART,
            CLUSTER_SCOPED - {"CustomResourceDefinition", "ClusterRoleBinding"},
            id="the administrator's part alone",
        ),
        pytest.param(
            ADMIN_PART | {"crds": {"enabled": True}},
            CLUSTER_SCOPED - {"ClusterRoleBinding"},
            id="the administrator's part with definitions",
        ),
        pytest.param(ADMIN_PART | NAMESPACED_SCOPE, set(), id="neither part"),
    ],
)
def test_scope_decides_which_kinds_are_rendered(values: dict[str, Any], kinds: set[str]) -> None:
    """Cluster-scoped objects come with scope Cluster, the operator's with operator.enabled, and nothing else does."""
    assert render(values).kinds == kinds


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        (WITHOUT_POLICIES, "ValidatingAdmissionPolicy", []),
        (WITHOUT_POLICIES, "ValidatingAdmissionPolicyBinding", []),
        (ADMIN_PART | {"admission": {"enabled": False}}, "ValidatingAdmissionPolicy", []),
        ({}, "ValidatingAdmissionPolicy", [f"amdahl-loop-{suffix}" for suffix in POLICIES]),
        ({}, "ValidatingAdmissionPolicyBinding", [f"amdahl-loop-{suffix}" for suffix in POLICIES]),
        ({"rbac": {"create": False}}, "ClusterRole", ["amdahl-loop-admin", "amdahl-loop-edit", "amdahl-loop-view"]),
        ({"rbac": {"aggregate": False}}, "ClusterRole", ["amdahl-loop-operator"]),
        ({"rbac": {"create": False}}, "ClusterRoleBinding", []),
        (NAMESPACED_SCOPE, "Role", ["amdahl-system/amdahl-loop-operator"]),
        (NAMESPACED_SCOPE | TWO_TEAMS, "Role", ["team-a/amdahl-loop-operator", "team-b/amdahl-loop-operator"]),
        (NAMESPACED_SCOPE | TWO_TEAMS, "RoleBinding", ["team-a/amdahl-loop-operator", "team-b/amdahl-loop-operator"]),
        (TWO_TEAMS, "RoleBinding", ["team-a/amdahl-loop-operator", "team-b/amdahl-loop-operator"]),
        (NAMESPACED_SCOPE | {"rbac": {"create": False}}, "Role", []),
        (ADMIN_PART | TEAM_OPERATORS, "RoleBinding", ["team-a/amdahl-loop-operator", "team-b/amdahl-loop-operator"]),
        (ADMIN_PART | TEAM_OPERATORS, "ClusterRoleBinding", []),
        (ADMIN_PART | TEAM_OPERATORS, "ClusterRole", ["amdahl-loop-admin", "amdahl-loop-edit", "amdahl-loop-operator", "amdahl-loop-view"]),
        (ADMIN_PART | TEAM_OPERATORS | {"rbac": {"create": False}}, "RoleBinding", []),
        (ADMIN_PART, "ClusterRole", ["amdahl-loop-admin", "amdahl-loop-edit", "amdahl-loop-view"]),
        ({"trials": {"priorityClass": {"create": False}}}, "PriorityClass", []),
        ({"networkPolicy": {"enabled": False}}, "NetworkPolicy", []),
        ({"serviceAccount": {"create": False}}, "ServiceAccount", []),
        ({}, "ResourceQuota", []),
        (NAMESPACED_SCOPE | TRIALS_CAPPED, "ResourceQuota", ["amdahl-system/amdahl-loop-trials"]),
        (TWO_TEAMS | TRIALS_CAPPED, "ResourceQuota", ["team-a/amdahl-loop-trials", "team-b/amdahl-loop-trials"]),
        (ADMIN_PART | TEAM_OPERATORS | TRIALS_CAPPED, "ResourceQuota", ["team-a/amdahl-loop-trials", "team-b/amdahl-loop-trials"]),
        ({"watchNamespaces": ["team-c"]} | TEAM_OPERATORS | TRIALS_CAPPED, "ResourceQuota", ["team-a/amdahl-loop-trials", "team-b/amdahl-loop-trials", "team-c/amdahl-loop-trials"]),
        (ADMIN_PART | TEAM_OPERATORS | {"trials": {"quota": {"hard": {"pods": 4}, "namespaces": ["team-b"]}}}, "ResourceQuota", ["team-b/amdahl-loop-trials"]),
        ({"trials": {"quota": {"hard": {"pods": 4}, "namespaces": ["team-c"]}}}, "ResourceQuota", ["team-c/amdahl-loop-trials"]),
        (TWO_TEAMS | TRIALS_CUT_OFF, "NetworkPolicy", ["amdahl-system/amdahl-loop", "team-a/amdahl-loop-trials", "team-b/amdahl-loop-trials"]),
        (NAMESPACED_SCOPE | TRIALS_CUT_OFF, "NetworkPolicy", ["amdahl-system/amdahl-loop", "amdahl-system/amdahl-loop-trials"]),
        ({"trials": {"networkPolicy": {"enabled": True, "namespaces": ["team-c"]}}}, "NetworkPolicy", ["amdahl-system/amdahl-loop", "team-c/amdahl-loop-trials"]),
        (ADMIN_PART | TEAM_OPERATORS | TRIALS_CUT_OFF, "NetworkPolicy", ["team-a/amdahl-loop-trials", "team-b/amdahl-loop-trials"]),
        (ADMIN_PART | TEAM_OPERATORS, "NetworkPolicy", []),
        ({"networkPolicy": {"jobNamespaces": ["team-a"]}}, "NetworkPolicy", ["amdahl-system/amdahl-loop", "team-a/amdahl-loop-jobs"]),
        ({}, "PodDisruptionBudget", []),
        ({}, "Secret", []),
        ({"monitoring": {"serviceMonitor": {"enabled": True}}}, "ServiceMonitor", ["amdahl-system/amdahl-loop"]),
        ({"monitoring": {"podMonitor": {"enabled": True}}}, "PodMonitor", ["amdahl-system/amdahl-loop-jobs"]),
        ({"monitoring": {"prometheusRule": {"enabled": True}}}, "PrometheusRule", ["amdahl-system/amdahl-loop"]),
        ({"monitoring": {"grafanaDashboard": {"enabled": True}}}, "ConfigMap", ["amdahl-system/amdahl-loop-dashboard"]),
        ({"extraObjects": ["{apiVersion: v1, kind: ConfigMap, metadata: {name: '{{ .Release.Name }}-own'}}"]}, "ConfigMap", ["amdahl-loop-own"]),
        (NAMESPACED_SCOPE | {"crds": {"enabled": True}}, "CustomResourceDefinition", []),
        ({"crds": {"enabled": True}}, "CustomResourceDefinition", ["experiments.amdahl-loop.io", "trainingjobs.amdahl-loop.io", "tuningpolicies.amdahl-loop.io"]),
    ],
)  # fmt: skip
def test_a_value_decides_which_objects_are_rendered(values: dict[str, Any], kind: str, names: list[str]) -> None:
    """Each switch adds or removes exactly its objects."""
    assert render(values).names(kind) == names


@pytest.mark.parametrize(
    ("values", "variable", "value"),
    [
        ({}, "AMDAHL_LOOP_NAMESPACES", ""),
        (TWO_TEAMS, "AMDAHL_LOOP_NAMESPACES", "team-a,team-b"),
        (NAMESPACED_SCOPE, "AMDAHL_LOOP_NAMESPACES", "amdahl-system"),
        (NAMESPACED_SCOPE | TWO_TEAMS, "AMDAHL_LOOP_NAMESPACES", "team-a,team-b"),
        ({}, "AMDAHL_LOOP_TRIALS", "true"),
        ({"trials": {"enabled": False}}, "AMDAHL_LOOP_TRIALS", "false"),
        (WITHOUT_POLICIES, "AMDAHL_LOOP_TRIALS", "false"),
        (WITHOUT_POLICIES, "AMDAHL_LOOP_NAMESPACES", "team-a,team-b"),
        (TWO_TEAMS | {"admission": {"enabled": False, "installedByAdmin": True}}, "AMDAHL_LOOP_TRIALS", "false"),
        (NAMESPACED_SCOPE, "AMDAHL_LOOP_TRIALS", "false"),
        (NAMESPACED_SCOPE | {"admission": {"installedByAdmin": True}}, "AMDAHL_LOOP_TRIALS", "true"),
        ({"trials": {"parallel": 10000}}, "AMDAHL_LOOP_PARALLEL_TRIALS", "10000"),
        ({"workers": 200}, "AMDAHL_LOOP_WORKERS", "200"),
        ({"log": {"format": "plain"}}, "AMDAHL_LOOP_LOG_FORMAT", "plain"),
        ({"metrics": {"port": 9090}}, "AMDAHL_LOOP_METRICS_PORT", "9090"),
        ({"health": {"port": 9091}}, "AMDAHL_LOOP_HEALTH_PORT", "9091"),
        ({"extraEnv": [{"name": "HTTPS_PROXY", "value": "p"}]}, "HTTPS_PROXY", "p"),
    ],
)  # fmt: skip
def test_a_value_reaches_the_operator_as_a_variable(values: dict[str, Any], variable: str, value: str) -> None:
    """Settings are environment variables; without the policies trials are off, whatever else is said."""
    assert render(values).env[variable] == value


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "amdahl-loop/operator:0.1.0"),
        ({"image": {"tag": "dev"}}, "amdahl-loop/operator:dev"),
        ({"image": {"registry": "registry.example.com:5000", "repository": "ml/op", "tag": "1"}}, "registry.example.com:5000/ml/op:1"),
        ({"image": {"tag": "1", "digest": "sha256:" + "a" * 64}}, "amdahl-loop/operator@sha256:" + "a" * 64),
    ],
)  # fmt: skip
def test_the_image_is_put_together_from_its_parts(values: dict[str, Any], image: str) -> None:
    """A digest wins over a tag; the default tag is the chart's appVersion."""
    assert render(values).container["image"] == image


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("amdahl-loop", {}, "amdahl-loop"),
        ("ml", {}, "ml-amdahl-loop"),
        ("ml", {"nameOverride": "tuner"}, "ml-tuner"),
        ("ml", {"fullnameOverride": "tuner"}, "tuner"),
        ("r" * 53, {}, "r" * 40),
    ],
)
def test_names_follow_the_release_and_stay_short(release: str, values: dict[str, Any], name: str) -> None:
    """Two releases do not collide, and no name exceeds 63 characters with its suffix."""
    manifests = render(values, release=release)
    assert manifests.one("Deployment")["metadata"]["name"] == name
    assert all(len(item["metadata"]["name"]) <= 63 for item in manifests)


def test_the_operator_runs_restricted() -> None:
    """Non-root, no escalation, no capability, seccomp, read-only root, and no service links that would set AMDAHL_LOOP_*."""
    pod = render().one("Deployment")["spec"]["template"]["spec"]
    context = pod["containers"][0]["securityContext"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["seccompProfile"]) == (
        True,
        {"type": "RuntimeDefault"},
    )
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod["enableServiceLinks"] is False
    assert render().one("ServiceAccount")["automountServiceAccountToken"] is False
    assert not any("hostPath" in volume for volume in pod["volumes"])


def test_one_operator_ends_before_the_next_one_starts() -> None:
    """One replica, Recreate, and probes on the health port."""
    spec = render({"health": {"port": 9091}}).one("Deployment")["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert {"name": "health", "containerPort": 9091} in container["ports"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "health"}


def test_trials_push_nobody_out_and_grow_no_cluster() -> None:
    """The class of trials never preempts, is nobody's default, and lies below the autoscaler's cut-off of -10."""
    trial = render().one("PriorityClass")
    assert (trial["metadata"]["name"], trial["value"]) == ("amdahl-loop-trial", -1000)
    assert (trial["preemptionPolicy"], trial["globalDefault"]) == ("Never", False)


def test_the_quota_counts_trials_only() -> None:
    """The quota is scoped to the class of trials, so it never counts the users' own pods."""
    quota = render(NAMESPACED_SCOPE | {"trials": {"quota": {"hard": {"requests.nvidia.com/gpu": "4"}}}}).one(
        "ResourceQuota"
    )
    assert quota["spec"]["hard"] == {"requests.nvidia.com/gpu": "4"}
    assert quota["spec"]["scopeSelector"]["matchExpressions"] == [
        {"scopeName": "PriorityClass", "operator": "In", "values": ["amdahl-loop-trial"]}
    ]


EVERYWHERE_UNBOUND = (
    r"admission\.enabled is false and watchNamespaces is empty: .* in every namespace; name the namespaces"
)
NO_NAMESPACE = r"none is named: list them in trials\.{}\.namespaces"
QUOTA_NOWHERE, CUT_NOWHERE = NO_NAMESPACE.format("quota"), NO_NAMESPACE.format("networkPolicy")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"admission": {"enabled": False}}, EVERYWHERE_UNBOUND),
        ({"admission": {"enabled": False}} | TEAM_OPERATORS, EVERYWHERE_UNBOUND),
        (TRIALS_CAPPED, QUOTA_NOWHERE),
        (TRIALS_CAPPED | TEAM_OPERATORS, QUOTA_NOWHERE),
        (TRIALS_CAPPED | ADMIN_PART, QUOTA_NOWHERE),
        (TRIALS_CUT_OFF, CUT_NOWHERE),
        (TRIALS_CUT_OFF | TEAM_OPERATORS, CUT_NOWHERE),
        (TRIALS_CUT_OFF | ADMIN_PART, CUT_NOWHERE),
        ({"trials": {"quota": {"namespaces": ["team-a"]}}}, r"trials\.quota\.hard is empty, so no quota would be made"),
        (NAMESPACED_SCOPE | TEAM_OPERATORS, "namespacedOperators has no effect in scope Namespaced"),
        (ADMIN_PART | {"networkPolicy": {"jobNamespaces": ["team-a"]}}, r"networkPolicy\.jobNamespaces has no effect"),
    ],
)
def test_a_value_that_would_do_nothing_or_undo_a_promise_is_refused(values: dict[str, Any], message: str) -> None:
    """The message names the value, what would come of it, and what to set."""
    with pytest.raises(HelmError, match=message):
        render(values)


TRIAL_PODS = {"podSelector": {"matchExpressions": [{"key": "amdahl-loop.io/experiment", "operator": "Exists"}]}}


def test_trials_reach_each_other_and_dns_and_nothing_else() -> None:
    """Selected by the label that the policies let nobody forge or strip; no address, so no store and no node's metadata service."""
    spec = render(NAMESPACED_SCOPE | TRIALS_CUT_OFF).one("NetworkPolicy", "amdahl-loop-trials")["spec"]
    dns = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    assert {"podSelector": spec["podSelector"]} == TRIAL_PODS
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [{"from": [TRIAL_PODS]}]
    ports = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    assert spec["egress"] == [{"to": [TRIAL_PODS]}, {"ports": ports, "to": [dns]}]


def test_what_trials_read_is_added_by_the_administrator() -> None:
    """A source of data, and another place of DNS: rules as in any NetworkPolicy; without DNS there is no rule for it."""
    data = {"to": [{"ipBlock": {"cidr": "10.8.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 2049}]}
    values = {"networkPolicy": {"enabled": True, "dns": [], "extraEgress": [data]}}
    spec = render(NAMESPACED_SCOPE | {"trials": values}).one("NetworkPolicy", "amdahl-loop-trials")["spec"]
    assert spec["egress"] == [{"to": [TRIAL_PODS]}, data]


def test_a_namespace_that_denies_by_default_lets_the_operator_read_metrics() -> None:
    """The running pods of jobs on the probe's port, from this operator alone; Prometheus too, where it is told to scrape them."""
    values = {"networkPolicy": {"jobNamespaces": ["team-a"]}}
    spec = render(values).one("NetworkPolicy", "amdahl-loop-jobs")["spec"]
    (rule,) = spec["ingress"]
    assert spec["podSelector"]["matchExpressions"] == [
        {"key": "amdahl-loop.io/job", "operator": "Exists"},
        {"key": "amdahl-loop.io/experiment", "operator": "DoesNotExist"},
    ]
    assert spec["policyTypes"] == ["Ingress"]
    assert rule["ports"] == render().one("NetworkPolicy")["spec"]["egress"][1]["ports"]
    (operator,) = rule["from"]
    assert operator["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "amdahl-system"}}
    deployment = render(values).one("Deployment")["spec"]
    assert operator["podSelector"] == deployment["selector"]
    scraped = render(values | {"monitoring": {"podMonitor": {"enabled": True}}}).one(
        "NetworkPolicy", "amdahl-loop-jobs"
    )
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert scraped["spec"]["ingress"][0]["from"] == [operator, prometheus]


@pytest.mark.parametrize(("keep", "annotation"), [(True, "keep"), (False, None)])
def test_definitions_stay_unless_they_are_told_not_to(keep: bool, annotation: str | None) -> None:
    """crds.keep is Helm's resource policy; the definitions carry the chart's labels."""
    for definition in render({"crds": {"enabled": True, "keep": keep}}):
        if definition["kind"] == "CustomResourceDefinition":
            assert definition["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == annotation
            assert definition["metadata"]["labels"]["app.kubernetes.io/part-of"] == "amdahl-loop"


@pytest.mark.parametrize(
    ("role", "label", "rights"),
    [
        ("view", "view", {("trainingjobs", "get"), ("experiments", "get"), ("tuningpolicies", "get")}),
        ("edit", "edit", {("trainingjobs", "create"), ("trainingjobs", "delete"), ("trainingjobs", "patch")}),
        ("admin", "admin", {("tuningpolicies", "create"), ("tuningpolicies", "delete"), ("experiments", "delete")}),
    ],
)
def test_people_get_their_rights_by_aggregation(role: str, label: str, rights: set[tuple[str, str]]) -> None:
    """TuningPolicies are written, and Experiments deleted, by admins, never by editors; nobody writes Experiments or a status."""
    found = render().one("ClusterRole", f"amdahl-loop-{role}")
    granted = {(resource, verb) for rule in found["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert found["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{label}"] == "true"
    assert rights <= granted
    written = {(resource, verb) for resource, verb in granted if verb not in ("get", "list", "watch")}
    assert {(r, v) for r, v in written if r == "experiments" or "/" in r} <= {("experiments", "delete")}
    assert role == "admin" or {r for r, _ in written} <= {"trainingjobs"}


OPERATOR_RIGHTS = {
    ("amdahl-loop.io", "trainingjobs"): {"get", "list", "watch", "patch"},
    ("amdahl-loop.io", "trainingjobs/status"): {"patch"},
    ("amdahl-loop.io", "experiments"): {"get", "list", "watch", "create", "patch"},
    ("amdahl-loop.io", "experiments/status"): {"patch"},
    ("amdahl-loop.io", "tuningpolicies"): {"list", "watch"},
    ("batch", "jobs"): {"get", "list", "watch", "create", "patch", "delete"},
    ("", "pods"): {"list", "watch"},
    ("", "services"): {"get", "create"},
    ("", "configmaps"): {"get", "list", "create", "update", "patch", "delete"},
    ("events.k8s.io", "events"): {"create", "list"},
    ("kueue.x-k8s.io", "workloads"): {"list"},
    ("", "persistentvolumeclaims"): {"get"},
}


@pytest.mark.parametrize(
    ("values", "kind"), [({}, "ClusterRole"), (TWO_TEAMS, "ClusterRole"), (NAMESPACED_SCOPE, "Role")]
)
def test_the_operator_has_these_rights_and_no_others(values: dict[str, Any], kind: str) -> None:
    """The golden list: no wildcard, no Secret, no node, no namespace, no pod of its own making, in every scope alike."""
    rules = render(values).one(kind, "amdahl-loop-operator")["rules"]
    granted = {(g, r): set(rule["verbs"]) for rule in rules for g in rule["apiGroups"] for r in rule["resources"]}
    assert granted == OPERATOR_RIGHTS


def test_each_operator_is_bound_where_it_acts() -> None:
    """Two operators of teams share a namespace: both are bound there, and each alone in its own."""
    subjects = {
        binding["metadata"]["namespace"]: [f"{s['namespace']}/{s['name']}" for s in binding["subjects"]]
        for binding in render(ADMIN_PART | TEAM_OPERATORS)
        if binding["kind"] == "RoleBinding"
    }
    assert subjects == {"team-a": ["team-a/amdahl-loop", "team-b/amdahl-loop"], "team-b": ["team-b/amdahl-loop"]}


def test_every_right_of_the_operator_has_its_reason() -> None:
    """In the rendered role a comment stands above every rule: who reviews the install reads why."""
    lines = run_helm("template", "x", CHART, "--show-only", "templates/rbac.yaml").splitlines()
    rules = [index for index, line in enumerate(lines) if line.startswith("- apiGroups:")]
    assert len(rules) == len(OPERATOR_RIGHTS)
    assert all(lines[index - 1].startswith("# ") for index in rules)


def test_the_operator_reaches_only_what_it_needs() -> None:
    """Egress: the API server's ports and the metrics of training pods, in the namespaces that are looked after."""
    egress = render(TWO_TEAMS | {"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1/32"], "ports": [8443]}}}).one(
        "NetworkPolicy"
    )["spec"]["egress"]
    assert egress[0] == {"ports": [{"protocol": "TCP", "port": 8443}], "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}
    assert egress[1]["to"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == ["team-a", "team-b"]
    assert len(egress) == 2
    everywhere = render().one("NetworkPolicy")["spec"]["egress"][1]["to"][0]
    assert everywhere["namespaceSelector"] == {"matchLabels": {"amdahl-loop.io/enabled": "true"}}


def test_the_port_of_training_pods_is_the_same_everywhere() -> None:
    """NetworkPolicy and PodMonitor name one port."""
    manifests = render({"monitoring": {"podMonitor": {"enabled": True}}})
    port = manifests.one("NetworkPolicy")["spec"]["egress"][1]["ports"][0]["port"]
    addresses = [
        r["replacement"]
        for r in manifests.one("PodMonitor")["spec"]["podMetricsEndpoints"][0]["relabelings"]
        if r.get("targetLabel") == "__address__"
    ]
    assert addresses == [f"[$1]:{port}", f"$1:{port}"]


def test_everything_that_can_be_filled_in_arrives() -> None:
    """The full values of ci/ reach their fields."""
    manifests = render(read_values(CHART / "ci" / "full-values.yaml"))
    deployment = manifests.one("Deployment")
    pod = deployment["spec"]["template"]
    spec = pod["spec"]
    assert deployment["metadata"]["labels"]["cost-centre"] == "42"
    assert (pod["metadata"]["labels"]["team"], pod["metadata"]["annotations"]["example.com/note"]) == ("ml", "yes")
    assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("tuner", "system-cluster-critical")
    assert (spec["nodeSelector"], spec["terminationGracePeriodSeconds"]) == ({"kubernetes.io/os": "linux"}, 60)
    assert spec["tolerations"][0]["key"] == "control-plane"
    assert "nodeAffinity" in spec["affinity"]
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert [volume["name"] for volume in spec["volumes"]] == ["tmp", "ca"]
    assert [mount["name"] for mount in manifests.container["volumeMounts"]] == ["tmp", "ca"]
    assert manifests.container["args"] == ["--help"]
    assert manifests.container["resources"]["limits"] == {"memory": "2Gi"}
    assert manifests.one("ServiceAccount")["metadata"]["annotations"] == {"example.com/owner": "ml"}
    assert manifests.names("ConfigMap") == [
        "amdahl-system/amdahl-loop-dashboard",
        "amdahl-system/amdahl-loop-extra-text",
        "extra-object",
    ]


@pytest.mark.parametrize(
    ("values", "phrases"),
    [
        ({}, ["every namespace that is enabled", "kubectl label namespace", "rollout status deployment/amdahl-loop"]),
        (TWO_TEAMS, ["looks after team-a, team-b", "kubectl --namespace team-a apply"]),
        (WITHOUT_POLICIES, ["TRIALS ARE OFF", "set admission.enabled=true"]),
        ({"trials": {"enabled": False}}, ["TRIALS ARE OFF", "Set trials.enabled=true"]),
        (NAMESPACED_SCOPE, ["TRIALS ARE OFF", "namespacedOperators: [{namespace: amdahl-system, serviceAccount: amdahl-loop"]),
        (ADMIN_PART, ["cluster-scoped part", "none: name them in namespacedOperators"]),
        (read_values(CHART / "ci" / "admin-values.yaml"), ["system:serviceaccount:team-b:tuner in team-b, team-a"]),
    ],
)  # fmt: skip
def test_the_notes_say_what_to_do_next(values: dict[str, Any], phrases: list[str]) -> None:
    """What is printed after an install fits what was installed."""
    asked = {"crds": {"enabled": False}} | values
    notes = run_helm(
        "install", "amdahl-loop", CHART, "--namespace", "amdahl-system", "--dry-run=client", values=asked
    ).partition("NOTES:")[2]
    assert all(phrase in notes for phrase in phrases), notes
    assert ("TRIALS ARE OFF" in notes) == any("TRIALS" in phrase for phrase in phrases)


@pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.stem)
def test_helm_lint_has_no_complaint(file: Any) -> None:
    """Strict lint with every set of values in ci/."""
    said = run_helm("lint", CHART, "--strict", values=read_values(file))
    assert "0 chart(s) failed" in said
    assert "WARNING" not in said


def test_the_test_of_the_release_uses_the_operators_own_image() -> None:
    """`helm test` needs no image of others, and its pod is as restricted as the operator's."""
    manifests: Manifests = render(hooks=True)
    pod = manifests.one("Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["containers"][0]["image"] == manifests.container["image"]
    assert pod["spec"]["containers"][0]["securityContext"] == manifests.container["securityContext"]
    assert pod["spec"]["automountServiceAccountToken"] is False
