"""How do runs become Jobs and scrapes of a cluster, found again by name after any crash?

The `Runner` port for one TrainingJob. A block is one Job; an observation reads the running job's own counters and
changes nothing. What a server refuses is remembered until it is recorded; everything else is read anew each time.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

from amdahl_loop.adapters.kube.claims import AccessModes, read_access_modes
from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient, Refused
from amdahl_loop.adapters.kube.in_turn import Asked, Handover, Turn, idle_device_s, is_guest, pending_limit_s
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.objects import JobFacts, PodFacts, read_job, read_pod
from amdahl_loop.adapters.kube.observing import Observer, Watches
from amdahl_loop.adapters.kube.outcomes import Trouble, judge_block, lost, refused
from amdahl_loop.adapters.kube.placement import Placement, Visit, place
from amdahl_loop.adapters.kube.probe import Probe, place_probe
from amdahl_loop.adapters.kube.ranks import ensure_service
from amdahl_loop.adapters.kube.render import find_clashes
from amdahl_loop.adapters.kube.render_block import Unfit, render_block
from amdahl_loop.adapters.kube.saves import SaveCounts
from amdahl_loop.adapters.kube.scrape import Fetch, fetch_metrics
from amdahl_loop.domain.children import (
    DEVICES_ANNOTATION,
    EXPERIMENT_LABEL,
    JOB_LABEL,
    PLAN_HASH_ANNOTATION,
    REVISION_LABEL,
    RUN_ANNOTATION,
    BlockRun,
    block_name,
    is_observation,
    read_run,
)
from amdahl_loop.domain.experiments import MAX_WHY, Loss
from amdahl_loop.domain.isolation import find_obstacles, say_obstacles
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.runs import Absent, Finished, Running, RunRequest, RunState, Unplaced
from amdahl_loop.domain.tuning import Placement as Turns
from amdahl_loop.ports import Clock

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
ONE_NODE_MODES = frozenset({"ReadWriteOnce", "ReadWriteOncePod"})
MANY_NODE_MODES = frozenset({"ReadWriteMany"})

Reserve = Callable[[str, str, float], Awaitable[bool]]
"""Set device-seconds aside for a run of an experiment before it is created (`KubeLedger.reserve`)."""


@dataclass
class Memory:
    """What one operator remembers of runs between passes, by UID of the job and name of the run.

    After a restart a refused block is refused once more, an observation begins anew, and so does the wait for a
    checkpoint.
    """

    refusals: dict[tuple[str, str], Finished | Unplaced] = field(default_factory=dict)
    watches: Watches = field(default_factory=dict)
    asked: dict[tuple[str, str], Asked] = field(default_factory=dict)
    saves: SaveCounts = field(default_factory=SaveCounts)

    def forget(self, uid: str) -> None:
        """Forget a job that is gone."""
        self.saves.forget(uid)
        for known in (self.refusals, self.watches, self.asked):
            for key in [key for key in known if key[0] == uid]:
                del known[key]


class KubeRunner:
    """The `Runner` port for one job; `job` is as declared, with its namespace and UID.

    `plan_hashes` are those of the experiments that the ledger knows: a block of another plan is not adopted.
    """

    def __init__(
        self,
        client: KubeClient,
        job: TrainingJob,
        probe: Probe,
        memory: Memory,
        *,
        reserve: Reserve,
        clock: Clock,
        fetch: Fetch = fetch_metrics,
        plan_hashes: Mapping[str, str] | None = None,
    ) -> None:
        self._client = client
        self._job = job
        self._namespace, self._uid = job.metadata.namespace, job.metadata.uid
        self._probe = probe
        self._refusals = memory.refusals
        self._observer = Observer(client, job, memory.watches, clock, fetch)
        self._handover = Handover(client, memory.asked, memory.saves, clock, fetch)
        self._reserve = reserve
        self._clock = clock
        self._plan_hashes = plan_hashes or {}

    # --- the port -------------------------------------------------------------------------------------------------

    async def find(self, run: str) -> RunState:
        """State of a run by name; Absent when there is none."""
        if is_observation(run):
            return await self._observer.find(run)
        refusal = self._refusals.get((self._uid, run))
        if refusal is not None:
            return refusal
        raw = await self._client.get(Kind.JOB, self._namespace, block_name(run))
        if raw is None:
            return Absent()
        facts = read_job(raw)
        if not self._is_ours(facts, run):
            return refused(Trouble.SQUATTED, f"Job {facts.name} is somebody else's; rename or delete it", self._clock())
        if facts.is_deleting:
            return Running()
        if EXPERIMENT_LABEL not in facts.labels:
            await self._mark(facts, run)
        limit_s, pods, now_s = pending_limit_s(facts, self._job), await self._pods(facts), self._clock()
        state = judge_block(run, facts, pods, _devices(facts), now_s, limit_s)
        if not isinstance(state, Finished):
            return state
        idle_s = await self._idle_device_s(facts, pods, now_s)
        return state.model_copy(update={"held_device_s": state.held_device_s + idle_s})

    async def submit(self, job: TrainingJob, request: RunRequest) -> None:
        """Start a run, or adopt it. What cannot be started is `Finished` with a reason when it is looked for next."""
        if is_observation(request.run):
            self._observer.begin(job, request)
            return
        block = read_run(request.run)
        assert block is not None, f"{request.run} is neither a block nor an observation"
        refusal = await self._submit_block(job, request, block)
        if refusal is not None:
            self._refusals[self._uid, request.run] = refusal

    async def stop(self, run: str) -> Loss | None:
        """Stop a run and delete its Job, pods included; what it had held, None where there is no such run."""
        if is_observation(run):
            return self._observer.stop(run)
        refusal = self._refusals.pop((self._uid, run), None)
        raw = await self._client.get(Kind.JOB, self._namespace, block_name(run))
        facts = None if raw is None else read_job(raw)
        if facts is None or not self._is_ours(facts, run):
            return Loss(run=run, started_at_s=self._clock(), held_device_s=0.0) if refusal else None
        return await self._delete(facts, run)

    async def sweep(self, keep: Collection[str]) -> tuple[Loss, ...]:
        """Stop every run of this job whose name is not kept; what each had held, in the order of their names."""
        found = self._observer.sweep(keep)
        labels = f"{JOB_LABEL}={self._job.metadata.name},{EXPERIMENT_LABEL}"
        jobs = [read_job(raw) async for raw in self._client.list(Kind.JOB, self._namespace, labels)]
        for facts in jobs:
            run = facts.annotations.get(RUN_ANNOTATION, facts.name)
            if run not in keep and self._is_ours(facts, run):
                found.append(await self._delete(facts, run))
        for uid, run in [key for key in self._refusals if key[0] == self._uid and key[1] not in keep]:
            del self._refusals[uid, run]
        return tuple(sorted(found, key=lambda loss: loss.run))

    # --- starting a block -----------------------------------------------------------------------------------------

    async def _submit_block(self, job: TrainingJob, request: RunRequest, block: BlockRun) -> Finished | Unplaced | None:
        """Create or adopt a block's Job; its end, where it cannot begin. Nothing yet, where the job must save first."""
        modes = await read_access_modes(self._client, self._job)
        obstacles = find_obstacles(job.spec.template, job.spec.tuning.trial, modes)
        clashes = find_clashes(job)
        if obstacles or clashes:
            return self._refuse(Trouble.REJECTED, say_obstacles(obstacles) if obstacles else clashes[0])
        turn: Turn | None = None
        if job.spec.tuning.trial.placement is Turns.IN_TURN:
            answer = await self._handover.ask(job, request.run)
            if not isinstance(answer, Turn):
                return answer
            turn = answer
        experiment = await self._client.get(Kind.EXPERIMENT, self._namespace, block.experiment)
        if experiment is None or "deletionTimestamp" in experiment["metadata"]:
            return None  # somebody deleted it: the next pass reads the ledger without it
        if experiment["spec"].get("planHash") != request.plan_hash:
            return self._refuse(Trouble.SQUATTED, f"Experiment {block.experiment} holds another plan")
        needs: list[bool | Refused | None] = [await place_probe(self._client, self._namespace, self._probe)]
        needs += [await ensure_service(self._client, job)] if job.spec.replicas > 1 else []
        for refusal in needs:
            if isinstance(refusal, Refused):
                return self._heed(refusal)
        if turn is not None:
            placement = Placement(required=turn.nodes, after=job.metadata.name)
        else:
            placement = place(block.stage, block.check, read_visits(experiment), await self._bound_nodes(modes))
        uid = experiment["metadata"]["uid"]
        body = render_block(job, request, block, uid, self._probe.name, placement, turn)
        if isinstance(body, Unfit):
            return self._refuse(Trouble.REJECTED, body.why)
        is_due = await self._reserve(block.experiment, request.run, request.reserved_device_s(job.spec.replicas))
        return await self._create(body, request) if is_due else None  # one on record is read by the next pass

    async def _create(self, body: Object, request: RunRequest) -> Finished | Unplaced | None:
        made = await self._client.create(Kind.JOB, self._namespace, body)
        return await self._adopt(made, request) if isinstance(made, Refused) else None

    async def _adopt(self, refusal: Refused, request: RunRequest) -> Finished | Unplaced | None:
        """What a refused create means: our own Job of before, somebody else's, or no."""
        if refusal.is_taken:
            raw = await self._client.get(Kind.JOB, self._namespace, block_name(request.run))
            if raw is None:
                return None
            facts = read_job(raw)
            is_of_plan = facts.annotations.get(PLAN_HASH_ANNOTATION) == request.plan_hash
            if is_of_plan and self._is_ours(facts, request.run):
                return None
            return self._refuse(Trouble.SQUATTED, f"Job {facts.name} is there and is not of this plan; delete it")
        if refusal.is_outdated:
            return None
        return self._heed(refusal)

    def _heed(self, refusal: Refused) -> Finished | Unplaced:
        """What the server has against a block, which may pass; not so missing rights, a namespace that goes."""
        if refusal.lacks_right or refusal.is_leaving:
            raise ApiUnavailable(f"the operator may not make blocks: {refusal.message}", refusal)
        word = Trouble.UNSCHEDULABLE if refusal.is_over_quota else _word(refusal)
        if word is Trouble.SQUATTED:
            return self._refuse(word, refusal.message)
        return Unplaced(why=f"{word}: {refusal.message}"[:MAX_WHY])

    def _refuse(self, word: Trouble, why: str) -> Finished:
        return refused(word, why, self._clock())

    async def _bound_nodes(self, modes: AccessModes) -> tuple[str, ...]:
        """The nodes of the job's pods where its storage can be attached to no other; () where it does not matter."""
        if not any(ONE_NODE_MODES & set(of) and not MANY_NODE_MODES & set(of) for of in modes.values()):
            return ()
        labels = f"{JOB_LABEL}={self._job.metadata.name},{REVISION_LABEL}"
        pods = [read_pod(raw) async for raw in self._client.list(Kind.POD, self._namespace, labels)]
        return tuple(sorted({pod.node for pod in pods if pod.node and not pod.is_over}))

    # --- what is known of a block ---------------------------------------------------------------------------------

    def _is_ours(self, facts: JobFacts, run: str) -> bool:
        """Whether a Job is this run's: by owner, experiment and run, and by plan where the ledger knows it.

        Without any owner it is ours as well: marks of ours are the operator's alone, owner references are not. So it is
        where somebody has stripped its labels, and it still names its owner.
        """
        block = read_run(run)
        if block is None or facts.owner_uid not in ("", self._uid):
            return False
        known = self._plan_hashes.get(block.experiment)
        stripped = block.experiment if facts.owner_uid else None
        return (
            facts.labels.get(EXPERIMENT_LABEL, stripped) == block.experiment
            and facts.annotations.get(RUN_ANNOTATION) == run
            and known in (None, facts.annotations.get(PLAN_HASH_ANNOTATION))
        )

    async def _mark(self, facts: JobFacts, run: str) -> None:
        """Give a Job of ours the labels back by which a sweep finds it. Where that is refused, its name still does."""
        block = read_run(run)
        assert block is not None, run
        labels = {JOB_LABEL: self._job.metadata.name, EXPERIMENT_LABEL: block.experiment}
        body = {"metadata": {"resourceVersion": facts.resource_version, "labels": labels}}
        await self._client.patch(Kind.JOB, self._namespace, facts.name, body)

    async def _pods(self, facts: JobFacts) -> tuple[PodFacts, ...]:
        """The pods that a Job has made; of two for the same rank the newer one."""
        found: dict[int, PodFacts] = {}
        async for raw in self._client.list(Kind.POD, self._namespace, f"{JOB_NAME_LABEL}={facts.name}"):
            if not _is_controlled_by(raw, facts.uid):
                continue
            pod = read_pod(raw)
            if pod.index not in found or pod.created_at_s > found[pod.index].created_at_s:
                found[pod.index] = pod
        return tuple(found[index] for index in sorted(found))

    async def _delete(self, facts: JobFacts, run: str) -> Loss:
        """Delete a block's Job; its pods are collected with it."""
        pods, now_s = await self._pods(facts), self._clock()
        loss = lost(run, facts, pods, _devices(facts), now_s)
        idle_s = await self._idle_device_s(facts, pods, now_s)
        gone = await self._client.delete(Kind.JOB, self._namespace, facts.name, facts.uid)
        if isinstance(gone, Refused) and not gone.is_outdated:
            raise ApiUnavailable(f"cannot delete Job {facts.name}: {gone.status} {gone.message}", gone)
        return loss.model_copy(update={"held_device_s": loss.held_device_s + idle_s})

    async def _idle_device_s(self, facts: JobFacts, pods: tuple[PodFacts, ...], now_s: float) -> float:
        """Device-seconds that the running job stands still for a block; none where it has never made way for it."""
        if not is_guest(facts):
            return 0.0
        labels = f"{JOB_LABEL}={self._job.metadata.name},{REVISION_LABEL}"
        running = [read_job(raw) async for raw in self._client.list(Kind.JOB, self._namespace, labels)]
        has_worked_on = any(job.created_at_s < facts.created_at_s and not job.is_deleting for job in running)
        return 0.0 if has_worked_on else idle_device_s(facts, pods, now_s)


def read_visits(experiment: Object) -> tuple[Visit, ...]:
    """Where the finished blocks of an Experiment ran, oldest first."""
    visits, status = [], experiment.get("status") or {}
    for entry in (*(status.get("blocks") or ()), *(status.get("holdouts") or ())):
        block = read_run(f"{experiment['metadata']['name']}-{entry.get('name', '')}")
        if block is not None:
            nodes = tuple(node for node in (entry.get("node") or "").split(",") if node)
            visits.append(Visit(stage=block.stage, check=block.check, nodes=nodes))
    return tuple(visits)


def _is_controlled_by(raw: Object, uid: str) -> bool:
    references = raw["metadata"].get("ownerReferences") or ()
    return any(reference.get("uid") == uid for reference in references)


def _devices(facts: JobFacts) -> int:
    """Devices that each pod of a block holds, as its Job says."""
    text = facts.annotations.get(DEVICES_ANNOTATION, "")
    return int(text) if text.isdecimal() else 1


def _word(refusal: Refused) -> Trouble:
    return Trouble.SQUATTED if refusal.reason == "Squatted" else Trouble.REJECTED
