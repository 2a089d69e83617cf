"""What is one entry of the ledger?

Pure: the columns of an entry follow from its body, its link from the entry before it, and an export is a list of both.
"""

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pydantic import ValidationError

from amdahl_loop.adapters.sqlite.errors import LedgerCorruptError
from amdahl_loop.domain.digests import hash_text
from amdahl_loop.domain.experiments import BlockRecord, Loss, Plan
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


def parse_body(entry: Entry) -> Body:
    """The value that an entry holds, validated again; LedgerCorruptError when this version cannot read it."""
    try:
        return _BODIES[entry.kind].model_validate_json(entry.body)
    except (ValidationError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise LedgerCorruptError(
            f"{entry.kind} {entry.key} cannot be read by this version ({reason}); use the version that wrote it"
        ) from error


def render_export(bodies: Iterable[Body]) -> Iterator[str]:
    """Facts from anywhere as an exported ledger: a header with count and last hash, then an entry a line."""
    head, lines = "", []
    for body in bodies:
        entry = entry_of(body)
        head = entry.hash_after(head)
        lines.append(json.dumps({"kind": entry.kind, "body": entry.body, "hash": head}))
    yield json.dumps({"v": EXPORT_VERSION, "entries": len(lines), "head": head})
    yield from lines


def parse_export(lines: Iterable[str]) -> Iterator[Body]:
    """Bodies of an exported ledger, after its count and its chain were checked to the end.

    LedgerCorruptError names the line, what it holds, and the fix.
    """
    numbered = enumerate(lines, start=1)
    expected = _parse_header(next(numbered, (1, ""))[1])
    head, bodies = "", list[Body]()
    for number, line in numbered:
        body, head = _parse_line(number, line, head)
        bodies.append(body)
    if expected != (len(bodies), head):
        raise LedgerCorruptError(
            f"the export ends at line {1 + len(bodies)} with {len(bodies)} of {expected[0]} entries: it was cut; "
            "export it again"
        )
    yield from bodies


def _parse_header(line: str) -> tuple[int, str]:
    """How many entries follow, and the last one's hash."""
    try:
        raw = json.loads(line)
        version, expected = raw["v"], (int(raw["entries"]), str(raw["head"]))
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerCorruptError(
            f"line 1 holds {line[:60]!r}: no export of a ledger, whose first line says {EXPORT_VERSION!r}, its entries "
            "and the last hash; name a file that `amdahl-loop export` wrote"
        ) from error
    if version != EXPORT_VERSION:
        raise LedgerCorruptError(
            f"line 1 says version {version!r}, this program reads {EXPORT_VERSION!r}; use the amdahl-loop that wrote it"
        )
    return expected


def _parse_line(number: int, line: str, head: str) -> tuple[Body, str]:
    """One entry, checked, and its link of the chain."""
    try:
        raw = json.loads(line)
        kind, text, link = raw["kind"], str(raw["body"]), raw["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerCorruptError(
            f"line {number} of the export holds {line[:60]!r}: no ledger entry; export it again"
        ) from error
    if kind not in _BODIES:
        known = ", ".join(_BODIES)
        raise LedgerCorruptError(
            f"line {number} of the export is of kind {str(kind)[:60]!r}, this program knows {known}; "
            "use the amdahl-loop that wrote it"
        )
    try:
        body = _BODIES[kind].model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LedgerCorruptError(
            f"line {number} of the export, {kind}: {where or 'its body'} holds {str(first['input'])[:60]!r}: "
            f"{first['msg']}; export it again, or use the amdahl-loop that wrote it"
        ) from error
    link_here = entry_of(body)._replace(body=text).hash_after(head)  # an older version wrote fewer fields
    if link_here != link:
        raise LedgerCorruptError(
            f"line {number} of the export breaks the chain of hashes ({str(link)[:16]!r}, expected "
            f"{link_here[:16]!r}): it was edited, or a line before it is missing; export it again"
        )
    return body, link_here
