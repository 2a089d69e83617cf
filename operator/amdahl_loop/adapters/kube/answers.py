"""What may come back from the API server, and what does it mean?

Refusals are values: the caller knows what a 409 or a 422 means. What cannot be worked with raises ApiUnavailable.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

from amdahl_loop.adapters.kube.kinds import Object
from amdahl_loop.adapters.kube.transport import Answer

_NO_RIGHT = re.compile(r'User "[^"]*" cannot \w+ resource "')


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason of a refusal: for 409 on apply a manager's claim, for 422 a field."""

    reason: str
    field: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The server understood and said no."""

    status: int
    reason: str
    message: str
    causes: tuple[Cause, ...] = ()
    retry_after_s: float | None = None

    @property
    def is_taken(self) -> bool:
        """An object of that name is there already; adopt it if it is ours."""
        return self.reason == "AlreadyExists"

    @property
    def is_outdated(self) -> bool:
        """The object has changed since it was read, or another one bears its name now: read again."""
        return self.status == HTTPStatus.CONFLICT and not self.is_taken

    @property
    def is_gone(self) -> bool:
        """There is no such object, or none any more."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def is_over_quota(self) -> bool:
        """The namespace's quota has no room for it."""
        return self.status == HTTPStatus.FORBIDDEN and "exceeded quota" in self.message

    @property
    def is_leaving(self) -> bool:
        """The namespace is being deleted: nothing is made in it any more, whatever it is."""
        return any(cause.reason == "NamespaceTerminating" for cause in self.causes)

    @property
    def lacks_right(self) -> bool:
        """The server does not know us, or we may not ask for this: nothing is wrong with what was asked for.

        Admission says what it has against an object; authorization says who cannot do what to which kind.
        """
        is_forbidden = self.status == HTTPStatus.FORBIDDEN and _NO_RIGHT.search(self.message) is not None
        return self.status == HTTPStatus.UNAUTHORIZED or is_forbidden


class Page(NamedTuple):
    """A part of a list, and the version of the whole."""

    items: Sequence[Object]
    resource_version: str


class ApiUnavailable(Exception):  # noqa: N818 (a state of the world, and the contract's word)
    """The API server gives no usable answer for now; `refused` holds its last word, where it had one."""

    def __init__(self, what: str, refused: Refused | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(what)
        self.refused = refused
        self.retry_after_s = retry_after_s


def is_transient(status: int) -> bool:
    """Whether the same request may be answered otherwise in a moment."""
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def read(answer: Answer) -> Object | Refused:
    """The object that an answer holds, or the refusal."""
    return answer.body if answer.status < HTTPStatus.MULTIPLE_CHOICES else read_refusal(answer)


def must(answer: Answer, what: str) -> Object:
    """The body of an answer that must be one: what the operator may not read, it cannot work with."""
    value = read(answer)
    if isinstance(value, Refused):
        raise ApiUnavailable(f"cannot {what}: {value.status} {value.message}"[:500], value)
    return value


def read_refusal(answer: Answer) -> Refused:
    """The server's `Status` object; whatever is missing in it is empty."""
    body = answer.body
    details = body.get("details") or {}
    causes = tuple(
        Cause(str(cause.get("reason", "")), str(cause.get("field", "")), str(cause.get("message", "")))
        for cause in details.get("causes") or ()
    )
    return Refused(
        status=answer.status,
        reason=str(body.get("reason", "")),
        message=str(body.get("message", "")),
        causes=causes,
        retry_after_s=answer.retry_after_s,
    )
