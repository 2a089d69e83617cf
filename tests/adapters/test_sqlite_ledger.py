"""The ledger on disk: what was recorded is never lost, never changed, and never believed when damaged."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from amdahl_loop.adapters.sqlite import (
    LedgerConflictError,
    LedgerCorruptError,
    LedgerError,
    LedgerUnavailableError,
    SqliteLedger,
)
from amdahl_loop.adapters.sqlite.entries import Body, entry_of
from amdahl_loop.adapters.sqlite.file import APPLICATION_ID, MIGRATIONS
from amdahl_loop.domain.blocks import enumerate_blocks, holdout_block
from amdahl_loop.domain.experiments import BlockRecord, Loss, Plan
from amdahl_loop.domain.hypotheses import Change, Hypothesis, Source
from amdahl_loop.domain.knob_values import KnobName, Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind, JobMemory
from amdahl_loop.domain.profiles import PROFILES
from amdahl_loop.domain.telemetry import BlockReport, Phase
from amdahl_loop.domain.tuning import Objective, ProfileName
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from builders import FAMILY, FINGERPRINT, UID, make_job, make_observation, make_window

JOB = make_job()
VERDICT = Verdict(word=VerdictWord.NO_GAIN, sentence="No gain of 3 % or more.", effect=0.01, interval=(-0.01, 0.02))


def make_plan(
    name: str = "pydocs-e0", job_uid: str = UID, fingerprint: str = FINGERPRINT, family: str = FAMILY
) -> Plan:
    """A plan to try two loader workers."""
    change = Change(knob=KnobName.DATALOADER_WORKERS, before=0, after=2)
    constants = PROFILES[ProfileName.QUICK]
    return Plan(
        name=name,
        job="pydocs",
        job_uid=job_uid,
        fingerprint=fingerprint,
        family=family,
        hypothesis=Hypothesis(
            changes=(change,), phase=Phase.INPUT, expected_gain=0.3, source=Source.RULE, rationale="input waits"
        ),
        baseline=Knobs(dataloader_workers=0),
        variant=Knobs(dataloader_workers=2),
        objective=Objective.DEVICE_HOURS,
        max_slowdown=1.05,
        constants=constants,
        live=False,
        interruption_interval_s=86400,
        max_lost_work_s=1800,
        device_hours_ahead=200,
        seed=7,
        blocks=enumerate_blocks(7, constants),
    )


def make_block(plan: Plan, index: int, at_s: float = 100.1) -> BlockRecord:
    """The record of the plan's block number `index`."""
    spec = plan.blocks[index]
    report = BlockReport(run=plan.run_name(spec), state="done", windows=(make_window(1 / 3),))
    return BlockRecord(spec=spec, node="here", started_at_s=at_s, held_device_s=20.2, report=report)


def make_holdout(plan: Plan, index: int) -> BlockRecord:
    """The record of a block after the verdict."""
    return make_block(plan, 0).model_copy(update={"spec": holdout_block(plan.seed, index)})


LOSS = Loss(run="pydocs-e0-d3", started_at_s=7.5, held_device_s=3.25)


def make_application(at_s: float = 5.5) -> Application:
    """An applied win."""
    return Application(
        job="pydocs",
        job_uid=UID,
        fingerprint=FINGERPRINT,
        at_s=at_s,
        kind=ApplicationKind.APPLIED,
        experiment="pydocs-e0",
        declared=Knobs(dataloader_workers=0),
        knobs=Knobs(dataloader_workers=2),
    )


def fill(path: Path, plans: int = 2) -> None:
    """A ledger with an observation, closed experiments, one open experiment and an application."""

    async def record(ledger: SqliteLedger) -> None:
        await ledger.add_observation(UID, make_observation(JOB, make_window()))
        for number in range(plans):
            plan = make_plan(f"pydocs-e{number}")
            await ledger.add_plan(plan)
            for index in range(3):
                await ledger.add_block(plan.name, make_block(plan, index))
            await ledger.add_loss(plan.name, LOSS.model_copy(update={"run": f"{plan.name}-d3"}))
            await ledger.add_verdict(plan.name, VERDICT, 50.5 + number)
            await ledger.add_block(plan.name, make_holdout(plan, 0))
        await ledger.add_plan(make_plan("pydocs-open"))
        await ledger.add_application(make_application())

    with SqliteLedger.open(path) as ledger:
        asyncio.run(record(ledger))


