"""The client against a server that fails, refuses, is slow or is not there: what is repeated, what is a value, what is raised."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import ATTEMPTS, ApiUnavailable, KubeClient, Refused
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.transport import AccessError, Answer, Request, UnreachableError, open_transport

JOB = {"metadata": {"name": "j", "namespace": "team", "resourceVersion": "7"}}


class ScriptedTransport:
    """Answers as told, one answer a request; the last one again and again."""

    def __init__(self, answers: Sequence[Answer | Exception]) -> None:
        self._answers = list(answers)
        self.requests: list[Request] = []

    async def send(self, request: Request) -> Answer:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """Nothing is open."""


def status(
    code: int, reason: str = "", message: str = "", retry_after_s: float | None = None, **details: Any
) -> Answer:
    body = {"kind": "Status", "reason": reason, "message": message, "details": details}
    return Answer(status=code, body=body, retry_after_s=retry_after_s)


OK = Answer(status=200, body=JOB)
LOST = UnreachableError("ServerDisconnectedError: Server disconnected")


def ask(call: str, *answers: Answer | Exception, **arguments: Any) -> tuple[Any, ScriptedTransport, list[float]]:
    """What a call of the client gives, the requests it sent, and how long it paused between them."""
    transport, pauses = ScriptedTransport(answers), list[float]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def talk() -> Any:
        async with KubeClient(transport, sleep=sleep, draw=lambda: 1.0, clock=lambda: 1e9) as client:
            return await getattr(client, call)(**arguments)

    return asyncio.run(talk()), transport, pauses


GET = {"kind": Kind.JOB, "namespace": "team", "name": "j"}
CREATE = {"kind": Kind.JOB, "namespace": "team", "body": JOB}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(LOST, id="no answer"),
        pytest.param(status(429, retry_after_s=1), id="too many requests"),
        pytest.param(status(500, "InternalError"), id="internal error"),
        pytest.param(status(503), id="unavailable"),
        pytest.param(status(504, "Timeout"), id="timeout"),
    ],
)
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("get", GET),
        ("create", CREATE),
        ("replace_status", GET | {"body": JOB}),
        ("replace", GET | {"body": JOB}),
        ("patch", GET | {"body": {}}),
        ("patch_status", GET | {"body": {}}),
        ("apply", GET | {"body": {}}),
    ],
)
def test_passing_trouble_is_waited_out(answer: Answer | Exception, call: str, arguments: dict[str, Any]) -> None:
    """Reads and writes alike are sent again, with growing pauses: everything written has a name or a version."""
    found, transport, pauses = ask(call, answer, answer, OK, **arguments)
    assert found == JOB
    assert len(transport.requests) == 3
    assert len(set(map(repr, transport.requests))) == 1
    assert 0 < pauses[0] <= pauses[1]


def test_what_lasts_is_raised_with_the_servers_last_word() -> None:
    """After a bounded number of attempts the queue backs the job off."""
    with pytest.raises(ApiUnavailable, match="503 overloaded") as caught:
        ask("get", status(503, message="overloaded"), **GET)
    assert caught.value.refused is not None
    with pytest.raises(ApiUnavailable, match="Server disconnected") as caught:
        ask("get", LOST, **GET)
    assert caught.value.refused is None


def test_attempts_are_bounded_and_so_is_the_wait() -> None:
    """Seconds, not minutes: one job's trouble must not hold a worker."""
    transport, pauses = ScriptedTransport([LOST]), list[float]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def talk() -> None:
        await KubeClient(transport, sleep=sleep, draw=lambda: 1.0).get(Kind.JOB, "team", "j")

    with pytest.raises(ApiUnavailable):
        asyncio.run(talk())
    assert len(transport.requests) == ATTEMPTS
    assert sum(pauses) < 20


def test_retry_after_is_honoured_and_too_long_a_wait_is_left_to_the_queue() -> None:
    """The pause is at least what the server asks; half a minute or more ends the attempt with that figure."""
    _, _, pauses = ask("get", status(429, retry_after_s=7), OK, **GET)
    assert pauses == [7]
    transport = ScriptedTransport([status(429, retry_after_s=300)])
    with pytest.raises(ApiUnavailable) as caught:
        asyncio.run(KubeClient(transport).get(Kind.JOB, "team", "j"))
    assert (caught.value.retry_after_s, len(transport.requests)) == (300, 1)


