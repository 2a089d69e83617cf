"""The fleet's one order, and who may run a trial now: never beyond a limit, never before the owner's own work."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.fleet import (
    Idea,
    Limits,
    Member,
    Need,
    Pressure,
    Purpose,
    admit,
    describe,
    rank,
    removable_share,
)
from amdahl_loop.domain.ledger import JobMemory
from amdahl_loop.domain.plan import Admission, Launch, Propose, Snapshot, look, next_action
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from builders import FAMILY, FINGERPRINT, UID, make_job, make_observation, make_window

OPEN, KEEP, CONTINUE = Purpose.OPEN, Purpose.KEEP, Purpose.CONTINUE


def make_member(
    name: str = "a",
    namespace: str = "team",
    purpose: Purpose | None = OPEN,
    rate: float = 1.0,
    reserve_h: float = 1.0,
    **fields: object,
) -> Member:
    """A job that wants a trial and has room for it; `rate` is what it would bank for each device-hour."""
    need = None if purpose is None else Need(purpose=purpose, reserve_h=reserve_h)
    member = {
        "namespace": namespace,
        "name": name,
        "ideas": (Idea(key="k", expected_bank_h=rate, trial_h=1.0),),
        "need": need,
        "budget_h": 100.0,
    } | fields
    return Member.model_validate(member)


def granted(members: list[Member], **limits: object) -> list[str]:
    """Names of those admitted, in order."""
    decided = admit(members, Limits.model_validate({"trials": 1} | limits))
    return sorted(key.partition("/")[2] for key, admission in decided.items() if admission.admitted)


def say(member: Member, *others: Member, **limits: object) -> tuple[Reason, str]:
    """Why a job is refused, or that it is free."""
    decided = admit([member, *others], Limits.model_validate({"trials": 1} | limits))[member.key]
    return decided.reason, decided.sentence


class TestOrder:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            pytest.param({"rate": 2.0}, {"rate": 1.0, "wasted_h_per_h": 99.0}, id="what a trial brings comes first"),
            pytest.param({"removable_h_per_h": 2.0}, {"removable_h_per_h": 1.0, "wasted_h_per_h": 9.0}, id="removable"),
            pytest.param({"wasted_h_per_h": 2.0}, {"wasted_h_per_h": 1.0}, id="then all waste"),
            pytest.param({"rate": -5.0, "wasted_h_per_h": 2.0}, {"rate": -1.0}, id="what does not repay is worth 0"),
            pytest.param({"name": "a"}, {"name": "b"}, id="then the name"),
            pytest.param({"name": "z", "namespace": "a"}, {"name": "a", "namespace": "b"}, id="with its namespace"),
        ],
    )
    def test_one_comes_before_the_other(self, first: dict[str, object], second: dict[str, object]) -> None:
        """Whatever the order in which they are given."""
        one, other = (make_member(**{"name": name} | fields) for name, fields in (("x", first), ("y", second)))
        assert rank([one, other]) == rank([other, one]) == (one, other)

    def test_a_job_is_as_good_as_its_best_idea(self) -> None:
        """Many ideas that do not repay do not add up, and do not hide the one that does."""
        ideas = tuple(Idea(key=str(bank), expected_bank_h=bank, trial_h=2.0) for bank in (-9.0, 4.0, 1.0))
        assert make_member(ideas=ideas).return_rate == 2.0
        assert make_member(ideas=()).return_rate == 0.0


class TestAdmission:
    @pytest.mark.parametrize(
        ("members", "expected"),
        [
            pytest.param([{"name": "a", "rate": 1.0}, {"name": "b", "rate": 2.0}], ["b"], id="the better idea"),
            pytest.param([{"name": "a", "rate": 9.0}, {"name": "b", "purpose": CONTINUE}], ["b"], id="what was begun"),
            pytest.param([{"name": "a", "rate": 9.0}, {"name": "b", "purpose": KEEP}], ["b"], id="a win is tested on"),
            pytest.param([{"name": "a", "purpose": KEEP}, {"name": "b", "purpose": CONTINUE}], ["b"], id="begun first"),
            pytest.param(
                [{"name": "a", "purpose": CONTINUE, "rate": 9.0}, {"name": "b", "holds_h": 1.0}], ["b"], id="who holds"
            ),
            pytest.param([{"name": "a", "purpose": None}, {"name": "b"}], ["b"], id="who wants nothing takes no place"),
            pytest.param(
                [{"name": "a", "purpose": None, "holds_h": 1.0}, {"name": "b"}], [], id="a trial that is about to end"
            ),
        ],
    )
    def test_the_one_place_goes_to(self, members: list[dict[str, object]], expected: list[str]) -> None:
        """Holders, then what was begun, then the ranking."""
        assert granted([make_member(**fields) for fields in members]) == expected

    def test_a_namespace_s_limit_lets_others_pass(self) -> None:
        """A full namespace does not hold up the next one in the order."""
        members = [make_member(name, "one", rate=3.0) for name in ("a", "b")] + [make_member("c", "two")]
        assert granted(members, trials=3, namespace_trials={"one": 1}) == ["a", "c"]
        assert granted(members, trials=3) == ["a", "b", "c"]
        assert granted(members, trials=0) == []

    def test_a_limit_that_was_lowered_takes_the_last_ones_back(self) -> None:
        """An administrator's cap always wins: of three that run, the best stays."""
        members = [make_member(name, holds_h=1.0, rate=rate) for name, rate in (("a", 1.0), ("b", 3.0), ("c", 2.0))]
        assert granted(members, trials=1) == ["b"]

    @pytest.mark.parametrize(
        ("member", "limits", "reason", "sentence"),
        [
            pytest.param({}, {}, Reason.FREE, "", id="free"),
            pytest.param(
                {"pressure": Pressure(pod="eval-0")},
                {},
                Reason.OWNER_FIRST,
                "Trials make way: pod eval-0 of the same owner waits for room.",
                id="pending pods",
            ),
            pytest.param(
                {"pressure": Pressure(quota="exceeded quota: gpus, requested 4"), "holds_h": 1.0},
                {},
                Reason.OWNER_FIRST,
                "Trials make way: exceeded quota: gpus, requested 4.",
                id="quota, even while a trial runs",
            ),
            pytest.param(
                {"pressure": Pressure(queue="research")},
                {},
                Reason.OWNER_FIRST,
                "Trials make way: workloads wait in queue research.",
                id="its queue",
            ),
            pytest.param(
                {"spent_h": 99.5},
                {},
                Reason.OUT_OF_BUDGET,
                "What is left of tuning.budget.deviceHours does not carry a block.",
                id="its own budget",
            ),
            pytest.param({"spent_h": 99.0}, {}, Reason.FREE, "", id="a budget that is just enough"),
            pytest.param(
                {"spent_h": 4.5},
                {"namespace_budget_h": {"team": 5.0}},
                Reason.OUT_OF_BUDGET,
                "What is left of the 5 device-hours of namespace team does not carry a block.",
                id="the namespace's budget",
            ),
            pytest.param(
                {},
                {"trials": 0},
                Reason.NOT_ADMITTED,
                "Waits for its turn: 0 trials may run at once in this installation, and others come first.",
                id="the installation's limit",
            ),
            pytest.param(
                {},
                {"namespace_trials": {"team": 0}},
                Reason.NOT_ADMITTED,
                "Waits for its turn: 0 trials may run at once in namespace team, and others come first.",
                id="the namespace's limit",
            ),
        ],
    )
    def test_why_not_is_said(
        self, member: dict[str, object], limits: dict[str, object], reason: Reason, sentence: str
    ) -> None:
        """A reason for machines and a sentence for people, without figures that change every minute."""
        assert say(make_member(**member), **limits) == (reason, sentence)

    def test_reservations_of_others_are_booked_before_they_are_spent(self) -> None:
        """Two blocks of 2 h in a namespace with 3 h left: the second waits, although nothing is spent yet."""
        running, waiting = make_member("a", holds_h=2.0), make_member("b", reserve_h=2.0)
        limits = {"trials": 9, "namespace_budget_h": {"team": 3.0}}
        assert granted([running, waiting], **limits) == ["a"]
        assert granted([running, waiting], **limits | {"namespace_budget_h": {"team": 4.0}}) == ["a", "b"]

    def test_two_jobs_of_one_name_are_a_broken_contract(self) -> None:
        """Nobody could tell whose the place is."""
        with pytest.raises(ValueError, match="same namespace and name"):
            admit([make_member("a"), make_member("a")], Limits(trials=1))


