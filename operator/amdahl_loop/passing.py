"""What is one pass for one job of a cluster? Read, keep the job running, tick the loop, sync the spec, say so.

Level-triggered: a pass starts from what the API server says, and whatever instant it is cut at, the next one goes on.
The loop itself is `reconcile.tick`, the same as on one machine; here it gets a cluster's ports.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from amdahl_loop import reconcile
from amdahl_loop.adapters.kube.apply import sync_spec
from amdahl_loop.adapters.kube.claims import read_access_modes
from amdahl_loop.adapters.kube.client import KubeClient, Refused
from amdahl_loop.adapters.kube.index import Key
from amdahl_loop.adapters.kube.jobs import SeenJob, tell_owner
from amdahl_loop.adapters.kube.ledger import (
    KubeLedger,
)
from amdahl_loop.adapters.kube.objects import JobFacts
from amdahl_loop.adapters.kube.pressure import find_waiting
from amdahl_loop.adapters.kube.probe import Probe
from amdahl_loop.adapters.kube.recall import LedgerUnreadableError
from amdahl_loop.adapters.kube.runner import KubeRunner
from amdahl_loop.adapters.kube.running import RunningJob, RunningState
from amdahl_loop.adapters.kube.scrape import Fetch, fetch_metrics
from amdahl_loop.adapters.kube.status import write_status
from amdahl_loop.adapters.metrics import Metrics, Told
from amdahl_loop.announcing import announce
from amdahl_loop.domain.api.conditions import ConditionStatus, JobConditionType
from amdahl_loop.domain.api.parts import read_knob
from amdahl_loop.domain.api.training_job import KnobSource
from amdahl_loop.domain.applying import Decision, RecordRelease, RecordRevert
from amdahl_loop.domain.bank import Balance, balance, hours_in_force
from amdahl_loop.domain.believing import sift_applications
from amdahl_loop.domain.conditions import STANDINGS, Facts, Note
from amdahl_loop.domain.fleet import Limits
from amdahl_loop.domain.fleet import describe as describe_member
from amdahl_loop.domain.isolation import Obstacle, find_obstacles, miss_probe, say_obstacles
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import JobMemory, Observation, effective_knobs, family_of, fingerprint_job
from amdahl_loop.domain.phases import Breakdown
from amdahl_loop.domain.plan import (
    Action,
    Admission,
    Challenge,
    Halt,
    Launch,
    Observe,
    Review,
    Snapshot,
)
from amdahl_loop.domain.policy import Constrained, cap_parallel_trials
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Running
from amdahl_loop.domain.standing_still import Standstill, follow
from amdahl_loop.domain.status import describe, read_standstills
from amdahl_loop.domain.withholding import find_ban, is_withheld
from amdahl_loop.ports import Clock
from amdahl_loop.recollection import NOTHING_SEEN, Derived, JobKey, Recollection, Rest
from amdahl_loop.reconcile import Identity, Ports, Tick
from amdahl_loop.resting import AT_ONCE_S, RESYNC_ACTIVE_S, RESYNC_IDLE_S, has_acted, is_at_rest, rest_of
from amdahl_loop.settings import Settings

LOOK_AROUND_S = 10.0
"""Trials make way within 30 s: seen within ten, decided at the next pass, over within a pod's grace."""
OVER = (Reason.FINISHED, Reason.SUSPENDED, Reason.QUEUED)
"""Ways of standing in which nothing is measured and nothing tried."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Means:
    """Everything that a pass needs; one for all jobs."""

    client: KubeClient
    settings: Settings
    probe: Probe
    recollection: Recollection
    clock: Clock
    metrics: Metrics
    fetch: Fetch = fetch_metrics

    async def tell(self, seen: SeenJob, standing: Note) -> float:
        """Say how a job stands for which nothing can be done until somebody changes something."""
        status = describe(Facts(standing=standing), seen.status, seen.generation, self.clock())
        self.recollection.told[JobKey(seen.namespace, seen.name)] = Told.of(seen.namespace, status)
        await write_status(self.client, seen, status)
        return RESYNC_IDLE_S

    def count_time(self, key: JobKey, breakdown: Breakdown | None) -> None:
        """Count where a running job's time went since this was last done; None: it does not run as measured."""
        told_s, now_s = self.recollection.told_s, self.clock()
        since_s = now_s - told_s.get(key, now_s)
        told_s[key] = now_s
        if breakdown is not None:
            self.metrics.add_phases(key.namespace, breakdown.shares, breakdown.devices, since_s)


