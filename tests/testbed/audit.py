"""What did each user ask of the API server? Reads its audit log, so that a test can hold requests against granted rights."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """One finished request, in the words of an RBAC rule."""

    user: str
    verb: str
    group: str  # "" for the core group
    resource: str  # with its subresource: "trainingjobs/status"; "" for a path such as /readyz
    namespace: str
    name: str
    path: str
    status: int
    user_agent: str
    is_dry_run: bool
    is_forbidden: bool  # by the authorizer; admission refuses with 403 as well, and that is another matter
    granted_by: str  # the authorizer's own words: which binding of which role let it through

    @property
    def right(self) -> tuple[str, str, str]:
        """Verb, API group and resource: what a rule must grant for this request."""
        return self.verb, self.group, self.resource


def read_requests(log: Path, user: str | None = None) -> Iterator[Request]:
    """The finished requests in order of their end, of one user when one is named. A half-written last line is left out."""
    with log.open() as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            event = json.loads(line)
            if event["stage"] == "ResponseComplete" and user in (None, event["user"]["username"]):
                yield _parse(event)


def _parse(event: dict[str, Any]) -> Request:
    target, notes = event.get("objectRef", {}), event.get("annotations", {})
    resource, subresource = target.get("resource", ""), target.get("subresource", "")
    return Request(
        user=event["user"]["username"],
        verb=event["verb"],
        group=target.get("apiGroup", ""),
        resource=f"{resource}/{subresource}" if subresource else resource,
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        path=event["requestURI"].partition("?")[0],
        status=event.get("responseStatus", {}).get("code", 0),
        user_agent=event.get("userAgent", ""),
        is_dry_run="dryRun=" in event["requestURI"],
        is_forbidden=notes.get("authorization.k8s.io/decision") == "forbid",
        granted_by=notes.get("authorization.k8s.io/reason", ""),
    )
