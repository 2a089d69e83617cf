"""What text is trained on? `pydocs`: Python's own documentation, which every Python installation already holds.

The language reference (`pydoc_data.topics`) and the standard library's docstrings: about 2,300 documents and 1.7 MB,
deterministic given the Python version. Sources are parsed, never imported. The manifest names version and SHA-256.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import sysconfig
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import numpy.typing as npt

from amdahl_trainer.data.cache import build_once
from amdahl_trainer.errors import DataError

#: Shorter docstrings are mostly one-line summaries, which pack badly and teach little.
MIN_DOCSTRING = 200

#: Parts of the standard library that are not documentation of the language, or are not the same everywhere.
SKIPPED = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
)

#: Longer documents are split at blank lines into sections of at most this many bytes (a longer paragraph stays whole),
#: as a book is read by chapters. It bounds what `tokenize: on_the_fly` must encode for one row.
SECTION_BYTES = 4096

#: One held-out document in this many, chosen by its digest, so that the split never depends on the order.
HELD_OUT = 20


@dataclass(frozen=True)
class Corpus:
    """All documents in one buffer. Document d is `text[bounds[d]:bounds[d + 1]]`, UTF-8 in normal form C."""

    text: npt.NDArray[np.uint8]
    bounds: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.bool_]
    sha256: str

    def document(self, index: int) -> bytes:
        """The bytes of one document."""
        return self.text[self.bounds[index] : self.bounds[index + 1]].tobytes()


def ensure(cache: Path) -> Corpus:
    """The corpus `pydocs` of this Python, built in `cache` if it is not there.

    Raises:
        ConfigError: it must be built and `cache` cannot be written.
        DataError: what is there is damaged.
    """
    home = build_once(cache / f"pydocs-{platform.python_version()}", _build)
    try:
        manifest = json.loads((home / "manifest.json").read_text())
        text = np.fromfile(home / "text.bin", dtype=np.uint8)
        bounds = np.load(home / "bounds.npy")
        held_out = np.load(home / "held_out.npy")
    except (OSError, ValueError) as error:
        raise DataError(f"{home} is damaged ({error}); delete it, it is built again") from error
    if hashlib.sha256(text.tobytes()).hexdigest() != manifest["sha256"]:
        raise DataError(f"{home}/text.bin does not have the SHA-256 of its manifest; delete {home}, it is built again")
    return Corpus(text, bounds, held_out, manifest["sha256"])


def _build(home: Path) -> None:
    texts = (unicodedata.normalize("NFC", text).encode() for text in dict.fromkeys(_documents()))
    documents = [section for text in texts for section in split_sections(text, SECTION_BYTES)]
    text = b"".join(documents)
    bounds = np.cumsum([0] + [len(document) for document in documents], dtype=np.int64)
    held_out = np.array([hashlib.sha256(document).digest()[0] % HELD_OUT == 0 for document in documents])
    (home / "text.bin").write_bytes(text)
    np.save(home / "bounds.npy", bounds)
    np.save(home / "held_out.npy", held_out)
    manifest = {
        "corpus": "pydocs",
        "python": platform.python_version(),
        "documents": len(documents),
        "held_out": int(held_out.sum()),
        "bytes": len(text),
        "sha256": hashlib.sha256(text).hexdigest(),
    }
    (home / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def split_sections(text: bytes, limit: int) -> list[bytes]:
    """Cut at blank lines into sections of at most `limit` bytes; together they are the text."""
    sections: list[bytes] = []
    section = b""
    for paragraph in re.split(rb"(?<=\n\n)", text):
        if section and len(section) + len(paragraph) > limit:
            sections.append(section)
            section = b""
        section += paragraph
    return [*sections, section] if section else sections


def _documents() -> Iterator[str]:
    yield from (topics[name] for name in sorted(topics))
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(library).parts):
            yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources hold invalid escapes: their business, not ours
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # a template or a data file named .py: no documentation to be had
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None and len(text) >= MIN_DOCSTRING and _encodable(text):
                yield text


def _encodable(text: str) -> bool:
    """False for the lone surrogates that a few docstrings show as examples."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