class Pass:
    """One pass over one job that can be used. It ends after its first effect; the next pass follows at once."""

    def __init__(self, means: Means, key: JobKey, ledger: KubeLedger, held: Constrained) -> None:
        self._means, self._key, self._ledger, self._held = means, key, ledger, held
        self._client, self._recollection = means.client, means.recollection
        self._job = held.job
        self._derived = self._derive()
        found = self._derived
        self._identity = Identity(job_uid=found.uid, fingerprint=found.fingerprint, family=found.family)
        self._heard = means.recollection.rests.heard(key)
        self._place = key.namespace, bool(held.job.queue_labels)

    def _derive(self) -> Derived:
        """What is known of this very spec; no policy changes any of it."""
        known, seen = self._recollection.derived, self._ledger.seen
        found = known.get(self._key)
        if found is None or (found.uid, found.generation) != (seen.uid, seen.generation):
            who = identify(self._job)
            found = Derived(uid=seen.uid, generation=seen.generation, fingerprint=who.fingerprint, family=who.family)
            known[self._key] = found
        return found

    async def run(self) -> float:
        """Seconds until the next pass."""
        identity = self._identity
        believe = partial(sift_applications, job_uid=identity.job_uid)
        try:
            memory = believe(await self._ledger.recall_own(identity.job_uid))
        except LedgerUnreadableError:
            await self._keep_running(self._read_knobs(), None)
            raise
        self._is_withheld = is_withheld(self._job, memory.applications)
        decision = await self._sync_spec(memory)
        if decision is None:
            return AT_ONCE_S
        declared = self._job.spec.knobs
        in_force = declared if self._is_withheld else effective_knobs(declared, memory.applications)
        running = await self._keep_running(in_force, memory.observations[-1] if memory.observations else None)
        ports = Ports(runner=self._runner(memory), ledger=self._ledger, clock=self._means.clock)
        if running.note.reason is Reason.INVALID_SPEC:
            if self._recollection.give_way(self._key):
                await reconcile.sweep(ports)
                self._recollection.swept[self._key] = identity.job_uid
            return await self._means.tell(self._ledger.seen, running.note)
        if running.acted and not running.is_new:
            return AT_ONCE_S
        await self._look_around()
        obstacles = await self._find_obstacles(running)
        is_paused = self._held.is_paused or running.note.reason in OVER
        self._ledger.has_kin = not is_paused  # whoever tries nothing has nothing to learn from others
        ticked = await reconcile.tick(
            self._job,
            identity,
            ports,
            self._recollection.since_s,
            paused=is_paused,
            ended=running.note.reason is Reason.FINISHED,
            failing=running.failing,
            withheld=self._is_withheld,
            admit=partial(self._admit, obstacles),
            believe=believe,
        )
        await self._sweep(ticked, ports, running.has_blocks)
        await announce(self._client, self._means.metrics, self._key, self._ledger.seen, ticked.action)
        if has_acted(ticked):
            return AT_ONCE_S
        admission = ticked.snapshot.admission
        hold = Note(reason=admission.reason, sentence=admission.sentence)
        standstills = self._follow(running.note, ticked.snapshot)
        facts = Facts(
            standing=stand(running, ticked.action),
            snapshot=ticked.snapshot,
            action=ticked.action,
            review=ticked.snapshot.review,
            obstacles=obstacles,
            hold=None if admission.admitted or obstacles else hold,
            limits=self._held.sentences,
            decision=decision,
            bank=_settle(ticked.snapshot, standstills),
            standstills=standstills,
        )
        return await self._tell(facts, ticked)

    def _read_knobs(self) -> Knobs:
        """The values in force as the last status has them, where the ledger cannot say."""
        told = self._ledger.seen.status.effective_knobs
        return self._job.spec.knobs.with_values(
            {knob.name: read_knob(knob.value) for knob in told if knob.source is KnobSource.OVERLAY}
        )

    async def _keep_running(self, in_force: Knobs, seen: Observation | None) -> RunningState:
        """One step towards the job as its spec and the values in force ask. `seen` is its latest measurement."""
        is_of_this = seen is not None and seen.fingerprint == self._identity.fingerprint
        known, told = self._find_known(), self._ledger.seen.status.conditions
        running = RunningJob(
            self._client,
            self._job.with_knobs(in_force),
            self._means.probe,
            self._recollection.saves,
            clock=self._means.clock,
            live=seen is not None and seen.report.live,
            measured=seen is not None and is_of_this and seen.is_usable,
            is_untold=not self._ledger.seen.status.observed_generation,
            is_bare=known == (),
            has_ended=any(c.type is JobConditionType.COMPLETE and c.status is ConditionStatus.TRUE for c in told),
            fetch=self._means.fetch,
        )
        rest = None if known is None else running.rest_with(known)
        if rest is not None:
            return rest
        self._recollection.finished.ask(Key(*self._key))
        return await running.ensure()

    def _find_known(self) -> tuple[JobFacts, ...] | None:
        """What the job had when the operator started, if that is all there may be; younger jobs are asked about."""
        if self._ledger.seen.created_at_s >= self._recollection.since_s:
            return None
        return self._recollection.finished.find(*self._key, self._identity.job_uid)

    def _follow(self, standing: Note, snapshot: Snapshot) -> tuple[Standstill, ...]:
        """When the job did not run with the values of the newest application, up to now."""
        applications = snapshot.memory.applications
        if not applications:
            return ()
        runs = standing.reason is Reason.AS_DECLARED and applications[-1].knobs == snapshot.knobs
        return follow(read_standstills(self._ledger.seen.status), runs, snapshot.now_s)

    def _runner(self, memory: JobMemory) -> KubeRunner:
        running = memory.of_job(self._identity.job_uid).running
        return KubeRunner(
            self._client,
            self._job,
            self._means.probe,
            self._recollection.runs,
            reserve=self._ledger.reserve,
            clock=self._means.clock,
            fetch=self._means.fetch,
            plan_hashes={} if running is None else {running.name: running.plan.hash},
        )

    async def _look_around(self) -> None:
        """Ask what else waits in the namespace, where this job wanted a trial at its last pass."""
        known, place, now_s = self._recollection.waiting, self._place, self._means.clock()
        seen_s, _ = known.get(place, NOTHING_SEEN)
        if self._key in self._recollection.fleet and not 0 <= now_s - seen_s < LOOK_AROUND_S:
            known[place] = now_s, await find_waiting(self._client, place[0], now_s, has_queues=place[1])

    async def _find_obstacles(self, running: RunningState) -> tuple[Obstacle, ...]:
        """What in the template keeps trials from starting; how its storage may be shared is asked once a spec."""
        removed = (miss_probe(),) if running.is_unprobed else ()
        found, spec = self._derived, self._job.spec
        if found.access_modes is None or not all(found.access_modes.values()):
            modes = await read_access_modes(self._client, self._job)
            obstacles = tuple(find_obstacles(spec.template, spec.tuning.trial, modes))
            found = replace(found, access_modes=modes, obstacles=obstacles)
            self._derived = self._recollection.derived[self._key] = found
        return (*removed, *found.obstacles)

    def _admit(self, obstacles: Sequence[Obstacle], snapshot: Snapshot) -> Admission:
        """Whether a trial of this job may run now: the installation's switch, the template, then the fleet's order."""
        settings, fleet, key = self._means.settings, self._recollection.fleet, self._key
        if obstacles or not settings.trials:
            fleet.leave(key)
        if not settings.trials:
            return Admission(admitted=False, reason=Reason.TRIALS_OFF, sentence="Trials are off in this installation.")
        if obstacles:
            return Admission(admitted=False, reason=obstacles[0].reason, sentence=say_obstacles(obstacles))
        _, waiting = self._recollection.waiting.get(self._place, NOTHING_SEEN)
        member = describe_member(snapshot, waiting.press_on(self._job.queue_labels))
        if member.need is None:  # nothing is asked for: who else asks does not matter
            fleet.leave(key)
            return Admission()
        held_h = member.need.reserve_h if key in self._recollection.in_flight else 0.0
        fleet.join(key, member.model_copy(update={"holds_h": held_h}))
        caps = {
            namespace: cap
            for namespace, policies in self._recollection.policies.items()
            if (cap := cap_parallel_trials(policies.values())) is not None
        }
        return fleet.admit(key, Limits(trials=settings.parallel_trials, namespace_trials=caps))

    async def _sweep(self, ticked: Tick, ports: Ports, has_blocks: bool) -> None:
        """Stop every run but the present one: after a restart, and whenever an experiment has ended or pauses."""
        action, flights, swept = ticked.action, self._recollection.in_flight, self._recollection.swept
        request = action.request if isinstance(action, Observe | Launch | Challenge) else None
        is_block = isinstance(action, Launch | Challenge) and isinstance(ticked.run, Running)
        if is_block and request is not None:
            flights[self._key] = request.run
        is_over = not is_block and flights.pop(self._key, None) is not None
        if is_over or (has_blocks and swept.get(self._key) != self._identity.job_uid):
            await reconcile.sweep(ports, keep=[request.run] if request else [])
        swept[self._key] = self._identity.job_uid

    async def _sync_spec(self, memory: JobMemory) -> Decision | None:
        """Bring the spec in line with what is in force, before anything runs by it; None after a write."""
        ledger, mode = self._ledger, self._job.spec.tuning.mode
        ban = find_ban(self._job, memory.applications)
        synced = await sync_spec(self._client, ledger.seen, mode, memory.applications, ban)
        if isinstance(synced.decision, RecordRelease | RecordRevert):
            await ledger.add_application(synced.decision.as_application(self._means.clock()))
        if isinstance(synced.decision, RecordRelease):
            _log.info("%s: %s", self._key, synced.decision.sentence)
            return None
        if isinstance(synced.decision, RecordRevert):
            self._means.metrics.count_reverts(claim.manager for claim in ledger.seen.declared.claims)
            await tell_owner(self._client, ledger.seen, "SpecReverted", synced.decision.sentence, warning=True)
            return None
        return None if synced.outdated or synced.seen is not None else synced.decision

    async def _tell(self, facts: Facts, ticked: Tick) -> float:
        """Write the status, once."""
        seen, now_s = self._ledger.seen, self._means.clock()
        status = describe(facts, seen.status, seen.generation, now_s)
        self._recollection.told[self._key] = Told.of(self._key.namespace, status)
        is_running = facts.standing.reason is Reason.AS_DECLARED
        breakdown = facts.review.breakdown if is_running and isinstance(facts.review, Review) else None
        self._means.count_time(self._key, breakdown)
        written = await write_status(self._client, seen, status)
        if isinstance(written, Refused):
            _log.warning("%s: the status was refused: %s", self._key, written.message)
            return AT_ONCE_S if written.is_outdated else RESYNC_ACTIVE_S
        if is_at_rest(ticked, facts.standing) and not self._hangs_on_others:
            rest = Rest(digest=(written or seen).digest, heard=self._heard, at_s=now_s, breakdown=breakdown)
            self._recollection.rests.keep(self._key, rest)
        return rest_of(ticked, facts.standing, now_s)

    @property
    def _hangs_on_others(self) -> bool:
        """Whether the job wants a trial, which is the fleet's to grant, or misses a claim, of which no watch tells."""
        modes = self._derived.access_modes
        return self._key in self._recollection.fleet or modes is None or not all(modes.values())


