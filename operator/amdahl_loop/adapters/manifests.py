"""How is a TrainingJob read from the user's YAML file, and how are proven knob values written back into it?

Values are spliced into the user's own text, so comments, indentation, quotes and line ends stay exactly as they are.
The edited text is parsed again and must be the same job with just these values; then the file is replaced in one step,
so that no reader ever sees half of it, and only if nobody has edited it since it was read.
"""

import contextlib
import difflib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from amdahl_loop.domain.digests import hash_text
from amdahl_loop.domain.knob_values import KnobName, KnobValue
from amdahl_loop.domain.parsing import ManifestError, parse_training_job
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.domain.values import Frozen

MAX_MANIFEST_BYTES = 2**20
MAX_VALUES = 100_000
"""Values of a document with its aliases written out: a small file of aliases can stand for billions."""

MAX_DEPTH = 100

LOCAL = "local-"
_FIELD = re.compile(r"^([^:]+): ")


class Manifest(Frozen):
    """A manifest as it was read: the job, the text it came from, and where that lies."""

    path: Path
    """The file itself; a symbolic link has been followed."""
    text: str = Field(repr=False)
    job: TrainingJob


def read_manifest(path: Path) -> Manifest:
    """The one TrainingJob of a YAML file; ManifestError names the file, the line, the field and the fix.

    Where the user gave no uid, one is made from namespace and name, so that moving the file keeps its memory.
    """
    text = _read_text(path)
    return Manifest(path=path.resolve(), text=text, job=parse_manifest(path, text))


def parse_manifest(path: Path, text: str) -> TrainingJob:
    """The one TrainingJob that a text declares; `path` is only for messages."""
    index, document = _find_job(path, text)
    try:
        job = parse_training_job(document)
    except ManifestError as error:
        node = _compose(text)[index]
        lines = [_locate(path, node, line) for line in str(error).splitlines()]
        raise ManifestError("\n".join(lines)) from error
    if job.metadata.uid:
        return job
    uid = local_uid(job.metadata.namespace, job.metadata.name)
    return job.model_copy(update={"metadata": job.metadata.model_copy(update={"uid": uid})})


def local_uid(namespace: str, name: str) -> str:
    """Identity of a job that no cluster has given one: `local-` and 12 hex digits."""
    return f"{LOCAL}{hash_text(namespace, name)[:12]}"


def is_local(job_uid: str) -> bool:
    """Whether one machine made a job's identity up; a cluster's are UUIDs."""
    return job_uid.startswith(LOCAL)


def edit_knobs(manifest: Manifest, values: Mapping[KnobName, KnobValue]) -> str:
    """The manifest's text with these values in `spec.knobs` (`spec.replicas` for replicas), and nothing else changed.

    ManifestError where the values cannot be put in without changing something else, such as a shared anchor.
    """
    index, document = _find_job(manifest.path, manifest.text)
    text, wanted = manifest.text, _with_values(document, values)
    for knob, value in values.items():
        text = _splice(text, index, knob, str(value).lower())
    try:
        same = _find_job(manifest.path, text) == (index, wanted)
    except ManifestError:
        same = False
    if not same:
        names = ", ".join(values)
        raise ManifestError(
            f"{manifest.path}: {names} cannot be changed alone: an anchor or a tag is shared; write the values out"
        )
    return text


def diff_text(manifest: Manifest, text: str) -> str:
    """Unified diff from the manifest as it was read to `text`; empty when they are equal."""
    name = manifest.path.name
    before, after = (part.splitlines(keepends=True) for part in (manifest.text, text))
    lines = difflib.unified_diff(before, after, fromfile=f"a/{name}", tofile=f"b/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def write_manifest(manifest: Manifest, text: str) -> Manifest:
    """Replace the file in one step, keeping mode and owner; ManifestError, and no change, where that cannot be."""
    path, job = manifest.path, parse_manifest(manifest.path, text)
    if _read_text(path) != manifest.text:
        raise ManifestError(f"{path} was edited since it was read, so nothing was written; run again")
    draft = None
    try:
        status = path.stat()
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        draft = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            with contextlib.suppress(PermissionError):  # only root may give a file away
                os.fchown(stream.fileno(), status.st_uid, status.st_gid)
            os.fchmod(stream.fileno(), status.st_mode & 0o7777)
            os.fsync(stream.fileno())
        draft.replace(path)
    except OSError as error:
        if draft is not None:
            draft.unlink(missing_ok=True)
        raise ManifestError(f"{path} cannot be written: {error.strerror}; nothing was changed") from error
    return Manifest(path=path, text=text, job=job)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}; name a TrainingJob manifest") from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{path} is larger than 1 MiB; a manifest holds one TrainingJob, not data")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path}, line {line}: this is not UTF-8 text; save it as UTF-8") from error


