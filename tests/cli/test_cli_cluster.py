"""The commands over a cluster, without one: what is typed, what a server refuses, and how facts become entries and back."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.restore import build_piece
from amdahl_loop.adapters.kube.rows import compact
from amdahl_loop.adapters.kube.transport import AccessError, Answer, Request, UnreachableError
from amdahl_loop.adapters.sqlite.entries import Body, Closed, Measured, Observed, render_export
from amdahl_loop.cli.transfer import KnownJob, gather_experiments, list_bodies
from amdahl_loop.domain.api.records import StoredExperiment, read_experiment
from amdahl_loop.domain.api.training_job import report_observation
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.experiments import Loss, Plan
from amdahl_loop.domain.ledger import Application, ApplicationKind
from fakes import Truth, compute_bound, loader_bound
from kube_builders import ListsOnly
from ledger_builders import CLUSTER_UID, Called, call, make_cluster_job, play, reach

WAITS = Truth(phases_s=loader_bound)
EMPTY = Answer(status=200, body={"items": []})


class Script(ListsOnly):
    """A server that answers every request alike."""

    def __init__(self, answer: Answer | Exception) -> None:
        self._answer = answer

    async def send(self, request: Request) -> Answer:
        del request
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    async def close(self) -> None:
        """Nothing is open."""


def ask(answer: Answer | Exception, *words: str | Path) -> Called:
    """A command to a cluster that always answers so."""

    async def sleep(_: float) -> None:
        """Nobody waits in a test."""

    return call(*words, connect=reach(lambda: KubeClient(Script(answer), sleep=sleep)))


def refusal(status: int, message: str) -> Answer:
    return Answer(status=status, body={"message": message, "reason": "X"})


FORBIDDEN = 'experiments.amdahl-loop.io is forbidden: User "eve" cannot list resource "experiments" in API group "amdahl-loop.io"'
TROUBLES = {
    "nobody answers": (UnreachableError("ClientConnectorError: refused"), ["does not answer", "--kubeconfig"]),
    "no definitions": (refusal(404, "404 page not found"), ["does not know this program's kinds", "install"]),
    "no credentials": (refusal(401, "Unauthorized"), ["does not know who asks", "renew"]),
    "no right": (refusal(403, FORBIDDEN), [FORBIDDEN, "docs/cli.md"]),
    "a broken server": (refusal(500, "etcdserver: no leader"), ["etcdserver: no leader", "again"]),
}
COMMANDS = {
    "fleet": ["-n", "team"],
    "ledger": ["-A"],
    "show": ["pydocs", "-n", "team"],
    "explain": ["pydocs", "-n", "team"],
    "export": ["-n", "team"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("answer", "told"), TROUBLES.values(), ids=TROUBLES)
def test_a_cluster_that_cannot_be_read(command: str, answer: Any, told: list[str]) -> None:
    """Code 4 and one bounded sentence that names what was refused and the fix; nothing on standard output."""
    called = ask(answer, command, *COMMANDS[command])

    assert (called.code, called.out) == (4, "")
    assert len(called.err) < 700
    for words in told:
        assert words in " ".join(called.err.split())


def test_an_import_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    """The file is read before the cluster, and the server's word about the right that is missing comes through."""
    file = tmp_path / "export.jsonl"
    file.write_text("".join(f"{line}\n" for line in render_export(play(make_cluster_job(), WAITS, tmp_path / "x.db"))))
    called = ask(refusal(403, FORBIDDEN), "import", file, "-n", "team")

    assert called.code == 4
    assert FORBIDDEN in called.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["fleet", "-n", "../etc"], 2, "no namespace's name"),
        (["fleet", "-n", "team", "-A"], 2, "not allowed with"),
        (["export", "-A"], 2, "unrecognized arguments: -A"),
        (["fleet", "x"], 2, "unrecognized arguments: x"),
        (["ledger", "-n", "team", "--ledger", "x.sqlite"], 2, "are two places"),
        (["ledger", "--kubeconfig", "/no/such/file"], 4, "there is no kubeconfig at /no/such/file"),
        (["explain", "job.yaml", "-n", "team"], 2, "job.yaml is a file: name the job"),
        (["explain", "../x", "-n", "team"], 2, "no TrainingJob is named '../x' in namespace team; name one of: none"),
        (["show", "../x", "-n", "team"], 2, "no experiment is named '../x' in namespace team; name one of: none"),
    ],
)
def test_wrong_usage(words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The option or name is named with the fix."""
    called = ask(EMPTY, *words)

    assert called.code == code
    assert told in " ".join((called.err + capsys.readouterr().err).split())


@pytest.mark.parametrize("content", ["", "{}", "a: [", "apiVersion: v1\nkind: Config\n"])
def test_a_kubeconfig_that_cannot_be_used(tmp_path: Path, content: str) -> None:
    """Code 4; the file is named."""
    path = tmp_path / "config"
    path.write_text(content)
    called = call("fleet", "--kubeconfig", path)

    assert called.code == 4
    assert str(path) in "".join(called.err.split())


def test_without_the_client_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fix is one command; what needs no cluster goes on working."""
    for name in ("amdahl_loop.cli.cluster", "amdahl_loop.cli.way"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "amdahl_loop.cli.cluster", None)

    called = call("fleet")
    assert called.code == 4
    assert "pip install 'amdahl-loop[operator]'" in called.err
    assert call("ledger").code == 3


def test_an_empty_cluster_is_no_trouble() -> None:
    """No job, no experiment, an export of nothing that replays."""
    assert ask(EMPTY, "fleet").out == "There is no TrainingJob in namespace team.\n"
    assert ask(EMPTY, "fleet", "-A", "-o", "json").code == 0
    assert ask(EMPTY, "ledger", "-A").out == "No experiment is recorded yet.\n"
    assert [json.loads(line) for line in ask(EMPTY, "export", "-n", "team").out.splitlines()] == [
        {"v": "amdahl.ledger/1", "entries": 0, "head": ""}
    ]


def test_no_way_into_a_cluster() -> None:
    """What was tried and the fix are the message."""

    async def connect(*_: object) -> Any:
        raise AccessError("kubeconfig /x: no current-context; name a file with --kubeconfig, or set KUBECONFIG")

    called = call("fleet", connect=connect)
    assert (called.code, called.out) == (4, "")
    assert "set KUBECONFIG" in called.err


# --- facts and entries ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Body, ...]:
    """What a loop records that wins."""
    return play(make_cluster_job(), WAITS, tmp_path_factory.mktemp("ledger") / "won.db")


def known_job(bodies: Sequence[Body]) -> dict[str, KnownJob]:
    """The job with the newest measurement, as its object would hold it."""
    newest = [body.observation for body in bodies if isinstance(body, Observed)][-1]
    return {CLUSTER_UID: KnownJob(job=newest.job, newest=report_observation(newest))}


def forget_knobs(bodies: Sequence[Body]) -> list[Any]:
    """Entries, without what the spec said of the knobs: an object keeps one spec, the present one."""
    told = [json.loads(body.model_dump_json()) for body in bodies]
    for body in told:
        if "observation" in body:
            body["observation"]["job"]["spec"].pop("knobs")
    return told


def test_experiments_become_the_entries_that_they_were_made_from(recorded: tuple[Body, ...]) -> None:
    """Plan, blocks, verdict, application and both measurements come out in the order in which they came."""
    assert [type(body) for body in recorded][:2] == [Observed, Plan]
    assert [type(body) for body in recorded][-3:] == [Closed, Application, Observed]
    again = list_bodies(gather_experiments(recorded), known_job(recorded))

    assert forget_knobs(again) == forget_knobs(recorded)


def test_an_experiment_keeps_what_its_plan_was_made_from(recorded: tuple[Body, ...]) -> None:
    """The measurement stands in the object and reads back; the operator's compact form, of which it holds thousands, does without."""
    (stored,) = gather_experiments(recorded)
    piece = build_piece(stored, "team")
    document = {**piece.body, "status": to_wire(piece.status)}
    document["metadata"] |= {"creationTimestamp": "2026-11-21T10:00:00Z"}
    read = read_experiment(document)

    assert isinstance(read, StoredExperiment)
    assert read.observation == stored.observation is not None
    assert (read.experiment, read.applications) == (stored.experiment, stored.applications)
    assert "observation" not in compact(document)["spec"]


def test_a_job_that_is_gone_leaves_its_experiments(recorded: tuple[Body, ...]) -> None:
    """Its measurements name a job that nobody knows any more, so they are left out; everything else stays."""
    again = list_bodies(gather_experiments(recorded), {})
    assert list(again) == [body for body in recorded if not isinstance(body, Observed)]


def test_jobs_are_told_in_the_order_of_their_facts(recorded: tuple[Body, ...], tmp_path: Path) -> None:
    """Two jobs side by side: each one's facts keep their order, whatever a node's clock says."""
    other = play(make_cluster_job(uid=CLUSTER_UID[:-1] + "1", name="other"), WAITS, tmp_path / "other.db")
    both = list_bodies([*gather_experiments(recorded), *gather_experiments(other)], known_job(recorded))
    mine = [body for body in both if _belongs(body, recorded)]

    assert forget_knobs(mine) == forget_knobs(recorded)
    assert len(both) == len(recorded) + sum(not isinstance(body, Observed) for body in other)


def _belongs(body: Body, bodies: Sequence[Body]) -> bool:
    (name,) = {plan.name for plan in bodies if isinstance(plan, Plan)}
    if isinstance(body, Observed):
        return body.job_uid == CLUSTER_UID
    return (body.name if isinstance(body, Plan) else body.experiment) == name


@pytest.mark.parametrize(
    ("offset_s", "after"),
    [pytest.param(0.5, Measured, id="between blocks"), pytest.param(1e6, Observed, id="after all")],
)
def test_a_stopped_run_is_told_where_it_happened(recorded: tuple[Body, ...], offset_s: float, after: type) -> None:
    """Before the next block, or after the verdict: it is charged either way."""
    first = next(body.record.started_at_s for body in recorded if isinstance(body, Measured))
    (stored,) = gather_experiments(recorded)
    loss = Loss(run=f"{stored.experiment.name}-d9", started_at_s=first + offset_s, held_device_s=3.0)
    lossy = stored.model_copy(update={"experiment": stored.experiment.with_loss(loss)})
    told = list_bodies([lossy], known_job(recorded))
    place = next(number for number, body in enumerate(told) if getattr(body, "loss", None) == loss)

    assert len(told) == len(recorded) + 1
    assert type(told[place - 1]) is after


# --- replay of a file -------------------------------------------------------------------------------------------------


def replay(bodies: Sequence[Body], folder: Path) -> tuple[int, Any]:
    """The verdict of `replay` on an exported file."""
    file = folder / "export.jsonl"
    file.write_text("".join(f"{line}\n" for line in render_export(bodies)))
    called = call("replay", file, "-o", "json")
    assert called.out, called.err
    return called.code, json.loads(called.out)


def test_an_exported_file_is_replayed(recorded: tuple[Body, ...], tmp_path: Path) -> None:
    """Every decision agrees, none is left out: an export needs no ledger around it."""
    code, told = replay(recorded, tmp_path)
    assert (code, told["agree"], told["decisions"], told["not_derived"]) == (0, True, len(recorded), [])


def test_a_changed_export_differs(recorded: tuple[Body, ...], tmp_path: Path) -> None:
    """An export whose chain is whole and whose verdict is another's: code 5 names both."""
    forged = [
        body.model_copy(update={"verdict": body.verdict.model_copy(update={"effect": 0.5})})
        if isinstance(body, Closed)
        else body
        for body in recorded
    ]
    code, told = replay(forged, tmp_path)
    assert (code, told["agree"]) == (5, False)
    assert "recorded 0.5" in told["first_difference"]


def test_what_a_cluster_no_longer_knows_is_listed_and_no_deviation(recorded: tuple[Body, ...], tmp_path: Path) -> None:
    """Without the first measurement nothing up to the second can be derived; the numbers of the runs tell that it is missing."""
    code, told = replay(recorded[1:], tmp_path)
    assert (code, told["agree"]) == (0, True)
    assert len(told["not_derived"]) == len(recorded) - 1


def test_what_an_owner_put_back_is_no_decision(recorded: tuple[Body, ...], tmp_path: Path) -> None:
    """A recorded revert is followed, not derived."""
    applied = next(body for body in recorded if isinstance(body, Application))
    revert = applied.model_copy(update={"kind": ApplicationKind.REVERTED, "at_s": applied.at_s + 1e6})
    code, told = replay([*recorded, revert], tmp_path)
    assert (code, told["decisions"], told["not_derived"]) == (0, len(recorded), [])


def test_a_roll_back_is_derived_from_what_failed(tmp_path: Path) -> None:
    """The program crashes under the proven value: an Experiment keeps why, and a replay takes the value back for that."""
    failing = "The program ended 3 times with exit code 1"
    bodies = play(make_cluster_job(), WAITS, tmp_path / "x.db", failing=failing)
    taken_back = next(body for body in bodies if isinstance(body, Application) and body.failing)
    again = list_bodies(gather_experiments(bodies), known_job(bodies))
    code, told = replay(again, tmp_path)

    assert taken_back.kind is ApplicationKind.ROLLED_BACK
    assert taken_back in again
    assert (code, told["agree"]) == (0, True), told["first_difference"]
    assert told["not_derived"] == []


@pytest.mark.parametrize("truth", [WAITS, Truth(phases_s=compute_bound)], ids=["won", "nothing to win"])
def test_one_machine_and_a_file_replay_alike(truth: Truth, tmp_path: Path) -> None:
    """The ledger itself and its export give the same answer."""
    play(make_cluster_job(), truth, tmp_path / "x.db")
    assert call("export", tmp_path / "x.jsonl", "--ledger", tmp_path / "x.db").code == 0
    told = [json.loads(call("replay", tmp_path / name, "-o", "json").out) for name in ("x.db", "x.jsonl")]
    assert {key: value for key, value in told[0].items() if key != "ledger"} == {
        key: value for key, value in told[1].items() if key != "ledger"
    }


SPOILT: dict[str, tuple[Callable[[list[str]], list[str]], list[str]]] = {
    "newer version": (
        lambda lines: [lines[0].replace("ledger/1", "ledger/2"), *lines[1:]],
        ["line 1", "'amdahl.ledger/2'", "use the amdahl-loop that wrote it"],
    ),
    "unknown kind": (
        lambda lines: [*lines[:2], lines[2].replace('"plan"', '"dream"'), *lines[3:]],
        ["line 3", "'dream'", "use the amdahl-loop that wrote it"],
    ),
    "no json": (lambda lines: [*lines[:4], "{,", *lines[5:]], ["line 5", "'{,'", "export it again"]),
    "wrong value": (
        lambda lines: [*lines[:2], lines[2].replace('\\"seed\\":', '\\"seed\\":\\"x\\",\\"s\\":'), *lines[3:]],
        ["line 3", "seed", "'x'", "export it again"],
    ),
    "edited": (
        lambda lines: [*lines[:3], lines[3].replace("device", "dev1ce", 1), *lines[4:]],
        ["line 4", "export it again"],
    ),
    "cut": (lambda lines: lines[:-2], ["ends at line", "it was cut", "export it again"]),
    "no text": (lambda lines: [*lines[:2], "\udcff\udcfe", *lines[3:]], ["line 3", "export it again"]),
}


@pytest.mark.parametrize("place", [[], ["-n", "team"]], ids=["a file", "a cluster"])
@pytest.mark.parametrize(("spoil", "told"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_export_is_refused_before_anything_is_written(
    recorded: tuple[Body, ...],
    tmp_path: Path,
    spoil: Callable[[list[str]], list[str]],
    told: list[str],
    place: list[str],
) -> None:
    """Code 3 with line, value and fix, wherever it was to go; the cluster is not even asked."""
    file = tmp_path / "export.jsonl"
    lines = spoil(list(render_export(recorded)))
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
    where = place or ["--ledger", str(tmp_path / "new.db")]
    called = ask(UnreachableError("asked"), "import", file, *where)

    assert called.code == 3
    for words in told:
        assert words in " ".join(called.err.split())
