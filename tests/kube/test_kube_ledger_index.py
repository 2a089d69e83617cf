"""What the index keeps of closed experiments, and that decisions need no more."""

import asyncio
import json
import marshal
from typing import Any

import pytest

from amdahl_loop.adapters.kube.index import LATEST, ExperimentIndex, Key
from amdahl_loop.adapters.kube.rows import compact, expand, make_row
from amdahl_loop.adapters.memory import MemoryLedger
from amdahl_loop.domain.api import records
from amdahl_loop.domain.api.experiment import ExperimentStatus
from amdahl_loop.domain.api.plans import write_plan
from amdahl_loop.domain.api.records import StoredExperiment
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.experiments import Experiment, Loss, Plan
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind, JobMemory
from amdahl_loop.domain.plan import Apply, next_action
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.verdicts import Verdict, VerdictWord
from amdahl_loop.reconcile import Identity, Ports, tick
from builders import FAMILY, FINGERPRINT, UID, make_job
from fakes import SimulatedRunner, Truth, compute_bound, loader_bound
from judge_builders import make_plan

NO_GAIN = Verdict(word=VerdictWord.NO_GAIN, sentence="No gain.")


def write(
    experiment: Experiment,
    closed_at_s: float | None = None,
    applications: tuple[Application, ...] = (),
    version: int = 1,
) -> dict[str, Any]:
    """The object that a server would hold."""
    status = ExperimentStatus()
    for block in experiment.blocks:
        status = records.add_block(status, block)
    for loss in experiment.losses:
        status = records.add_loss(status, loss)
    if experiment.verdict is not None:
        status = records.close(status, experiment.verdict, closed_at_s or 0.0)
    for application in applications:
        status = records.add_application(status, application)
    document = write_plan(experiment.plan)
    document["metadata"] |= {
        "namespace": "team",
        "uid": f"uid-of-{experiment.name}",
        "resourceVersion": str(version),
        "creationTimestamp": "2026-11-21T10:00:00Z",
    }
    return json.loads(json.dumps(document | {"status": to_wire(status)}))  # type: ignore[no-any-return]  # JSON is Any


def closed(
    name: str, closed_at_s: float = 1.0, word: VerdictWord = VerdictWord.NO_GAIN, after: int = 2, **plan: Any
) -> dict[str, Any]:
    """A closed experiment without blocks."""
    verdict = Verdict(word=word, sentence=f"{word}.", effect=0.3)
    return write(Experiment(plan=make_plan(name=name, after=after, **plan), verdict=verdict), closed_at_s)


def make_application(kind: ApplicationKind, experiment: str) -> Application:
    """Two workers in force, or taken back."""
    return Application(
        job="job",
        job_uid="uid",
        fingerprint="f" * 16,
        at_s=1.0,
        kind=kind,
        experiment=experiment,
        declared=Knobs(dataloader_workers=0),
        knobs=Knobs(dataloader_workers=2),
    )


def names(keys: list[Key]) -> list[str]:
    """Names of experiments."""
    return [key.name for key in keys]


class TestCompactForm:
    """A closed experiment without its evidence."""

    @pytest.mark.parametrize(
        "truth", [loader_bound, compute_bound, lambda _: loader_bound(Knobs(dataloader_workers=0))]
    )
    @pytest.mark.parametrize("tuning", [{}, {"mode": "Recommend"}, {"budget": {"deviceHours": "0.2"}}])
    def test_decisions_need_no_more(self, truth: Any, tuning: dict[str, Any]) -> None:
        """At every pass of whole loops, over one job and a kin of it, the compact memory gives the very same action."""
        job = make_job({"dataloaderWorkers": 0, "prefetchFactor": 1}, {"profile": "quick"} | tuning)
        ledger = MemoryLedger()
        passes = asyncio.run(
            self._loop(job, Identity(job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY), ledger, truth)
        )
        kin = Identity(job_uid="kin", fingerprint="b" * 16, family=FAMILY)
        passes += asyncio.run(self._loop(job, kin, ledger, truth))
        assert passes > 3

    async def _loop(self, job: TrainingJob, identity: Identity, ledger: MemoryLedger, truth: Any) -> int:
        ports = Ports(runner=SimulatedRunner(Truth(phases_s=truth)), ledger=ledger, clock=lambda: 1000.0)
        for number in range(400):
            memory = await ledger.recall(identity.job_uid, identity.fingerprint, identity.family)
            seen = await tick(job, identity, ports)
            decided = next_action(seen.snapshot.model_copy(update={"memory": shrink(memory)}))
            if isinstance(seen.action, Apply):  # it carries the experiment, of which only the name is used
                assert isinstance(decided, Apply)
                assert (decided.experiment.name, decided.knobs) == (seen.action.experiment.name, seen.action.knobs)
            else:
                assert decided == seen.action
            if seen.is_over:
                return number + 1
        raise AssertionError("the loop does not end")

    def test_what_it_held_is_the_same_to_the_last_digit(self) -> None:
        """Blocks, holdouts and losses as one sum."""
        plan = make_plan()
        whole = Experiment(plan=plan, verdict=NO_GAIN)
        for number, held_s in enumerate((0.1, 0.2, 1e-9, 1 / 3)):
            whole = whole.with_loss(Loss(run=f"{plan.name}-d{number}", started_at_s=1.0, held_device_s=held_s))
        stored = expand(marshal.dumps(compact(write(whole, 5.0))))
        assert isinstance(stored, StoredExperiment)
        assert stored.experiment.held_device_s == whole.held_device_s
        assert stored.closed_at_s == 5.0

    def test_it_is_small(self) -> None:
        """Fifty thousand of them fit into 150 MiB."""
        assert len(make_row(closed("e0")).text) < 3000


