"""The client's verbs on a real API server: what the server answers is what the rest of the operator is told."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient, Refused
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.transport import USER_AGENT, open_transport
from builders import make_manifest
from kube_builders import FaultyTransport, impatient, install_crds, lose_answers
from testbed.cluster import Cluster, wait_for

pytestmark = pytest.mark.slow

Scenario = Callable[[KubeClient, FaultyTransport], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module", autouse=True)
def definitions(api_server: Cluster) -> None:
    """Our kinds are served."""
    install_crds(api_server)


def talk(cluster: Cluster, scenario: Scenario) -> None:
    """Run a scenario with the operator's client as the administrator."""

    async def go() -> None:
        transport = FaultyTransport(await open_transport(cluster.admin.kubeconfig))
        async with impatient(transport) as client:
            await scenario(client, transport)

    asyncio.run(go())


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"of": "test"}}, "data": data}


def training_job(**knobs: Any) -> dict[str, Any]:
    return make_manifest(knobs=knobs or {"dataloaderWorkers": 0})


def must(answer: dict[str, Any] | Refused) -> dict[str, Any]:
    """The object; a refusal fails the test with its message."""
    assert isinstance(answer, dict), answer
    return answer


def test_objects_are_made_read_changed_and_deleted(api_server: Cluster, api_namespace: str) -> None:
    """Each verb once, with the values that callers rely on."""

    async def scenario(client: KubeClient, _: FaultyTransport) -> None:
        kind, space = Kind.CONFIG_MAP, api_namespace
        assert await client.get(kind, space, "a") is None
        must(await client.create(kind, space, config_map("a", k="1"), dry_run=True))
        assert await client.get(kind, space, "a") is None
        made = must(await client.create(kind, space, config_map("a", k="1")))
        taken = await client.create(kind, space, config_map("a", k="2"))
        assert isinstance(taken, Refused)
        assert taken.is_taken
        changed = must(await client.patch(kind, space, "a", {"data": {"k": "2"}}))
        stale = await client.replace(kind, space, "a", made | {"data": {"k": "3"}})
        assert isinstance(stale, Refused)
        assert stale.is_outdated
        assert must(await client.replace(kind, space, "a", changed | {"data": {"k": "3"}}))["data"] == {"k": "3"}
        other = await client.delete(kind, space, "a", "00000000-0000-0000-0000-000000000000")
        assert isinstance(other, Refused)
        assert other.is_outdated
        assert await client.delete(kind, space, "a", made["metadata"]["uid"]) is True
        assert await client.delete(kind, space, "a", made["metadata"]["uid"]) is False

    talk(api_server, scenario)


def test_lists_come_in_pages_and_by_label(api_server: Cluster, api_namespace: str) -> None:
    """Twelve objects in pages of five, each once; a selector leaves the others out."""

    async def scenario(client: KubeClient, transport: FaultyTransport) -> None:
        for number in range(12):
            must(await client.create(Kind.CONFIG_MAP, api_namespace, config_map(f"m{number:02}")))
        must(await client.create(Kind.CONFIG_MAP, api_namespace, {"metadata": {"name": "other"}}))
        transport.requests.clear()
        found = [item async for item in client.list(Kind.CONFIG_MAP, api_namespace, "of=test", limit=5)]
        assert [item["metadata"]["name"] for item in found] == [f"m{number:02}" for number in range(12)]
        assert {(item["apiVersion"], item["kind"]) for item in found} == {("v1", "ConfigMap")}
        assert len(transport.requests) == 3
        everywhere = [item async for item in client.list(Kind.CONFIG_MAP, None, "of=test", limit=7)]
        assert len([item for item in everywhere if item["metadata"]["namespace"] == api_namespace]) == 12

    talk(api_server, scenario)


def test_server_side_apply_meets_the_owner_of_a_field_and_takes_it_by_force(
    api_server: Cluster, api_namespace: str
) -> None:
    """409 with the manager and the field; with force the value changes hands; the rest of the spec is as it was."""

    async def scenario(client: KubeClient, _: FaultyTransport) -> None:
        document = training_job(dataloaderWorkers=0, checkpointEverySteps=50)
        document["metadata"]["namespace"] = api_namespace
        api_server.admin.kubectl("apply", "-f", "-", stdin=document)
        wanted = {"spec": {"knobs": {"dataloaderWorkers": 4}}}
        refused = await client.apply(Kind.TRAINING_JOB, api_namespace, "pydocs", wanted)
        assert isinstance(refused, Refused)
        assert refused.is_outdated
        (cause,) = refused.causes
        assert (cause.reason, cause.field) == ("FieldManagerConflict", ".spec.knobs.dataloaderWorkers")
        assert "kubectl-client-side-apply" in cause.message
        applied = must(await client.apply(Kind.TRAINING_JOB, api_namespace, "pydocs", wanted, force=True))
        assert applied["spec"]["knobs"] == {"dataloaderWorkers": 4, "checkpointEverySteps": 50}
        ours = [entry for entry in applied["metadata"]["managedFields"] if entry["manager"] == "amdahl-loop"]
        assert [(entry["operation"], entry["fieldsV1"]) for entry in ours] == [
            ("Apply", {"f:spec": {"f:knobs": {"f:dataloaderWorkers": {}}}})
        ]

    talk(api_server, scenario)