def recall(path: Path) -> JobMemory:
    """What a reader finds."""
    with SqliteLedger.open(path, exclusive=False) as ledger:
        return asyncio.run(ledger.recall(UID, FINGERPRINT, FAMILY))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[SqliteLedger]:
    with SqliteLedger.open(path) as opened:
        yield opened


class TestRemembering:
    def test_everything_comes_back_as_it_was(self, path: Path) -> None:
        """Values read back are equal to those recorded, to the last digit, and in the order of recording."""
        fill(path)
        memory = recall(path)
        plan = make_plan("pydocs-e0")
        assert [e.name for e in memory.experiments] == ["pydocs-e0", "pydocs-e1", "pydocs-open"]
        assert memory.experiments[0].plan == plan
        assert memory.experiments[0].plan.hash == plan.hash
        blocks = (*(make_block(plan, index) for index in range(3)), make_holdout(plan, 0))
        assert memory.experiments[0].blocks == blocks
        assert memory.experiments[0].losses == (LOSS,)
        assert memory.experiments[0].verdict == VERDICT
        assert memory.experiments[2].verdict is None
        assert memory.closed_at_s == {"pydocs-e0": 50.5, "pydocs-e1": 51.5}
        assert memory.observations == (make_observation(JOB, make_window()),)
        assert memory.applications == (make_application(),)

    @pytest.mark.parametrize(
        ("uid", "fingerprint", "family", "own", "kin"),
        [
            pytest.param(UID, FINGERPRINT, FAMILY, ["same", "moved"], ["moved"], id="the job itself"),
            pytest.param("other", FINGERPRINT, FAMILY, ["same"], ["moved"], id="another job, same work"),
            pytest.param("other", "0" * 16, FAMILY, [], ["same", "moved"], id="kin only"),
            pytest.param("other", "0" * 16, "0" * 16, [], [], id="a stranger"),
        ],
    )
    def test_recall_tells_own_from_kin(
        self, ledger: SqliteLedger, uid: str, fingerprint: str, family: str, own: list[str], kin: list[str]
    ) -> None:
        """Own: same job or same fingerprint. Kin: closed, same family, another fingerprint."""
        for plan in (make_plan("same"), make_plan("moved", fingerprint="1" * 16), make_plan("far", "x", "2", "3")):
            asyncio.run(ledger.add_plan(plan))
            asyncio.run(ledger.add_verdict(plan.name, VERDICT, 1.0))
        asyncio.run(ledger.add_plan(make_plan("unfinished", "x", "4")))
        memory = asyncio.run(ledger.recall(uid, fingerprint, family))
        assert [e.name for e in memory.experiments] == own
        assert [e.name for e in memory.family] == kin

    def test_nothing_is_known_of_a_stranger(self, ledger: SqliteLedger) -> None:
        """An empty ledger answers with empty memory."""
        assert asyncio.run(ledger.recall(UID, FINGERPRINT, FAMILY)) == JobMemory()
        assert asyncio.run(ledger.experiments()) == ()

    def test_a_pass_that_finds_nothing_new_gets_the_same_memory(self, ledger: SqliteLedger) -> None:
        """The very same value, not an equal one, until something is recorded; another job's question is another one."""

        async def look(uid: str = UID) -> JobMemory:
            return await ledger.recall(uid, FINGERPRINT, FAMILY)

        plan = make_plan()
        asyncio.run(ledger.add_plan(plan))
        first = asyncio.run(look())
        assert asyncio.run(look()) is first
        assert asyncio.run(look("another")) is not first
        asyncio.run(ledger.add_block(plan.name, make_block(plan, 0)))
        assert [len(experiment.blocks) for experiment in asyncio.run(look()).experiments] == [1]
        assert [len(experiment.blocks) for experiment in first.experiments] == [0]

    def test_a_reader_sees_what_a_loop_adds_meanwhile(self, path: Path, ledger: SqliteLedger) -> None:
        """Both read on from where they were, whoever wrote; a record that was refused is not remembered by either."""
        plan = make_plan()
        with SqliteLedger.open(path, exclusive=False) as reader:
            assert asyncio.run(reader.experiments()) == ()
            asyncio.run(ledger.add_plan(plan))
            asyncio.run(ledger.add_block(plan.name, make_block(plan, 0)))
            with pytest.raises(LedgerConflictError):
                asyncio.run(ledger.add_block(plan.name, make_block(plan, 0, at_s=7)))
            assert asyncio.run(reader.experiments()) == asyncio.run(ledger.experiments())
            assert [e.blocks for e in asyncio.run(reader.experiments())] == [(make_block(plan, 0),)]


