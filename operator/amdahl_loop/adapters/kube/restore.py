"""How do experiments from elsewhere get into a cluster, so that it remembers them as its own?

Everything is checked before the first write: what each object would hold, whether it reads back, what is there already,
and whether the server would take it. Nothing that is there is ever overwritten. An import that was cut is finished by
the same import again: an Experiment without any status is given its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from pydantic import ValidationError

from amdahl_loop.adapters.kube.client import KubeClient, Refused
from amdahl_loop.adapters.kube.closing import is_marked, mark_closed
from amdahl_loop.adapters.kube.experiments import PAGE, diff, fit, render, say_closed
from amdahl_loop.adapters.kube.index import key_of
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.domain.api import records
from amdahl_loop.domain.api.experiment import ExperimentStatus
from amdahl_loop.domain.api.records import StoredExperiment, Unreadable, read_experiment
from amdahl_loop.domain.api.wire import to_wire
from amdahl_loop.domain.experiments import Experiment


class RestoreRefusedError(Exception):
    """Something of an import cannot be kept, or contradicts what is there; the message names it and the fix."""


class RestoreDeniedError(Exception):
    """The API server does not let this user write it; the message is the server's."""


class Need(Enum):
    """What an experiment lacks here."""

    OBJECT = "it is not here"
    STATUS = "it was created by an import that was cut"
    MARK = "only its mark as closed is missing"
    NOTHING = "it is here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One closed experiment on its way into a cluster: its object, the status it gets, and what it lacks there."""

    body: Object
    status: ExperimentStatus
    need: Need = Need.OBJECT
    present: Object | None = None


async def plan_restore(
    client: KubeClient, namespace: str, experiments: Iterable[StoredExperiment]
) -> tuple[Piece, ...]:
    """What each closed experiment lacks, after every check; nothing has been written yet.

    RestoreRefusedError where one cannot be kept or contradicts what is here, RestoreDeniedError where it may not be.
    """
    listed = client.list(Kind.EXPERIMENT, namespace, limit=PAGE)
    present = {key_of(document).name: document async for document in listed}
    pieces = tuple(
        _compare(build_piece(stored, namespace), stored, present.get(stored.experiment.name)) for stored in experiments
    )
    for piece in pieces:
        if piece.need is Need.OBJECT:
            _must(await client.create(Kind.EXPERIMENT, namespace, piece.body, dry_run=True), piece)
    return pieces


async def restore(client: KubeClient, pieces: Sequence[Piece]) -> None:
    """Write what is lacking, one experiment after the other: the plan, the status, the mark."""
    for piece in pieces:
        key, document = key_of(piece.body), piece.present
        if piece.need is Need.OBJECT:
            document = _must(await client.create(Kind.EXPERIMENT, key.namespace, piece.body), piece)
        assert document is not None, "what lacks no object is here"
        if piece.need in (Need.OBJECT, Need.STATUS):
            patch = diff(document, ExperimentStatus(), piece.status)
            document = _must(await client.patch_status(Kind.EXPERIMENT, *key, patch), piece)
        if piece.need is not Need.NOTHING:
            await mark_closed(client, document)


def build_piece(stored: StoredExperiment, namespace: str) -> Piece:
    """The object of a closed experiment and its status, as the operator itself would have written them."""
    experiment, name = stored.experiment, stored.experiment.name
    assert experiment.verdict is not None, "only closed experiments are carried over"
    assert stored.closed_at_s is not None, "what is closed says when"
    try:
        body = render(experiment.plan, namespace, stored.observation)
        status = _add_facts(stored, body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RestoreRefusedError(
            f"experiment {name}: {where} holds {str(first['input'])[:60]!r}: {first['msg']}; a cluster cannot keep it"
        ) from error
    read = read_experiment({**body, "status": to_wire(status)})
    if isinstance(read, Unreadable):
        raise RestoreRefusedError(f"experiment {name} does not read back ({read.reason}); a cluster cannot keep it")
    if (read.experiment.plan, read.experiment.verdict) != (experiment.plan, experiment.verdict):
        raise RestoreRefusedError(f"experiment {name} reads back otherwise; a cluster cannot keep it")
    return Piece(body=body, status=status)


def _add_facts(stored: StoredExperiment, body: Object) -> ExperimentStatus:
    """Blocks, losses, verdict and applications; evidence that an object has no room for is left out, as always."""
    experiment, closed_at_s = stored.experiment, stored.closed_at_s
    assert experiment.verdict is not None
    assert closed_at_s is not None
    sized = {**body, "metadata": {**body["metadata"], "resourceVersion": ""}}
    plan = Experiment(plan=experiment.plan)
    status = ExperimentStatus()
    for record in experiment.blocks:
        so_far = StoredExperiment(experiment=plan, status=status)
        status = fit(sized, so_far, records.add_block(status, record))
    for loss in experiment.losses:
        status = records.add_loss(status, loss)
    status = say_closed(records.close(status, experiment.verdict, closed_at_s))
    for application in stored.applications:
        status = records.add_application(status, application)
    return status


def _compare(piece: Piece, stored: StoredExperiment, document: Object | None) -> Piece:
    """What the experiment lacks, seen what bears its name here."""
    if document is None:
        return piece
    here, name = read_experiment(document), stored.experiment.name
    if isinstance(here, Unreadable):
        raise RestoreRefusedError(f"Experiment {name} is here and cannot be read ({here.reason}); delete it first")
    verdict = here.experiment.verdict
    if here.experiment.plan != stored.experiment.plan or verdict not in (None, stored.experiment.verdict):
        what = "plan" if here.experiment.plan != stored.experiment.plan else "verdict"
        raise RestoreRefusedError(
            f"Experiment {name} is here with another {what}; nothing was written: delete it, or take another namespace"
        )
    if verdict is not None:
        need = Need.NOTHING if is_marked(document) else Need.MARK
    else:
        need = Need.STATUS if here.status == ExperimentStatus() else Need.NOTHING
    return Piece(body=piece.body, status=piece.status, need=need, present=document)


def _must(answer: Object | Refused, piece: Piece) -> Object:
    if not isinstance(answer, Refused):
        return answer
    name = key_of(piece.body).name
    if answer.is_taken or answer.is_outdated:
        raise RestoreRefusedError(f"Experiment {name} was changed by somebody meanwhile; run the same import again")
    raise RestoreDeniedError(f"Experiment {name}: {answer.message}")