def test_what_a_rule_of_the_api_refuses_comes_with_field_and_fix(api_server: Cluster, api_namespace: str) -> None:
    """422 with our own words; 400 for a field that does not exist."""

    async def scenario(client: KubeClient, _: FaultyTransport) -> None:
        bad = training_job()
        bad["spec"]["template"]["spec"]["containers"][0]["name"] = "main"
        refused = await client.create(Kind.TRAINING_JOB, api_namespace, bad)
        assert isinstance(refused, Refused)
        assert refused.status == 422
        assert any("name the one to tune 'trainer'" in cause.message for cause in refused.causes)
        unknown = training_job()
        unknown["spec"]["sleep"] = True
        refused = await client.create(Kind.TRAINING_JOB, api_namespace, unknown)
        assert isinstance(refused, Refused)
        assert refused.status == 400
        assert 'unknown field "spec.sleep"' in refused.message

    talk(api_server, scenario)


def test_a_status_is_written_alone_and_against_a_version(api_server: Cluster, api_namespace: str) -> None:
    """The spec stands; a version that is past is refused."""

    async def scenario(client: KubeClient, _: FaultyTransport) -> None:
        made = must(await client.create(Kind.TRAINING_JOB, api_namespace, training_job()))
        version = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}}
        both = version | {"status": {"message": "one"}, "spec": {"suspend": True}}
        written = must(await client.patch_status(Kind.TRAINING_JOB, api_namespace, "pydocs", both))
        assert (written["status"]["message"], written["spec"]["suspend"]) == ("one", False)
        late = await client.patch_status(
            Kind.TRAINING_JOB, api_namespace, "pydocs", version | {"status": {"message": "two"}}
        )
        assert isinstance(late, Refused)
        assert late.is_outdated
        written["status"]["message"] = "three"
        replaced = must(await client.replace_status(Kind.TRAINING_JOB, api_namespace, "pydocs", written))
        assert replaced["status"]["message"] == "three"

    talk(api_server, scenario)


def test_a_create_whose_answer_was_lost_is_found_taken(api_server: Cluster, api_namespace: str) -> None:
    """The name was known before, so the caller finds its own object."""

    async def scenario(client: KubeClient, transport: FaultyTransport) -> None:
        transport.fault = lose_answers("POST")
        answer = await client.create(Kind.CONFIG_MAP, api_namespace, config_map("a", k="1"))
        assert isinstance(answer, Refused)
        assert answer.is_taken
        found = await client.get(Kind.CONFIG_MAP, api_namespace, "a")
        assert found is not None
        assert found["data"] == {"k": "1"}

    talk(api_server, scenario)


def test_events_reach_the_owner_once(api_server: Cluster, api_namespace: str) -> None:
    """`kubectl events` shows the words, however often a pass repeats them."""

    async def scenario(client: KubeClient, _: FaultyTransport) -> None:
        made = must(await client.create(Kind.TRAINING_JOB, api_namespace, training_job()))
        for _ in range(3):
            await client.post_event(made, "Applied", "dataloaderWorkers 0 -> 4", warning=False)
        shown = api_server.admin.kubectl("events", "--namespace", api_namespace, "--for", "trainingjob/pydocs")
        assert shown.count("dataloaderWorkers 0 -> 4") == 1

    talk(api_server, scenario)


def test_missing_rights_are_told_apart_from_missing_objects(api_server: Cluster, api_namespace: str) -> None:
    """403: a write is refused with the reason, a read cannot be worked with."""
    nobody = api_server.user("nobody")

    async def go() -> None:
        async with impatient(await open_transport(nobody.kubeconfig)) as client:
            refused = await client.create(Kind.CONFIG_MAP, api_namespace, config_map("a"))
            assert isinstance(refused, Refused)
            assert (refused.status, refused.is_over_quota) == (403, False)
            with pytest.raises(ApiUnavailable, match=r'cannot read configmaps.*"nobody" cannot get'):
                await client.get(Kind.CONFIG_MAP, api_namespace, "a")

    asyncio.run(go())


def test_a_server_that_comes_back_is_waited_for(api_server: Cluster, api_namespace: str) -> None:
    """While it is away nothing is decided; when it is back the same client goes on."""

    async def go() -> None:
        async with impatient(await open_transport(api_server.admin.kubeconfig)) as client:
            must(await client.create(Kind.CONFIG_MAP, api_namespace, config_map("a")))
            api_server.kill("kube-apiserver")
            with pytest.raises(ApiUnavailable):
                await client.get(Kind.CONFIG_MAP, api_namespace, "a")
            api_server.start("kube-apiserver")
            assert await client.get(Kind.CONFIG_MAP, api_namespace, "a") is not None

    asyncio.run(go())


def test_the_audit_log_knows_us_by_name(api_server: Cluster, api_namespace: str) -> None:
    """Every request bears the operator's own User-Agent."""

    async def scenario(client: KubeClient, _: FaultyTransport) -> None:
        await client.get(Kind.CONFIG_MAP, api_namespace, "looked-for-by-name")

    talk(api_server, scenario)
    wait_for(
        lambda: any(
            "looked-for-by-name" in line and f'"userAgent":"{USER_AGENT}"' in line
            for line in api_server.audit_log.read_text().splitlines()
        ),
        30,
        "the request is in the log",
    )