class TestExactlyOnce:
    def test_repeats_are_told_from_contradictions(self, ledger: SqliteLedger) -> None:
        """A plan may be recorded again, word for word; blocks and verdicts only once; nothing after the verdict."""
        plan = make_plan()
        asyncio.run(ledger.add_plan(plan))
        asyncio.run(ledger.add_plan(plan))
        asyncio.run(ledger.add_block(plan.name, make_block(plan, 0)))
        asyncio.run(ledger.add_observation(UID, make_observation(JOB, make_window())))
        asyncio.run(ledger.add_observation(UID, make_observation(JOB, make_window())))
        refused = [
            ledger.add_plan(make_plan(job_uid="other")),
            ledger.add_block(plan.name, make_block(plan, 0)),
            ledger.add_block(plan.name, make_block(plan, 0, at_s=7)),
            ledger.add_block("unplanned", make_block(plan, 1)),
            ledger.add_verdict("unplanned", VERDICT, 1.0),
            ledger.add_observation(UID, make_observation(JOB, make_window(steps=3))),
        ]
        for attempt in refused:
            with pytest.raises(LedgerConflictError, match=r"recorded|no plan"):
                asyncio.run(attempt)
        asyncio.run(ledger.add_verdict(plan.name, VERDICT, 1.0))
        for late in (ledger.add_block(plan.name, make_block(plan, 1)), ledger.add_verdict(plan.name, VERDICT, 2.0)):
            with pytest.raises(LedgerConflictError, match=r"after the verdict|once already|other content"):
                asyncio.run(late)
        (experiment,) = asyncio.run(ledger.experiments())
        assert experiment.blocks == (make_block(plan, 0),)
        assert experiment.verdict == VERDICT

    def test_holdout_blocks_come_after_the_verdict_and_charges_at_any_time(self, ledger: SqliteLedger) -> None:
        """A block that tests a win on is refused while the experiment is open; a stopped run is charged once."""
        plan = make_plan()
        with pytest.raises(LedgerConflictError, match="no plan"):
            asyncio.run(ledger.add_loss(plan.name, LOSS))
        asyncio.run(ledger.add_plan(plan))
        asyncio.run(ledger.add_loss(plan.name, LOSS))
        with pytest.raises(LedgerConflictError, match="h0 comes before the verdict"):
            asyncio.run(ledger.add_block(plan.name, make_holdout(plan, 0)))
        asyncio.run(ledger.add_verdict(plan.name, VERDICT, 1.0))
        asyncio.run(ledger.add_block(plan.name, make_holdout(plan, 0)))
        later = LOSS.model_copy(update={"run": "pydocs-e0-h1"})
        for loss in (LOSS, later, later):
            asyncio.run(ledger.add_loss(plan.name, loss))
        (experiment,) = asyncio.run(ledger.experiments())
        assert experiment.blocks == (make_holdout(plan, 0),)
        assert experiment.losses == (LOSS, later)

    @pytest.mark.parametrize("change", ["UPDATE entries SET body = '{}'", "DELETE FROM entries WHERE seq = 2"])
    def test_entries_never_change(self, path: Path, change: str) -> None:
        """Triggers hold even against other programs that write to the file."""
        fill(path)
        with sqlite3.connect(path) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(change)
        connection.close()

    def test_a_second_loop_is_told_and_readers_are_not(self, path: Path) -> None:
        """One writer per ledger, named by its process; anybody may read meanwhile; the lock ends with the loop."""
        with SqliteLedger.open(path) as first:
            asyncio.run(first.add_plan(make_plan()))
            with pytest.raises(LedgerUnavailableError, match=f"in use by another loop \\(process {os.getpid()}\\)"):
                SqliteLedger.open(path)
            assert len(recall(path).experiments) == 1
        SqliteLedger.open(path).close()

    def test_a_reader_cannot_write(self, path: Path) -> None:
        """`show` and `ledger` open the file without the right to change it."""
        fill(path)
        with (
            SqliteLedger.open(path, exclusive=False) as reader,
            pytest.raises(LedgerUnavailableError, match="readonly"),
        ):
            asyncio.run(reader.add_plan(make_plan("new")))