@pytest.mark.parametrize(
    ("answer", "is_"),
    [
        pytest.param(status(409, "AlreadyExists", "jobs j already exists"), "is_taken", id="taken"),
        pytest.param(status(409, "Conflict", "the object has been modified"), "is_outdated", id="outdated"),
        pytest.param(status(403, "Forbidden", "pods x is forbidden: exceeded quota: q"), "is_over_quota", id="quota"),
        pytest.param(status(401, "Unauthorized", "Unauthorized"), "lacks_right", id="a token that has expired"),
        pytest.param(
            status(
                403, "Forbidden", 'jobs.batch is forbidden: User "o" cannot create resource "jobs" in API group "batch"'
            ),
            "lacks_right",
            id="a right that was taken away",
        ),
        pytest.param(status(404, "NotFound", "namespaces team not found"), "is_gone", id="gone"),
    ],
)
def test_refusals_are_values(answer: Answer, is_: str) -> None:
    """Each of the refusals that callers act on, and no other of them."""
    refusal, transport, _ = ask("create", answer, **CREATE)
    assert isinstance(refusal, Refused)
    assert [
        name
        for name in ("is_taken", "is_outdated", "is_over_quota", "lacks_right", "is_gone")
        if getattr(refusal, name)
    ] == [is_]
    assert len(transport.requests) == 1


def test_causes_are_read() -> None:
    """Who owns a field, and which field is wrong."""
    causes = [{"reason": "FieldManagerConflict", "message": 'conflict with "kubectl"', "field": ".spec.knobs"}, {}]
    refusal, _, _ = ask("apply", status(409, "Conflict", causes=causes), **GET | {"body": {}})
    assert isinstance(refusal, Refused)
    assert (refusal.causes[0].reason, refusal.causes[0].field) == ("FieldManagerConflict", ".spec.knobs")
    assert refusal.causes[1].reason == ""


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(status=502, body={"message": "<html>bad gateway</html>"}), id="a proxy's page"),
        pytest.param(Answer(status=500, body={}), id="nothing"),
        pytest.param(Answer(status=500, body={"details": None, "message": None}), id="nulls"),
    ],
)
def test_answers_that_are_no_status_are_understood_anyway(answer: Answer) -> None:
    """Whatever stands between us and the server, the message is kept."""
    with pytest.raises(ApiUnavailable, match=str(answer.status)):
        ask("get", answer, **GET)


def test_what_is_not_there_is_none_and_what_may_not_be_read_is_raised() -> None:
    """404 is an answer; 403 means that the installation lacks rights."""
    assert ask("get", status(404, "NotFound"), **GET)[0] is None
    with pytest.raises(ApiUnavailable, match="cannot read jobs team/j: 403"):
        ask("get", status(403, "Forbidden"), **GET)


def page(names: str, token: str = "", code: int = 200) -> Answer:
    items = [{"metadata": {"name": name}} for name in names]
    return Answer(status=code, body={"metadata": {"continue": token}, "items": items})


@pytest.mark.parametrize(
    ("answers", "names", "tokens"),
    [
        pytest.param([page("")], "", [None], id="none"),
        pytest.param([page("ab")], "ab", [None], id="one page"),
        pytest.param([page("ab", "t1"), page("cd", "t2"), page("e")], "abcde", [None, "t1", "t2"], id="three pages"),
        pytest.param(
            [page("ab", "t1"), page("", "t2", 410), page("cd")], "abcd", [None, "t1", "t2"], id="a view that expired"
        ),
        pytest.param([page("a", "t1"), LOST, page("b")], "ab", [None, "t1", "t1"], id="a page that was lost"),
    ],
)
def test_lists_are_read_page_by_page(answers: list[Any], names: str, tokens: list[Any]) -> None:
    """Everything once, whatever happens between two pages."""
    transport = ScriptedTransport(answers)

    async def no_sleep(_: float) -> None:
        """At once."""

    async def collect() -> list[dict[str, Any]]:
        client = KubeClient(transport, sleep=no_sleep)
        return [item async for item in client.list(Kind.JOB, None, "a=b", limit=2)]

    found = asyncio.run(collect())
    assert "".join(item["metadata"]["name"] for item in found) == names
    assert {item["kind"] for item in found} <= {"Job"}
    assert [dict(request.query).get("continue") for request in transport.requests] == tokens
    assert {dict(request.query)["labelSelector"] for request in transport.requests} == {"a=b"}
    assert {request.path for request in transport.requests} == {"/apis/batch/v1/jobs"}