HOURS = st.sampled_from([0.0, 0.5, 1.0, 2.5])
MEMBERS = st.lists(
    st.builds(
        make_member,
        name=st.sampled_from("abcdefgh"),
        namespace=st.sampled_from(["one", "two", "three"]),
        purpose=st.sampled_from([None, CONTINUE, KEEP, OPEN]),
        rate=st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
        reserve_h=HOURS,
        holds_h=HOURS,
        spent_h=HOURS,
        budget_h=st.sampled_from([0.0, 2.0, 5.0]),
        wasted_h_per_h=HOURS,
        pressure=st.sampled_from([Pressure(), Pressure(), Pressure(pod="eval-0"), Pressure(queue="q")]),
    ),
    max_size=8,
    unique_by=lambda member: member.key,
)
LIMITS = st.builds(
    Limits,
    trials=st.integers(0, 6),
    namespace_trials=st.dictionaries(st.sampled_from(["one", "two"]), st.integers(0, 3)),
    namespace_budget_h=st.dictionaries(st.sampled_from(["one", "three"]), st.sampled_from([1.0, 4.0, 20.0])),
)


def select(members: list[Member], limits: Limits) -> list[Member]:
    """Those that may run."""
    decided = admit(members, limits)
    return [member for member in members if member.key in decided and decided[member.key].admitted]


