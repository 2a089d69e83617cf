"""What is one entry of the ledger, and how do entries fold back into experiments?

Pure: the columns of an entry follow from its body, its link from the entry before it, and an export is a list of both.
"""

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pydantic import ValidationError

from amdahl_loop.adapters.sqlite.errors import LedgerCorruptError
from amdahl_loop.domain.digests import hash_text
from amdahl_loop.domain.experiments import BlockRecord, Experiment, Loss, Plan
from amdahl_loop.domain.ledger import Application, Observation
from amdahl_loop.domain.values import Frozen
from amdahl_loop.domain.verdicts import Verdict

EXPORT_VERSION = "amdahl.ledger/1"


class Observed(Frozen):
    """An entry's body: one observation of one job."""

    job_uid: str
    observation: Observation


class Measured(Frozen):
    """An entry's body: one finished block of an experiment."""

    experiment: str
    record: BlockRecord


class Lost(Frozen):
    """An entry's body: one run of an experiment that was stopped before its end."""

    experiment: str
    loss: Loss


class Closed(Frozen):
    """An entry's body: the end of an experiment, and when it came."""

    experiment: str
    at_s: float
    verdict: Verdict


Body = Plan | Observed | Measured | Lost | Closed | Application

_BODIES: dict[str, type[Body]] = {
    "observation": Observed,
    "plan": Plan,
    "block": Measured,
    "loss": Lost,
    "verdict": Closed,
    "application": Application,
}


class Entry(NamedTuple):
    """One row without its place in the chain: the columns to search by, and the body as JSON."""

    kind: str
    key: str
    experiment: str
    job_uid: str
    fingerprint: str
    family: str
    body: str

    def hash_after(self, previous: str) -> str:
        """This entry's link of the chain, given the link before it."""
        return hash_text(previous, *self)


def entry_of(body: Body) -> Entry:
    """Columns follow from the body alone; the key is what may exist only once per kind."""
    text = body.model_dump_json(by_alias=True)
    match body:
        case Plan():
            return Entry("plan", body.name, body.name, body.job_uid, body.fingerprint, body.family, text)
        case Measured():
            return Entry("block", f"{body.experiment}/{body.record.spec.name}", body.experiment, "", "", "", text)
        case Lost():
            key = f"{body.loss.run}/{body.loss.started_at_s!r}"
            return Entry("loss", key, body.experiment, "", "", "", text)
        case Closed():
            return Entry("verdict", body.experiment, body.experiment, "", "", "", text)
        case Observed():
            return Entry("observation", f"{body.job_uid}/{body.observation.run}", "", body.job_uid, "", "", text)
        case Application():
            key = f"{body.job_uid}/{body.at_s!r}/{body.kind}/{body.experiment}"
            return Entry("application", key, "", body.job_uid, body.fingerprint, "", text)


def fold_experiments(bodies: Iterable[Body]) -> tuple[tuple[Experiment, ...], dict[str, float]]:
    """Experiments in the order of their plans, and when the closed ones were closed (seconds since the epoch)."""
    experiments: dict[str, Experiment] = {}
    closed_at_s: dict[str, float] = {}
    for body in bodies:
        match body:
            case Plan():
                experiments[body.name] = Experiment(plan=body)
            case Measured():
                experiments[body.experiment] = experiments[body.experiment].with_block(body.record)
            case Lost():
                experiments[body.experiment] = experiments[body.experiment].with_loss(body.loss)
            case Closed():
                experiments[body.experiment] = experiments[body.experiment].with_verdict(body.verdict)
                closed_at_s[body.experiment] = body.at_s
            case _:
                continue
    return tuple(experiments.values()), closed_at_s


def parse_body(entry: Entry) -> Body:
    """The value that an entry holds, validated again; LedgerCorruptError when this version cannot read it."""
    try:
        return _BODIES[entry.kind].model_validate_json(entry.body)
    except (ValidationError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise LedgerCorruptError(
            f"{entry.kind} {entry.key} cannot be read by this version ({reason}); use the version that wrote it"
        ) from error


def parse_export(lines: Iterable[str]) -> Iterator[Body]:
    """Bodies of an exported ledger, after its count and its chain were checked to the end."""
    head, bodies, header = "", [], None
    for number, line in enumerate(lines, start=1):
        try:
            raw = json.loads(line)
            if header is None:
                header = (raw["v"], raw["entries"], raw["head"])
                continue
            body = _BODIES[raw["kind"]].model_validate_json(raw["body"])
            head = entry_of(body)._replace(body=raw["body"]).hash_after(head)  # an older version wrote fewer fields
            if head != raw["hash"]:
                raise LedgerCorruptError(f"line {number} of the export breaks the chain of hashes; export it again")
            bodies.append(body)
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerCorruptError(
                f"line {number} of the export is no ledger entry ({error}); export it again"
            ) from error
    if header is None or header[0] != EXPORT_VERSION:
        raise LedgerCorruptError(f"this is no export of a ledger: the first line must say {EXPORT_VERSION!r}")
    if header[1:] != (len(bodies), head):
        raise LedgerCorruptError(f"the export holds {len(bodies)} of {header[1]} entries: it was cut; export it again")
    yield from bodies
