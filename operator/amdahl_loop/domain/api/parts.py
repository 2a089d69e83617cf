"""What are the fields of our objects made of?

A status is written by some version of the operator and read by another: unknown fields are ignored. Sentences are cut
to a number of bytes, so that the size of a whole status is bounded by its fields.
"""

import json
from functools import lru_cache, partial
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from amdahl_loop.domain.knob_values import ActivationCheckpointing, DataParallel, KnobValue
from amdahl_loop.domain.telemetry import MAX_SUMMARY_BYTES
from amdahl_loop.domain.values import Frozen

MAX_SENTENCE = 500
MAX_PHRASE = 160
ELLIPSIS = "..."


class Reported(Frozen):
    """Part of a status: immutable, camelCase outside, tolerant of fields that a newer operator wrote."""

    model_config = ConfigDict(extra="ignore")


@lru_cache(maxsize=4096)
def clip(text: str, limit: int = MAX_SENTENCE) -> str:
    """The text on one line, cut so that its JSON takes at most `limit` bytes without the quotes around it."""
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(text.split())
    if _size_bytes(line) <= limit:
        return line
    kept = min(len(line), limit)
    while _size_bytes(line[:kept]) + len(ELLIPSIS) > limit:
        kept -= 1
    return line[:kept] + ELLIPSIS


def _size_bytes(text: str) -> int:
    """Bytes of a line of printable text in JSON; most lines hold nothing that is written otherwise there."""
    if text.isascii() and '"' not in text and "\\" not in text:
        return len(text)
    return len(json.dumps(text, ensure_ascii=False).encode()) - 2


Sentence = Annotated[str, BeforeValidator(clip), Field(max_length=MAX_SENTENCE)]
"""A sentence for people; what is too long is cut at the end."""

Phrase = Annotated[str, BeforeValidator(partial(clip, limit=MAX_PHRASE)), Field(max_length=MAX_PHRASE)]
"""A few words for people, cut likewise."""

ObjectName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""Name of an object in the same namespace: references are local names only."""

Summary = Annotated[str, Field(max_length=MAX_SUMMARY_BYTES)]
"""Summary of a block as its supervisor wrote it: checksummed JSON (docs/telemetry.md, section 4)."""

Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", max_length=16)]
"""Identity of the work, or its looser family: 16 hex digits."""

_WORDS = "|".join((*ActivationCheckpointing, *DataParallel))
KnobText = Annotated[str, Field(pattern=rf"^(true|false|{_WORDS}|[0-9]{{1,8}})$", max_length=16)]
"""Value of a knob as text: a whole number, true or false, or one of the knob's words."""


def write_knob(value: KnobValue) -> str:
    """A knob's value as text: `2`, `true`, `block`."""
    return str(value).lower()


def read_knob(text: str) -> KnobValue:
    """The value that such a text holds."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdecimal() else text