def shrink(memory: JobMemory) -> JobMemory:
    """The memory as a cluster's ledger recalls it: closed experiments compact, but for wins that are or may be in force."""
    newest = {application.experiment: application.kind for application in memory.applications}
    live = {name for name, kind in newest.items() if kind is not ApplicationKind.ROLLED_BACK}

    def one(experiment: Experiment) -> Experiment:
        is_new_win = experiment.is_won and experiment.name not in newest
        if experiment.verdict is None or experiment.name in live or is_new_win:
            return experiment
        stored = expand(marshal.dumps(compact(write(experiment, memory.closed_at_s[experiment.name]))))
        assert isinstance(stored, StoredExperiment), stored
        return stored.experiment

    return memory.model_copy(
        update={
            "experiments": tuple(one(experiment) for experiment in memory.experiments),
            "family": tuple(one(experiment) for experiment in memory.family),
        }
    )


class TestWhatIsReadLive:
    """What may change, or may have changed."""

    @pytest.mark.parametrize(
        ("kinds", "is_live"),
        [
            ((), True),
            ((ApplicationKind.APPLIED,), True),
            ((ApplicationKind.APPLIED, ApplicationKind.REVERTED), True),
            ((ApplicationKind.APPLIED, ApplicationKind.ROLLED_BACK), False),
        ],
    )
    def test_wins_until_their_values_are_taken_back(self, kinds: tuple[ApplicationKind, ...], is_live: bool) -> None:
        """What may be put in force is judged by its blocks; a value that its owner put back still runs, as an overlay."""
        index = ExperimentIndex()
        won = Experiment(plan=make_plan(name="e0"), verdict=Verdict(word=VerdictWord.WON, sentence="Won."))
        index.learn(write(won, 1.0, tuple(make_application(kind, "e0") for kind in kinds)))
        assert index.is_unsettled(Key("team", "e0")) == is_live

    def test_open_doubtful_expected_and_unknown_ones(self) -> None:
        """Until the server has said how they stand."""
        index = ExperimentIndex()
        index.learn(write(Experiment(plan=make_plan(name="open"))))
        index.learn(closed("written"))
        index.expect(Key("team", "expected"), "uid")
        assert index.is_unsettled(Key("team", "open"))
        assert index.is_unsettled(Key("team", "expected"))
        assert index.is_unsettled(Key("team", "unknown"))
        assert not index.is_unsettled(Key("team", "written"))
        index.doubt(Key("team", "written"))
        assert index.is_unsettled(Key("team", "written"))
        index.learn(closed("written"))
        assert not index.is_unsettled(Key("team", "written"))
        assert names(index.of_job("team", "uid")) == ["written", "open", "expected"]
        index.forget(Key("team", "expected"))
        assert names(index.of_job("team", "uid")) == ["written", "open"]

    def test_a_name_that_another_job_has_taken_is_not_one_s_own(self) -> None:
        """Expected by one job, found to be another's."""
        index = ExperimentIndex()
        index.expect(Key("team", "e0"), "me")
        index.learn(closed("e0", job_uid="other"))
        assert index.of_job("team", "me") == []
        assert names(index.of_job("team", "other")) == ["e0"]
        assert names(index.of_kin("team", "me", "f" * 16, "a" * 16)) == ["e0"]