class TestAlways:
    @given(members=MEMBERS, limits=LIMITS)
    def test_no_limit_and_no_budget_is_ever_exceeded(self, members: list[Member], limits: Limits) -> None:
        """Trials that are granted, with those that are about to end, fit into every limit."""
        stuck = [member for member in members if member.need is None and member.holds_h > 0]
        chosen = select(members, limits)
        holders = [*chosen, *stuck]
        if chosen:
            assert len(holders) <= limits.trials
        for namespace, count in Counter(member.namespace for member in chosen).items():
            there = count + sum(member.namespace == namespace for member in stuck)
            assert there <= limits.namespace_trials.get(namespace, there)
            spent_h = sum(member.spent_h for member in members if member.namespace == namespace)
            booked_h = spent_h + sum(member.reserve_h for member in holders if member.namespace == namespace)
            assert booked_h <= limits.namespace_budget_h.get(namespace, booked_h)
        for member in chosen:
            assert member.spent_h + member.reserve_h <= member.budget_h
            assert not member.pressure.sentence

    @given(members=MEMBERS, limits=LIMITS, shuffle=st.randoms(use_true_random=False))
    def test_the_order_in_which_jobs_are_listed_does_not_matter(
        self, members: list[Member], limits: Limits, shuffle: object
    ) -> None:
        """Two operators with the same view decide alike."""
        mixed = list(members)
        shuffle.shuffle(mixed)  # type: ignore[attr-defined] # hypothesis gives a random.Random
        assert admit(mixed, limits) == admit(members, limits)
        assert rank(mixed) == rank(members)

    @given(members=MEMBERS, limits=LIMITS)
    def test_every_job_that_wants_a_trial_is_answered(self, members: list[Member], limits: Limits) -> None:
        """Admitted without a word, or refused with a reason and a sentence."""
        decided = admit(members, limits)
        assert set(decided) == {member.key for member in members if member.need is not None}
        for admission in decided.values():
            assert admission.admitted == (admission.sentence == "") == (admission.reason is Reason.FREE)

    @given(members=MEMBERS, limits=LIMITS, rate=st.sampled_from([0.0, 99.0]))
    def test_who_comes_later_takes_no_place_away(self, members: list[Member], limits: Limits, rate: float) -> None:
        """A newcomer with the best of ideas displaces nobody who runs a trial or has begun an experiment."""
        newcomer = make_member("newcomer", "one", rate=rate)
        before = select(members, limits)
        after = select([*members, newcomer], limits)
        begun = [m for m in before if m.holds_h > 0 or (m.need is not None and m.need.purpose is not OPEN)]
        assert [member for member in begun if member not in after] == []

    @given(members=MEMBERS, limits=LIMITS)
    def test_nobody_waits_beside_a_free_place(self, members: list[Member], limits: Limits) -> None:
        """Whoever is told to wait for its turn finds the installation or its namespace full."""
        decided = admit(members, limits)
        stuck = [member for member in members if member.need is None and member.holds_h > 0]
        holders = [*select(members, limits), *stuck]
        for member in members:
            if member.key in decided and decided[member.key].reason is Reason.NOT_ADMITTED:
                there = sum(holder.namespace == member.namespace for holder in holders)
                is_full = there >= limits.namespace_trials.get(member.namespace, there + 1)
                assert is_full or len(holders) >= limits.trials

    @given(members=MEMBERS)
    def test_everybody_has_a_turn(self, members: list[Member]) -> None:
        """With one place and nothing in the way, each is served in as many rounds as there are jobs."""
        waiting = [
            member.model_copy(update={"pressure": Pressure(), "budget_h": 99.0, "holds_h": 0.0})
            for member in members
            if member.need is not None
        ]
        for _ in range(len(waiting)):
            (served,) = select(waiting, Limits(trials=1))
            waiting.remove(served)
        assert waiting == []


