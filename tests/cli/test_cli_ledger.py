"""`explain`, `ledger`, `show`, `replay`, `export`, `import`: what is remembered, and that it can be believed."""

import asyncio
import json
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from amdahl_loop.adapters.sqlite import SqliteLedger
from amdahl_loop.adapters.sqlite.entries import Body, Entry, entry_of, parse_export
from amdahl_loop.cli.replay import replay
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.telemetry import WindowOutcome
from fakes import Truth, compute_bound, loader_bound


def test_explain_observes_and_tries_nothing(cli: Any) -> None:
    """One run is started, the ideas are weighed, and a later `run` does not observe again."""
    called = cli("explain", cli.manifest, "-o", "json")
    told = called.json

    assert (called.code, len(cli.submitted)) == (0, 1)
    assert set(told) == {
        "job", "observation", "diagnosis", "next", "ideas", "rejected", "settled", "ledger", "policies", "ignore",
    }  # fmt: skip
    assert [idea["worth_trying"] for idea in told["ideas"]] == [True]
    assert "would try this first: dataloaderWorkers 0 -> 3" in told["next"]
    cli("run", cli.manifest)
    assert len([run for run in cli.submitted if run.endswith("-o0")]) == 1


def test_explain_after_a_run_tells_what_is_settled(make_cli: Callable[..., Any]) -> None:
    """A lost idea is named with its verdict; nothing is started."""
    cli = make_cli(Truth(phases_s=lambda _: loader_bound(Knobs(dataloader_workers=0))))
    cli("run", cli.manifest)
    started = len(cli.submitted)
    told = cli("explain", cli.manifest, "-o", "json").json

    assert len(cli.submitted) == started
    assert told["ideas"] == []
    assert "no gain" in told["settled"][0]
    assert "Every idea has been tried." in told["next"]


def test_explain_names_what_may_not_be_tried(make_cli: Callable[..., Any]) -> None:
    """A pinned knob is never touched, and explain has a word for a compute-bound job as well."""
    cli = make_cli(Truth(phases_s=compute_bound), tuning={"pin": ["dataloaderWorkers"]})
    called = cli("explain", cli.manifest, "-o", "json")

    assert (called.code, called.json["diagnosis"]["class"]) == (0, "ComputeBound")
    assert called.json["diagnosis"]["ceilings"] == {}
    assert called.json["next"].endswith("No knob is expected to help.")


def test_explain_of_a_job_that_fails_is_code_1(make_cli: Callable[..., Any]) -> None:
    """There is nothing to explain but the failure."""
    cli = make_cli(Truth(phases_s=loader_bound, outcome=lambda _: WindowOutcome.HANG))
    called = cli("explain", cli.manifest)

    assert called.code == 1
    assert "stopped making steps" in called.err


def test_ledger_lists_and_show_opens(cli: Any) -> None:
    """Both tell the same experiment; a beginning of its name suffices; every window of every block is there."""
    cli("run", cli.manifest)
    (listed,) = cli("ledger", "-o", "json").json["experiments"]
    shown = cli("show", "pydocs-", "-o", "json").json

    assert shown["experiment"] == listed
    assert listed["verdict"] == "Won"
    assert [len(run["windows"]) for run in shown["runs"]] == [len(run["order"]) for run in shown["runs"]]
    assert {run["stage"] for run in shown["runs"]} == {"proof", "discovery", "refute", "soak", "null"}
    null = next(run for run in shown["runs"] if run["stage"] == "null")
    assert {window["ran"] for window in null["windows"]} == {"A"}
    assert {window["arm"] for window in null["windows"]} == {"A", "B"}
    for words in (["ledger"], ["show", listed["id"]]):
        assert listed["id"] in cli(*words).out


def test_show_draws_a_readable_svg(cli: Any, tmp_path: Path) -> None:
    """Well-formed, standing alone, with a mark for every judged block, a floor, a claim, and a dark variant."""
    cli("run", cli.manifest)
    file = tmp_path / "blocks.svg"
    shown = cli("show", "pydocs", "--svg", file, "-o", "json").json
    text = file.read_text()
    space = {"svg": "http://www.w3.org/2000/svg"}
    root = ET.fromstring(text)  # our own file

    judged = [run for run in shown["runs"] if run["effect"] is not None]
    titles = [title.text for title in root.findall(".//svg:circle/svg:title", space)]
    assert [str(title).split(":")[0] for title in titles] == [run["name"] for run in judged]
    assert root.findall(".//svg:line[@class='floor']", space)
    assert root.findall(".//svg:line[@class='claim']", space)
    assert root.findall(".//svg:rect[@class='band']", space)
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_replay_agrees_with_the_record(cli: Any) -> None:
    """Every decision of a whole loop is derived anew, with nothing started."""
    cli("run", cli.manifest)
    started = len(cli.submitted)
    called = cli("replay", cli.ledger, "-o", "json")

    assert called.code == 0
    assert called.json["agree"]
    assert called.json["not_derived"] == []
    assert called.json["decisions"] == sum(one["decisions"] for one in called.json["replayed"]) > 14
    assert len(cli.submitted) == started


