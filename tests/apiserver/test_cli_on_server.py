"""The command line on a real API server: a ledger carried there and back, cut at every write, and read with a viewer's rights."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.adapters.kube.ledger import KubeLedger
from amdahl_loop.adapters.kube.loading import load_index
from amdahl_loop.adapters.kube.transport import Answer, Request, UnreachableError, open_transport
from amdahl_loop.adapters.sqlite.entries import Body, Closed, Observed, render_export
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.parsing import parse_training_job
from amdahl_loop.domain.plan import Halt
from amdahl_loop.passing import identify
from amdahl_loop.reconcile import Ports, tick
from builders import make_manifest
from fakes import SimulatedRunner, Truth, loader_bound
from kube_builders import FaultyTransport, connect, impatient, install_crds, see_job
from ledger_builders import Called, call, make_cluster_job, play, reach
from testbed.access import Access
from testbed.audit import read_requests
from testbed.cluster import Cluster, wait_for

pytestmark = pytest.mark.slow

GAINLESS = Truth(phases_s=lambda _: loader_bound(Knobs(dataloader_workers=0)))
VIEW = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "amdahl-view"},
    "rules": [
        {
            "apiGroups": ["amdahl-loop.io"],
            "resources": ["trainingjobs", "experiments", "tuningpolicies"],
            "verbs": ["get", "list", "watch"],
        }
    ],
}
"""As the chart adds it to the cluster's own role `view` (templates/roles-aggregated.yaml)."""


@pytest.fixture(scope="module")
def definitions(api_server: Cluster) -> None:
    """Our kinds are served."""
    install_crds(api_server)


@pytest.fixture(scope="module")
def won(tmp_path_factory: pytest.TempPathFactory) -> tuple[Body, ...]:
    """What a loop records that wins."""
    return play(make_cluster_job(), Truth(phases_s=loader_bound), tmp_path_factory.mktemp("won") / "x.db")


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> tuple[Body, ...]:
    """What a loop records that finds no gain."""
    return play(make_cluster_job(), GAINLESS, tmp_path_factory.mktemp("lost") / "x.db")


def write(path: Path, bodies: Sequence[Body]) -> Path:
    """An exported file."""
    path.write_text("".join(f"{line}\n" for line in render_export(bodies)))
    return path


def on(access: Access, namespace: str) -> tuple[str, ...]:
    """The options that name a namespace, as somebody."""
    return ("--kubeconfig", str(access.kubeconfig), "-n", namespace)