def test_writes_bear_our_name_and_misspelt_fields_are_refused() -> None:
    """The field manager on every write, strict validation, force only where asked."""
    for call, arguments in (("create", CREATE), ("apply", GET | {"body": {}}), ("patch_status", GET | {"body": {}})):
        _, transport, _ = ask(call, OK, **arguments)
        query = dict(transport.requests[0].query)
        assert (query["fieldManager"], query["fieldValidation"]) == ("amdahl-loop", "Strict")
    forced = [ask("apply", OK, force=force, **GET, body={})[1].requests[0] for force in (True, False)]
    assert [dict(request.query)["force"] for request in forced] == ["true", "false"]


def test_an_update_without_a_version_is_a_mistake_of_ours() -> None:
    """It could undo what somebody else wrote meanwhile."""
    with pytest.raises(AssertionError, match="resourceVersion"):
        ask("replace", OK, **GET, body={"metadata": {"name": "j"}})


@pytest.mark.parametrize(
    ("answer", "result"),
    [(Answer(status=200, body={}), True), (status(404), False), (Answer(status=202, body={}), True)],
)
def test_deleting_names_the_very_object(answer: Answer, result: bool) -> None:
    """The UID goes along; what is gone already is no error."""
    found, transport, _ = ask("delete", answer, **GET, uid="u-1")
    assert found is result
    assert transport.requests[0].body == {"propagationPolicy": "Background", "preconditions": {"uid": "u-1"}}


def test_deleting_an_object_that_bears_an_old_name_is_refused() -> None:
    """Another object of the same name is left alone."""
    found, _, _ = ask("delete", status(409, "Conflict", "the UID in the precondition does not match"), **GET, uid="u-1")
    assert isinstance(found, Refused)
    assert found.is_outdated


@pytest.mark.parametrize("name", ["..", "a/b", "", "A", "a?x=1", "a" * 254, "-a", "%2e%2e"])
def test_nothing_but_names_gets_into_a_path(name: str) -> None:
    """A name that the server could not know never reaches it."""
    with pytest.raises(ValueError, match="no name of an object"):
        Kind.JOB.path(name, "j")
    if name:
        with pytest.raises(ValueError, match="no name of an object"):
            Kind.JOB.path("team", name)


def test_events_say_a_thing_once_an_hour() -> None:
    """The name is derived from the words, so that a repeated pass meets its own event."""
    about = {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "team", "name": "p", "uid": "u"}}
    sent = [
        ask("post_event", status(409, "AlreadyExists"), about=about, reason=reason, message="x" * 5000)[1].requests[0]
        for reason in ("Started", "Started", "Stopped")
    ]
    names = [request.body["metadata"]["name"] for request in sent if request.body]
    assert names[0] == names[1] != names[2]
    body = sent[0].body or {}
    assert len(body["note"]) == 1000
    assert body["regarding"]["uid"] == "u"
    assert body["eventTime"] == "2001-09-09T01:46:40.000000Z"


@pytest.mark.parametrize("content", [None, "", "]", "kind: Config"])
def test_a_kubeconfig_that_cannot_be_used_is_named(tmp_path: Any, content: str | None) -> None:
    """File and fix, whatever is wrong with it."""
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AccessError, match=r"kubeconfig.*--kubeconfig"):
        asyncio.run(open_transport(path))


def test_a_pod_without_an_account_is_told_so() -> None:
    """In a cluster the way in is the pod's service account."""
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(AccessError, match="service account"):
        asyncio.run(open_transport(environ=environ))


@pytest.mark.parametrize(
    ("server_s", "now_s"),
    [(None, 1e9), (1e9 + 1, 1e9), (1e9 - 1, 1e9), (1e9 + 3600, 1e9 + 3600), (1e9 - 300, 1e9 - 300)],
    ids=["it tells none", "it agrees", "it agrees too", "ours is behind", "ours is ahead"],
)
def test_the_time_is_the_servers(server_s: float | None, now_s: float) -> None:
    """What lies in the cluster is dated by the server's clock; ours may be wrong by an hour."""

    async def ask_and_tell() -> float:
        transport = ScriptedTransport([Answer(status=404, body={}, at_s=server_s)])
        async with KubeClient(transport, clock=lambda: 1e9) as client:
            assert client.now_s() == 1e9
            await client.get(Kind.JOB, "team", "j")
            return client.now_s()

    assert asyncio.run(ask_and_tell()) == now_s