def _find_job(path: Path, text: str) -> tuple[int, dict[str, Any]]:
    """Which document of the text is the TrainingJob, and its plain content."""
    try:
        documents = list(YAML(typ="safe", pure=True).load_all(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ManifestError(f"{path}{line}: {error.problem or error.context}; mend the YAML there") from error
    except (YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "nested too deeply"
        raise ManifestError(f"{path}: {reason}; mend the YAML") from error
    jobs = [n for n, doc in enumerate(documents) if isinstance(doc, dict) and doc.get("kind") == "TrainingJob"]
    if len(jobs) > 1:
        lines = ", ".join(str(_compose(text)[n].start_mark.line + 1) for n in jobs)
        raise ManifestError(f"{path} holds {len(jobs)} TrainingJobs (lines {lines}); put each into a file of its own")
    if not jobs:
        raise ManifestError(f"{path} holds no document of kind TrainingJob; add `kind: TrainingJob`")
    if _count_values(documents[jobs[0]]) > MAX_VALUES:
        raise ManifestError(f"{path} has more than {MAX_VALUES} values once its aliases are written out; shorten it")
    return jobs[0], documents[jobs[0]]


def _count_values(value: object, depth: int = 0, counted: int = 0) -> int:
    """Values in a document with aliases written out; stops soon after MAX_VALUES, and at cycles by depth."""
    if depth > MAX_DEPTH:
        return MAX_VALUES + 1
    counted += 1
    children = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    for child in children:
        if counted > MAX_VALUES:
            break
        counted = _count_values(child, depth + 1, counted)
    return counted


def _compose(text: str) -> list[Node]:
    """The documents as nodes that know where in the text they stand."""
    return list(YAML(typ="rt", pure=True).compose_all(text))


def _child(node: Node | None, name: str) -> Node | None:
    """The node under a key or an index, if there is one."""
    if isinstance(node, MappingNode):
        return next((value for key, value in node.value if key.value == name), None)
    if isinstance(node, SequenceNode) and name.isdigit() and int(name) < len(node.value):
        item: Node = node.value[int(name)]
        return item
    return None


def _locate(path: Path, node: Node, message: str) -> str:
    """A field's message with the line of that field, or of the nearest one above it."""
    field = _FIELD.match(message)
    for name in field.group(1).split(".") if field else ():
        below = _child(node, name)
        if below is None:
            break
        node = below
    return f"{path}, line {node.start_mark.line + 1}: {message}"


def _with_values(document: dict[str, Any], values: Mapping[KnobName, KnobValue]) -> dict[str, Any]:
    """What the document should say after the edit."""
    spec = dict(document["spec"])
    knobs = dict(spec.get("knobs") or {})
    for knob, value in values.items():
        if knob is KnobName.REPLICAS:
            spec["replicas"] = value
        else:
            knobs[knob.value] = value
    return document | {"spec": spec | ({"knobs": knobs} if knobs else {})}


def _splice(text: str, index: int, knob: KnobName, value: str) -> str:
    """The text with one value replaced where it stands, or put in as the first key of its mapping."""
    spec = _child(_compose(text)[index], "spec")
    mapping = spec if knob is KnobName.REPLICAS else _child(spec, "knobs")
    if not isinstance(mapping, MappingNode) or not mapping.value:
        return text
    old = _child(mapping, knob.value)
    if isinstance(old, ScalarNode):
        return text[: old.start_mark.index] + value + text[old.end_mark.index :]
    first = mapping.value[0][0].start_mark
    line_end = "\r\n" if "\r\n" in text else "\n"
    gap = ", " if mapping.flow_style else line_end + " " * first.column
    return f"{text[: first.index]}{knob.value}: {value}{gap}{text[first.index :]}"