def stored(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """Experiments without what a server adds: name, labels, plan and status."""
    items = cluster.admin.get(f"/apis/amdahl-loop.io/v1alpha1/namespaces/{namespace}/experiments").body["items"]
    return {item["metadata"]["name"]: (item["metadata"]["labels"], item["spec"], item.get("status")) for item in items}


@pytest.mark.usefixtures("definitions")
def test_a_ledger_is_carried_to_a_cluster_and_back(
    api_server: Cluster, api_namespace: str, won: tuple[Body, ...], tmp_path: Path
) -> None:
    """Created once, there already the second time; the export holds the same experiments; `show` tells the same story."""
    file, way = write(tmp_path / "won.jsonl", won), on(api_server.admin, api_namespace)
    told = [json.loads(call("import", file, *way, "-o", "json").out) for _ in range(2)]
    counts = ("created", "completed", "present", "open")
    assert [[one[name] for name in counts] for one in told] == [[1, 0, 0, 0], [0, 0, 1, 0]]

    local = call("ledger", "--ledger", import_locally(file, tmp_path), "-o", "json")
    listed = json.loads(call("ledger", *way, "-o", "json").out)["experiments"]
    assert [{**one, "namespace": None} for one in listed] == json.loads(local.out)["experiments"]

    exported = call("export", *way)
    assert exported.code == 0
    back = [json.loads(line)["body"] for line in exported.out.splitlines()[1:]]
    assert back == [body.model_dump_json(by_alias=True) for body in won if not isinstance(body, Observed)]
    (name,) = stored(api_server, api_namespace)
    assert "71 %" in call("show", name[:8], *way).out


def import_locally(file: Path, folder: Path) -> Path:
    """The same export in a file of its own."""
    path = folder / "imported.db"
    assert call("import", file, "--ledger", path).code == 0
    return path


def cut(at: int) -> Callable[[Request, Callable[[Request], Awaitable[Answer]]], Awaitable[Answer]]:
    """From write number `at` on, the server is gone; dry runs are no writes."""
    done = [0]

    async def fault(request: Request, send: Callable[[Request], Awaitable[Answer]]) -> Answer:
        if request.method == "GET" or ("dryRun", "All") in request.query:
            return await send(request)
        if done[0] >= at:
            raise UnreachableError("cut")
        done[0] += 1
        return await send(request)

    return fault


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize("at", range(6))
def test_an_import_that_was_cut_is_finished_by_the_same_import(
    api_server: Cluster, api_namespace: str, won: tuple[Body, ...], tmp_path: Path, at: int
) -> None:
    """Before each of the writes of two experiments (plan, status, label): the second import leads to the very same objects."""
    other = play(
        make_cluster_job(uid="9" * 8, name="other"), Truth(phases_s=loader_bound), tmp_path / "other.db"
    )  # a second question
    file = write(tmp_path / "both.jsonl", [*won, *other])
    transport = FaultyTransport(asyncio.run(open_later(api_server)), fault=cut(at))
    first = call("import", file, "-n", api_namespace, connect=reach(lambda: impatient(transport), api_namespace))
    assert (first.code, first.out) == (4, "")

    again = json.loads(call("import", file, *on(api_server.admin, api_namespace), "-o", "json").out)
    assert again["created"] + again["completed"] + again["present"] == 2
    assert again["created"] == 2 - -(-at // 3)
    whole = stored(api_server, api_namespace)
    assert all(labels["amdahl-loop.io/closed"] == "true" for labels, _, _ in whole.values())
    assert all(status["verdict"] for _, _, status in whole.values())
    assert json.loads(call("import", file, *on(api_server.admin, api_namespace), "-o", "json").out)["present"] == 2
    assert stored(api_server, api_namespace) == whole


async def open_later(cluster: Cluster) -> Any:
    """A transport whose session is opened by the loop that uses it."""

    class Later:
        def __init__(self) -> None:
            self.inner: Any = None

        async def send(self, request: Request) -> Answer:
            if self.inner is None:
                self.inner = await open_transport(cluster.admin.kubeconfig)
            return await self.inner.send(request)

        async def close(self) -> None:
            if self.inner is not None:
                await self.inner.close()

    return Later()


@pytest.mark.usefixtures("definitions")
def test_a_contradiction_writes_nothing(
    api_server: Cluster, api_namespace: str, won: tuple[Body, ...], tmp_path: Path
) -> None:
    """The same name with another verdict: code 3, the experiment is named, and what comes before it is not written either."""
    way = on(api_server.admin, api_namespace)
    other = play(make_cluster_job(uid="8" * 8, name="other"), GAINLESS, tmp_path / "other.db")
    assert call("import", write(tmp_path / "won.jsonl", won), *way).code == 0
    before = stored(api_server, api_namespace)
    forged = [
        body.model_copy(update={"verdict": body.verdict.model_copy(update={"sentence": "Otherwise."})})
        if isinstance(body, Closed)
        else body
        for body in won
    ]
    called = call("import", write(tmp_path / "both.jsonl", [*other, *forged]), *way)

    assert called.code == 3
    assert "is here with another verdict; nothing was written" in " ".join(called.err.split())
    assert stored(api_server, api_namespace) == before


@pytest.mark.usefixtures("definitions")
def test_a_new_cluster_remembers_what_the_old_one_learnt(
    api_server: Cluster, api_namespace: str, lost: tuple[Body, ...], tmp_path: Path
) -> None:
    """Cold restart from an export: another job by UID, the same work by fingerprint; the lost idea is not paid for again."""
    way = on(api_server.admin, api_namespace)
    assert call("import", write(tmp_path / "lost.jsonl", lost), *way).code == 0
    old = make_cluster_job()
    manifest = make_manifest(tuning={"profile": "quick", "budget": {"deviceHours": "100"}})
    manifest["metadata"] |= {"namespace": api_namespace}
    api_server.admin.kubectl("apply", "-f", "-", stdin=manifest)

    async def live() -> tuple[str, list[str]]:
        async with await connect(api_server) as client:
            seen = await see_job(client, api_namespace)
            job = parse_training_job({key: seen.document[key] for key in ("apiVersion", "kind", "metadata", "spec")})
            assert identify(job).fingerprint == identify(old).fingerprint
            assert identify(job).job_uid != identify(old).job_uid
            runner = SimulatedRunner(GAINLESS, now_s=2_000_000.0)
            ledger = KubeLedger(client, await load_index(client, [api_namespace]), seen, lambda: 2_000_000.0)
            for _ in range(5):
                found = await tick(job, identify(job), Ports(runner=runner, ledger=ledger, clock=lambda: runner.now_s))
                if isinstance(found.action, Halt):
                    return found.action.sentence, runner.submitted
        raise AssertionError("the loop goes on")

    sentence, submitted = asyncio.run(live())
    assert "Every idea has been tried." in sentence
    assert [run[-3:] for run in submitted] == ["-o0"]


@pytest.mark.usefixtures("definitions")
def test_a_viewer_may_read_everything_and_write_nothing(
    api_server: Cluster, api_namespace: str, won: tuple[Body, ...], tmp_path: Path
) -> None:
    """With the chart's part of `view` every command but `import` works, and asks for nothing else; who has no right is told.

    Who may not watch is shown the same, by pages.
    """
    file = write(tmp_path / "won.jsonl", won)
    assert call("import", file, *on(api_server.admin, api_namespace)).code == 0
    viewer = api_server.user(f"viewer-{api_namespace}")
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "view", "namespace": api_namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "amdahl-view"},
        "subjects": [{"kind": "User", "name": f"viewer-{api_namespace}"}],
    }
    way = on(viewer, api_namespace)
    denied = call("ledger", *way)
    assert denied.code == 4
    assert 'cannot list resource "experiments"' in " ".join(denied.err.split())

    rules = [{**VIEW["rules"][0], "verbs": ["get", "list"]}]
    api_server.admin.kubectl("apply", "-f", "-", stdin=[VIEW | {"rules": rules}, binding])
    wait_for(lambda: call("ledger", *way).code == 0, 30, "the binding holds")
    by_pages = call("fleet", *way, "-o", "json")
    assert by_pages.code == 0
    api_server.admin.kubectl("apply", "-f", "-", stdin=VIEW)
    assert call("fleet", *way, "-o", "json").out == by_pages.out
    (name,) = stored(api_server, api_namespace)
    codes = [call(*words, *way).code for words in (["fleet"], ["ledger"], ["show", name], ["export"])]
    assert codes == [0, 0, 0, 0]
    assert call("explain", "nobody", *way).code == 2
    assert json.loads(call("import", file, *way, "-o", "json").out)["present"] == 1  # nothing to write, nothing refused

    refused = call("import", write(tmp_path / "other.jsonl", another(tmp_path)), *way)
    assert refused.code == 4
    assert 'cannot create resource "experiments"' in " ".join(refused.err.split())
    asked = {
        (request.verb, request.resource)
        for request in read_requests(api_server.audit_log, f"viewer-{api_namespace}")
        if request.group == "amdahl-loop.io" and not request.is_forbidden
    }
    assert asked == {
        ("list", "experiments"), ("get", "experiments"), ("watch", "experiments"), ("list", "trainingjobs"), ("get", "trainingjobs"),
        ("list", "tuningpolicies"),
    }  # fmt: skip


def another(folder: Path) -> tuple[Body, ...]:
    """Another job's ledger."""
    return play(make_cluster_job(uid="7" * 8, name="other"), GAINLESS, folder / "another.db")


def test_an_unknown_name_lists_the_nearest(
    definitions: None, api_server: Cluster, api_namespace: str, won: tuple[Body, ...], tmp_path: Path
) -> None:
    """Jobs and experiments alike: code 2 and what could have been meant."""
    way = on(api_server.admin, api_namespace)
    assert call("import", write(tmp_path / "won.jsonl", won), *way).code == 0
    (name,) = stored(api_server, api_namespace)
    unknown: Called = call("show", "pydosc", *way)

    assert unknown.code == 2
    assert f"name one of: {name}" in " ".join(unknown.err.split())