def identify(job: TrainingJob) -> Identity:
    """The job's UID, the fingerprint of its work on the devices that it asks for, and its family."""
    has_devices = job.spec.template.trainer.resources.quantity(job.spec.device_resource) is not None
    device_type = job.spec.device_resource if has_devices else "cpu"
    return Identity(job_uid=job.metadata.uid, fingerprint=fingerprint_job(job, device_type), family=family_of(job))


def stand(running: RunningState, action: Action) -> Note:
    """How the job stands. One that ends again and again, with no value of ours to take back, needs its owner."""
    is_stuck = bool(running.failing) and isinstance(action, Halt) and action.failed
    is_known = STANDINGS[running.note.reason].is_stalled or running.note.reason in OVER
    if is_stuck and not is_known:
        return Note(reason=Reason.CRASH_LOOPING, sentence=f"{running.failing}.")
    return running.note


def _settle(snapshot: Snapshot, standstills: Sequence[Standstill]) -> Balance:
    """The bank so far. What a job holds is what its latest measurement saw; unmeasured, it has saved nothing yet."""
    applications, observation = snapshot.memory.applications, snapshot.observation
    windows = observation.report.windows if observation is not None else ()
    devices = max((window.devices for window in windows if window.is_measured), default=0)
    run_h = hours_in_force(applications, snapshot.knobs, snapshot.now_s, devices, standstills)
    return balance(snapshot.experiments, applications, snapshot.job.expected_device_hours[0], run_h)