class TestStaleReads:
    """A server that shows the past."""

    KEY = Key("team", "e0")

    def test_the_past_is_not_believed_for_a_while(self) -> None:
        """Then it is: the store was put back. What is newer ends the suspicion at once."""
        index = ExperimentIndex()
        index.learn(closed("e0") | {"metadata": closed("e0")["metadata"] | {"resourceVersion": "12"}})
        past = closed("e0")
        now = past | {"metadata": past["metadata"] | {"resourceVersion": "12"}}
        assert index.is_older(past, 100.0, 60.0)
        assert index.is_older(past, 159.0, 60.0)
        assert not index.is_older(now, 159.5, 60.0)
        assert index.is_older(past, 170.0, 60.0)
        assert not index.is_older(past, 230.0, 60.0)

    def test_versions_that_are_no_numbers_are_never_old(self) -> None:
        """Some servers count otherwise."""
        index = ExperimentIndex()
        document = closed("e0")
        document["metadata"]["resourceVersion"] = "a7"
        index.learn(document)
        assert not index.is_older(document, 1.0, 60.0)


class TestKin:
    """Other jobs' experiments: enough to decide by, and never more than a few dozen."""

    def learn(self, *documents: dict[str, Any]) -> ExperimentIndex:
        index = ExperimentIndex()
        for document in documents:
            index.learn(document)
        return index

    def test_own_and_other_namespaces_are_no_kin(self) -> None:
        """Knowledge stays within a namespace: another tenant's verdicts bind nobody."""
        elsewhere = closed("elsewhere", job_uid="other")
        elsewhere["metadata"]["namespace"] = "others"
        index = self.learn(closed("own", job_uid="me"), closed("kin", job_uid="other"), elsewhere)
        assert names(index.of_kin("team", "me", "f" * 16, "a" * 16)) == ["kin"]

    def test_open_ones_say_nothing_yet(self) -> None:
        """Until they are closed."""
        index = self.learn(write(Experiment(plan=make_plan(name="open", job_uid="other"))))
        assert index.of_kin("team", "me", "f" * 16, "a" * 16) == []

    def test_the_newest_answer_to_each_question_is_kept_for_good(self) -> None:
        """However many experiments of the family came after it, and in whatever order they were listed."""
        asked = [closed(f"asked-{n}", float(n), after=8, job_uid="other") for n in (2, 0, 1)]
        lost = closed("lost", 0.5, VerdictWord.REFUTED, after=8, job_uid="other")
        many = [closed(f"e{n}", 10.0 + n, job_uid=f"other-{n}") for n in range(3 * LATEST)]
        index = self.learn(*asked, lost, *many)
        kin = names(index.of_kin("team", "me", "f" * 16, "a" * 16))
        assert kin[:2] == ["lost", "asked-2"]
        assert kin[2:] == [f"e{n}" for n in range(2 * LATEST, 3 * LATEST)]

    def test_one_that_is_gone_is_forgotten_everywhere(self) -> None:
        """Deleted by hand: nobody hears of it again."""
        index = self.learn(closed("kin", job_uid="other"))
        index.forget(Key("team", "kin"))
        assert index.of_kin("team", "me", "f" * 16, "a" * 16) == []
        assert index.of_job("team", "other") == []
        assert len(index) == 0


def test_an_open_experiment_that_closes_becomes_a_row() -> None:
    """What was read live until then is answered from the index."""
    index, plan = ExperimentIndex(), make_plan(name="e0")
    index.learn(write(Experiment(plan=plan)))
    assert index.recall(Key("team", "e0")) is None
    index.learn(write(Experiment(plan=plan, verdict=NO_GAIN), 9.0, version=2))
    stored = index.recall(Key("team", "e0"))
    assert isinstance(stored, StoredExperiment)
    assert (stored.experiment.verdict, stored.closed_at_s) == (NO_GAIN, 9.0)
    assert _identity(stored.experiment.plan) == _identity(plan)


def _identity(plan: Plan) -> object:
    return plan.model_copy(update={"blocks": ()})


def test_a_version_is_parsed_once() -> None:
    """The same object again is the same value; a later version is read anew."""
    index, document = ExperimentIndex(), closed("e0")
    first = index.parse(document)
    assert index.parse(document) is first
    assert index.parse(document | {"metadata": document["metadata"] | {"resourceVersion": "2"}}) is not first