class TestDamage:
    @pytest.mark.parametrize(
        "tampering",
        [
            pytest.param("UPDATE entries SET body = replace(body, '0.01', '0.09') WHERE kind = 'verdict'", id="body"),
            pytest.param("UPDATE entries SET fingerprint = 'x' WHERE seq = 2", id="column"),
            pytest.param("DELETE FROM entries WHERE seq = 3", id="hole"),
            pytest.param("DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)", id="cut end"),
            pytest.param("DELETE FROM entries", id="emptied"),
            pytest.param("UPDATE entries SET seq = seq + 100 WHERE seq > 4", id="renumbered"),
            pytest.param("SELECT 1", id="triggers dropped"),
            pytest.param("PRAGMA user_version = 0", id="version reset"),
        ],
    )
    def test_an_edited_ledger_is_refused(self, path: Path, tampering: str) -> None:
        """Whoever drops the triggers still breaks the chain; the file is left as it was found."""
        fill(path)
        connection = sqlite3.connect(path, isolation_level=None)
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(tampering)
        for _, sql in triggers if tampering != "SELECT 1" else ():
            connection.execute(sql)
        connection.close()
        before = path.read_bytes()
        for exclusive in (True, False):
            with pytest.raises(LedgerCorruptError, match=r"ledger\.db"):
                SqliteLedger.open(path, exclusive)
        assert path.read_bytes() == before

    def test_an_older_copy_is_refused_until_the_loss_is_accepted(self, path: Path) -> None:
        """A restored backup lacks entries that were acknowledged; deleting the note beside it accepts that."""
        fill(path, plans=1)
        older = path.read_bytes()
        with SqliteLedger.open(path) as ledger:
            asyncio.run(ledger.add_plan(make_plan("newer")))
        path.write_bytes(older)
        with pytest.raises(LedgerCorruptError, match=r"older copy .* delete .*ledger\.db\.head"):
            SqliteLedger.open(path)
        path.with_name("ledger.db.head").unlink()
        assert [e.name for e in recall(path).experiments] == ["pydocs-e0", "pydocs-open"]

    def test_flipped_bits_are_never_believed(self, path: Path) -> None:
        """Any flipped byte is refused, unless it lies where nothing is recorded and everything reads as before."""
        fill(path)
        good, memory, random = path.read_bytes(), recall(path), Random(5)
        offsets = [*range(0, 100, 4), *(random.randrange(len(good)) for _ in range(150))]
        refused = 0
        for offset in offsets:
            damaged = bytearray(good)
            damaged[offset] ^= 1 << random.randrange(8)
            path.write_bytes(damaged)
            try:
                assert recall(path) == memory
            except LedgerError:
                refused += 1
            for leftover in ("-wal", "-shm"):
                path.with_name(path.name + leftover).unlink(missing_ok=True)
        assert refused > len(offsets) // 2

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
    def test_a_truncated_file_is_refused_and_not_overwritten(self, path: Path, share: float) -> None:
        """Also when nothing is left: the note beside the file says that there were entries."""
        fill(path)
        content = path.read_bytes()
        kept = content[: int(len(content) * share)]
        path.write_bytes(kept)
        with pytest.raises(LedgerCorruptError):
            SqliteLedger.open(path)
        assert path.read_bytes() == kept

    def test_a_removed_ledger_is_begun_anew(self, path: Path) -> None:
        """Taking the file away is a user's decision, not damage; nothing is overwritten by it."""
        fill(path)
        path.unlink()
        with SqliteLedger.open(path) as ledger:
            assert asyncio.run(ledger.experiments()) == ()

    @pytest.mark.parametrize(
        ("content", "error", "words"),
        [
            pytest.param(b"not a database" * 500, LedgerCorruptError, "put a backup in its place", id="garbage"),
            pytest.param(None, LedgerCorruptError, "no ledger", id="another program's database"),
        ],
    )
    def test_foreign_files_are_refused(
        self, path: Path, content: bytes | None, error: type[LedgerError], words: str
    ) -> None:
        """A file that is no ledger is named and left alone."""
        if content is None:
            with sqlite3.connect(path) as connection:
                connection.execute("CREATE TABLE theirs (x)")
            connection.close()
        else:
            path.write_bytes(content)
        before = path.read_bytes()
        with pytest.raises(error, match=words):
            SqliteLedger.open(path)
        assert path.read_bytes() == before

    def test_a_newer_schema_is_refused(self, path: Path) -> None:
        """An old program never writes into a ledger that a newer one made."""
        fill(path)
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
        with pytest.raises(LedgerUnavailableError, match=r"schema version 99.*newer amdahl-loop"):
            SqliteLedger.open(path)

    def test_paths_that_cannot_be_opened_say_so(self, tmp_path: Path) -> None:
        """Readers need a ledger, writers a writable folder."""
        with pytest.raises(LedgerUnavailableError, match="no ledger at"):
            SqliteLedger.open(tmp_path / "none.db", exclusive=False)
        (tmp_path / "file").write_text("")
        with pytest.raises(LedgerUnavailableError, match="cannot be written"):
            SqliteLedger.open(tmp_path / "file" / "ledger.db")
        (tmp_path / "folder.db").mkdir()
        with pytest.raises(LedgerUnavailableError, match="unable to open"):
            SqliteLedger.open(tmp_path / "folder.db")


