"""The tables of docs/gitops.md, from what was seen."""

from collections.abc import Iterable
from itertools import groupby

from gitops.expected import Phase
from gitops.matrix import Row

TITLES = {
    "kubectl": "`kubectl apply`",
    "kubectl-server": "`kubectl apply --server-side`",
    "kubectl-force": "`kubectl apply --server-side --force-conflicts`",
    "argocd": "Argo CD, server-side",
    "argocd-client": "Argo CD, client-side",
    "flux": "Flux kustomize-controller 1.9.5",
    "helm": "Helm 4, server-side",
    "helm-client": "Helm 4, client-side",
    "flux-overruled": "A mistake: Flux overruled, and not told to ignore the field",
    "helm-overruled": "A mistake: Helm overruled",
}


def render(rows: Iterable[Row]) -> str:
    """One table for each tool: a line for each mode, a column for each step."""
    tables = [_render_tool(tool, list(group)) for tool, group in groupby(rows, key=lambda row: row.tool)]
    return "\n".join(tables)


def _render_tool(tool: str, rows: list[Row]) -> str:
    head = f"### {TITLES[tool]}\n\n| mode | {' | '.join(Phase)} | our writes | theirs |\n|{'---|' * (len(Phase) + 3)}\n"
    return head + "".join(_render_row(row) for row in rows)


def _render_row(row: Row) -> str:
    steps = [_say(row, phase) for phase in Phase]
    writes = row.written[Phase.TAKEN]
    return f"| {row.mode} | {' | '.join(steps)} | {writes.ours} | {writes.theirs} |\n"


def _say(row: Row, phase: Phase) -> str:
    """`3 (amdahl-loop), runs with 3: InSpec`."""
    job = row.seen[phase]
    owners = " + ".join(job.owners) or "nobody"
    count = len(row.refused.get(phase, ()))
    refused = {0: "", 1: "; refused once"}.get(count, f"; refused {count} times")
    return f"{job.workers} ({owners}), runs with {job.runs_with}: {job.conflict.partition('/')[2]}{refused}"
