"""Which rights does an account hold by the rendered roles, and which has it used by the audit log?"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from testbed.access import Access
from testbed.audit import Request, read_requests

ROLE = "amdahl-loop-operator"


class Right(NamedTuple):
    """One entry of an RBAC rule."""

    group: str
    resource: str
    verb: str


class Use(NamedTuple):
    """How a right was used: on the whole cluster or in a namespace, and by whose binding."""

    right: Right
    scope: str


def granted_rights(admin: Access, path: str) -> set[Right]:
    """Every right of a role, as the server holds it."""
    rules = admin.get(path).body["rules"]
    return {
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def read_uses(log: Path, user: str) -> list[Request]:
    """Every request of an account for a resource, discovery left out: that everybody may do."""
    return [request for request in read_requests(log, user) if request.resource]


def sum_up(requests: Iterable[Request]) -> dict[Use, int]:
    """How often each right was used in each scope."""
    uses: dict[Use, int] = {}
    for request in requests:
        right = Right(request.group, request.resource, request.verb)
        use = Use(right, "namespace" if request.namespace else "cluster")
        uses[use] = uses.get(use, 0) + 1
    return uses


def render_table(granted: set[Right], uses: dict[Use, int]) -> str:
    """One line a right: resource, verb, and how often it was used on the cluster and in namespaces."""
    lines = [f"{'group':<15} {'resource':<24} {'verb':<7} {'granted':<8} {'cluster':>8} {'namespace':>10}"]
    for right in sorted(granted | {use.right for use in uses}):
        counts = [uses.get(Use(right, scope), 0) for scope in ("cluster", "namespace")]
        is_granted = "yes" if right in granted else "NO"
        lines.append(
            f"{right.group or 'core':<15} {right.resource:<24} {right.verb:<7} {is_granted:<8} {counts[0]:>8} {counts[1]:>10}"
        )
    return "\n".join(lines)