def write_old_ledger(path: Path, bodies: list[Body], *unknown: str) -> None:
    """A ledger of schema version 1 whose plans lack the constants that came later."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(f"{MIGRATIONS[0]} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;")
    head = ""
    for seq, body in enumerate(bodies, start=1):
        entry = entry_of(body)
        content = json.loads(entry.body)
        for name in unknown:
            content.get("constants", {}).pop(name, None)
        entry = entry._replace(body=json.dumps(content))
        row = (seq, *entry, head, entry.hash_after(head))
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        head = entry.hash_after(head)
    connection.close()


class TestOlderVersions:
    UNKNOWN = ("checkSpacingS",)
    """Constants that a plan of an older version did not hold."""

    def test_an_old_ledger_is_read_as_it_is_and_lifted_by_the_next_loop(self, path: Path) -> None:
        """Readers change nothing; a writer lifts the schema once, and everything is there as before."""
        plan = make_plan()
        write_old_ledger(path, [plan, make_application()], *self.UNKNOWN)
        before = path.read_bytes()
        assert [experiment.plan for experiment in recall(path).experiments] == [plan]
        assert path.read_bytes() == before
        with SqliteLedger.open(path) as ledger:
            asyncio.run(ledger.add_plan(plan))
            asyncio.run(ledger.add_loss(plan.name, LOSS))
        (experiment,) = recall(path).experiments
        assert (experiment.plan, experiment.losses) == (plan, (LOSS,))
        assert recall(path).applications == (make_application(),)

    def test_an_old_export_is_taken_and_taken_once(self, path: Path, tmp_path: Path) -> None:
        """Also into the very ledger that it came from: what differs only in fields of later versions is the same."""
        write_old_ledger(path, [make_plan(), make_application()], *self.UNKNOWN)
        with SqliteLedger.open(path) as ledger:
            lines = list(ledger.export_lines())
            assert ledger.import_lines(lines) == 0
        with SqliteLedger.open(tmp_path / "there.db") as target:
            assert target.import_lines(lines) == 2
        assert recall(tmp_path / "there.db") == recall(path)

    def test_a_damaged_old_ledger_is_left_as_it_is(self, path: Path) -> None:
        """Nothing is lifted before the whole file was found to be sound."""
        write_old_ledger(path, [make_plan(), make_application()])
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("DROP INDEX entries_by_job")
        connection.close()
        before = path.read_bytes()
        with pytest.raises(LedgerCorruptError, match="tables or triggers"):
            SqliteLedger.open(path)
        assert path.read_bytes() == before


WRITER = """
import asyncio, resource, signal, sys
sys.path[:0] = sys.argv[4].split(":")
from pathlib import Path
import test_sqlite_ledger as t
limit = int(sys.argv[2])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
with t.SqliteLedger.open(Path(sys.argv[1])) as ledger:
    for number in range(int(sys.argv[3])):
        try:
            asyncio.run(ledger.add_plan(t.make_plan(f"w{number}")))
        except t.LedgerError as error:
            print("refused", error, flush=True)
            break
        print(number, flush=True)