def test_replay_agrees_over_failures_changes_and_other_profiles(cli: Any) -> None:
    """Several jobs, a failed observation, edited code, another profile, a written manifest: all in one ledger."""
    healthy = cli.truth
    cli.truth = Truth(phases_s=loader_bound, outcome=lambda _: WindowOutcome.CRASH)
    cli("run", cli.manifest)
    cli("run", cli.manifest)
    cli.truth = healthy
    cli("run", cli.manifest, "--write")
    (cli.folder / "train.py").write_text("print('changed')")
    cli("run", cli.manifest, "--profile", "standard")
    cli.write(cli.manifest.read_text().replace("pydocs", "other").replace("train.py", "train.py, --lr=1"))
    cli("run", cli.manifest)
    called = cli("replay", cli.ledger)

    assert called.code == 0, called.out


def test_replay_agrees_with_every_beginning_of_a_record(cli: Any) -> None:
    """Wherever a loop was cut, what it had recorded by then follows from what came before."""
    cli("run", cli.manifest)
    bodies = read_ledger(cli.ledger)

    for end in range(len(bodies)):
        assert [d for d in asyncio.run(replay(bodies[:end])) if d.difference or not d.is_derived] == []


def test_a_change_by_the_owner_ends_an_experiment_and_replays(cli: Any) -> None:
    """The open experiment is closed as cancelled; the record of it can be derived, because the job was observed again."""
    cli("run", cli.manifest)
    cut = cli.folder / "cut.sqlite"
    write_ledger(cut, map(entry_of, read_ledger(cli.ledger)[:6]))
    cli.write(cli.manifest.read_text().replace("dataloaderWorkers: 0", "dataloaderWorkers: 1"))
    told = cli("run", cli.manifest, "--ledger", cut, "-o", "json").json
    replayed = cli("replay", cut, "-o", "json")

    assert (told["experiments"][0]["verdict"], told["experiments"][0]["reason"]) == ("Inconclusive", "Cancelled")
    assert told["experiments"][-1]["verdict"] == "Won"
    assert (replayed.code, replayed.json["not_derived"]) == (0, [])


@pytest.mark.parametrize("edited", ["verdict", "plan"])
def test_replay_disagrees_with_an_edited_record(cli: Any, tmp_path: Path, edited: str) -> None:
    """A verdict or a seed that the loop would not have written is found and named; code 5."""
    cli("run", cli.manifest)
    forged = tmp_path / "forged.sqlite"
    write_ledger(forged, (forge(entry_of(body), edited) for body in read_ledger(cli.ledger)))
    called = cli("replay", forged, "-o", "json")

    assert called.code == 5
    assert called.json["first_difference"].startswith(
        {"verdict": "verdict NoGain on pydocs-", "plan": "plan pydocs-"}[edited]
    )


def read_ledger(path: Path) -> list[Body]:
    """Every entry's content."""
    with SqliteLedger.open(path, exclusive=False) as ledger:
        return list(parse_export(ledger.export_lines()))


def write_ledger(path: Path, entries: Iterable[Entry]) -> None:
    """A ledger whose chain is sound, whatever it says."""
    lines, head = [], ""
    for entry in entries:
        head = entry.hash_after(head)
        lines.append(json.dumps({"kind": entry.kind, "body": entry.body, "hash": head}))
    header = json.dumps({"v": "amdahl.ledger/1", "entries": len(lines), "head": head})
    with SqliteLedger.open(path) as ledger:
        ledger.import_lines([header, *lines])


def forge(entry: Entry, edited: str) -> Entry:
    """The entry as a liar who knows the format would write it."""
    if edited == "verdict" == entry.kind:
        return entry._replace(body=entry.body.replace('"word":"Won"', '"word":"NoGain"'))
    if edited == "plan" == entry.kind:
        return entry._replace(body=entry.body.replace('"maxSlowdown":1.05', '"maxSlowdown":9.0'))
    return entry


def test_a_ledger_is_carried_to_another_machine(cli: Any, tmp_path: Path) -> None:
    """What was exported is imported once, and then nothing is left to try."""
    first = cli("run", cli.manifest, "-o", "json")
    file, other = tmp_path / "ledger.jsonl", tmp_path / "other.sqlite"
    started = len(cli.submitted)

    assert cli("export", file).code == 0
    assert cli("export").out == file.read_text()
    assert (
        cli("import", file, "--ledger", other, "-o", "json").json["entries"] == len(file.read_text().splitlines()) - 1
    )
    assert cli("import", file, "--ledger", other, "-o", "json").json["entries"] == 0
    again = cli("run", cli.manifest, "--ledger", other, "-o", "json")
    assert len(cli.submitted) == started
    assert {**again.json, "ledger": ""} == {**first.json, "ledger": ""}


def test_readers_leave_the_ledger_alone(cli: Any) -> None:
    """Looking is not writing: the entries are the same afterwards."""
    cli("run", cli.manifest)

    def entries() -> list[Any]:
        with sqlite3.connect(f"file:{cli.ledger}?mode=ro", uri=True) as connection:
            found = connection.execute("SELECT * FROM entries").fetchall()
        connection.close()
        return found

    before = entries()
    for words in (["ledger"], ["show", "pydocs"], ["replay", cli.ledger], ["export"]):
        assert cli(*words).code == 0
    assert entries() == before