class TestDescribing:
    @staticmethod
    def snapshot(job: TrainingJob, *experiments: Experiment, shares: dict[str, float] | None = None) -> Snapshot:
        """An observed job with these experiments."""
        seen = make_observation(job, make_window(0.1, shares=shares or {"input": 0.5}, batch_s=0.12, devices=1))
        memory = JobMemory(observations=(seen,), experiments=experiments)
        return Snapshot(job=job, job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY, memory=memory, now_s=1000.0)

    def test_an_input_bound_job_is_described_by_its_waste_and_its_idea(self) -> None:
        """Half of one device's time is wasted and could go; the idea repays; opening it reserves its first block."""
        job = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})

        member = describe(self.snapshot(job), Pressure())

        assert (member.key, member.budget_h) == ("default/pydocs", 10.0)
        assert member.wasted_h_per_h == pytest.approx(0.5, abs=0.01)
        assert member.removable_h_per_h == pytest.approx(0.5, abs=0.01)
        assert [idea.key for idea in member.ideas] == ["dataloaderWorkers:0>2"]
        assert member.return_rate > 1
        assert member.need is not None
        assert member.need.purpose is OPEN
        assert 0 < member.need.reserve_h < member.budget_h

    def test_a_compute_bound_job_wants_nothing(self) -> None:
        """No idea, no need: it takes no place in any queue."""
        job = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})

        member = describe(self.snapshot(job, shares={"input": 0.01}), Pressure())

        assert (member.ideas, member.need, member.return_rate) == ((), None, 0.0)

    def test_an_open_experiment_needs_its_next_block(self) -> None:
        """Whether or not it was admitted before: what it wants does not depend on what it got."""
        job = make_job({"dataloaderWorkers": 0}, {"profile": "quick"})
        opening = next_action(self.snapshot(job))
        assert isinstance(opening, Propose)
        begun = self.snapshot(job, Experiment(plan=opening.plan))
        launch = next_action(begun)
        assert isinstance(launch, Launch)

        refused = begun.model_copy(update={"admission": Admission(admitted=False, sentence="later")})
        needs = {describe(snapshot, Pressure()).need for snapshot in (begun, refused)}

        assert needs == {Need(purpose=CONTINUE, reserve_h=launch.request.reserved_device_s() / 3600)}

    def test_a_job_that_was_not_observed_is_there_without_figures(self) -> None:
        """It wants no trial yet."""
        job = make_job()
        snapshot = Snapshot(job=job, job_uid=UID, fingerprint=FINGERPRINT, family=FAMILY, memory=JobMemory(), now_s=0.0)

        assert describe(snapshot, Pressure()) == Member(namespace="default", name="pydocs", budget_h=10.0)

    def test_ceilings_of_one_phase_are_not_added_up(self) -> None:
        """Workers and prefetch remove the same wait; a cadence removes another."""
        job = make_job({"dataloaderWorkers": 1, "prefetchFactor": 2, "checkpointEverySteps": 5})
        review = self.snapshot(job, shares={"input": 0.4, "checkpoint": 0.2})
        assert review.observation is not None
        found = look(review, review.observation)
        assert 0.4 <= removable_share(found.diagnosis) <= 0.65  # type: ignore[union-attr] # it was observed