"""
"""Records plans one after the other and says so after each; a file size limit stands for a full disk."""


def start_writer(path: Path, limit: int = 0, count: int = 100_000) -> subprocess.Popen[str]:
    """A real process that writes to the ledger."""
    folders = ":".join(str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[1]))
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(limit), str(count), folders], stdout=subprocess.PIPE, text=True
    )


class TestCrashes:
    @pytest.mark.parametrize("acknowledged", [1, 2, 5, 9, 17])
    def test_kill_9_loses_nothing_that_was_acknowledged(self, path: Path, acknowledged: int) -> None:
        """However a writer dies, the file opens, and every acknowledged entry is in it."""
        with start_writer(path) as writer:
            assert writer.stdout is not None
            said = [int(writer.stdout.readline()) for _ in range(acknowledged)]
            writer.send_signal(signal.SIGKILL)
            said += [int(line) for line in writer.stdout.read().split()]
        with SqliteLedger.open(path) as ledger:
            names = [e.name for e in asyncio.run(ledger.experiments())]
            asyncio.run(ledger.add_plan(make_plan("after")))
        assert names[: len(said)] == [f"w{number}" for number in said]
        assert len(names) <= len(said) + 1

    def test_a_full_disk_loses_nothing(self, path: Path) -> None:
        """The entry that no longer fits is refused with the fix; those before it are there, and writing goes on later."""
        with start_writer(path, limit=200_000) as writer:
            assert writer.stdout is not None
            *said, last = writer.stdout.read().splitlines()
        assert last.startswith("refused ")
        assert "nothing recorded was lost" in last
        assert len(said) >= 3
        with SqliteLedger.open(path) as ledger:
            assert [e.name for e in asyncio.run(ledger.experiments())] == [f"w{number}" for number in said]
            asyncio.run(ledger.add_plan(make_plan("after")))


class TestCarrying:
    def test_a_ledger_is_carried_over_once(self, path: Path, tmp_path: Path) -> None:
        """Import adds what is missing, is idempotent, and gives the same memory and the same export."""
        fill(path)
        with SqliteLedger.open(path, exclusive=False) as source:
            lines = list(source.export_lines())
        there = tmp_path / "there.db"
        with SqliteLedger.open(there) as target:
            assert target.import_lines(lines) == len(lines) - 1
            assert target.import_lines(lines) == 0
            assert list(target.export_lines()) == lines
        assert recall(there) == recall(path)

    def test_contradicting_content_is_refused_whole(self, path: Path, ledger: SqliteLedger) -> None:
        """Not one entry of a contradicting export is taken."""
        asyncio.run(ledger.add_plan(make_plan("pydocs-open", job_uid="other")))
        other = path.with_name("other.db")
        fill(other)
        with (
            SqliteLedger.open(other, exclusive=False) as source,
            pytest.raises(LedgerConflictError, match="pydocs-open"),
        ):
            ledger.import_lines(source.export_lines())
        assert [e.name for e in asyncio.run(ledger.experiments())] == ["pydocs-open"]

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            pytest.param(lambda lines: lines[:-1], "it was cut", id="cut"),
            pytest.param(lambda lines: [*lines[:3], *lines[4:]], "breaks the chain", id="hole"),
            pytest.param(lambda lines: [lines[0], *reversed(lines[1:])], "breaks the chain", id="order"),
            pytest.param(lambda lines: [line.replace("0.01", "0.09") for line in lines], "breaks the chain", id="edit"),
            pytest.param(lambda lines: lines[1:], "line 1", id="no header"),
            pytest.param(lambda _: [], "no export", id="empty"),
            pytest.param(lambda lines: [*lines, "{"], "no ledger entry", id="garbage"),
            pytest.param(lambda _: [json.dumps({"v": "x", "entries": 0, "head": ""})], "version .x.", id="version"),
        ],
    )
    def test_damaged_exports_are_refused(self, path: Path, tmp_path: Path, damage: object, words: str) -> None:
        """An export that was cut, edited or reordered adds nothing."""
        assert callable(damage)
        fill(path)
        with SqliteLedger.open(path, exclusive=False) as source:
            lines = damage(list(source.export_lines()))
        with SqliteLedger.open(tmp_path / "there.db") as target:
            with pytest.raises(LedgerCorruptError, match=words):
                target.import_lines(lines)
            assert asyncio.run(target.experiments()) == ()
