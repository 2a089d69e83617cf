"""What does `fleet` look like?"""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from amdahl_loop.cli.shapes import FleetJobShape, FleetShape
from amdahl_loop.cli.words import clean, counted, device_hours
from amdahl_loop.domain.reasons import Reason

NOTHING = "-"
_OUTCOMES = (Reason.PROVEN_VALUES, Reason.RECOMMENDED, Reason.WON_UNAPPLIED, Reason.ROLLED_BACK)


def show_fleet(fleet: FleetShape) -> RenderableType:
    """`fleet`: a row a job, what each knob is expected to bank, the state of its trials, and the sum of it all."""
    where = "any namespace" if fleet.namespace is None else f"namespace {fleet.namespace}"
    if not fleet.jobs:
        return Text(f"There is no TrainingJob in {where}.")
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, expand=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("job", overflow="fold")
    table.add_column("class", no_wrap=True)
    table.add_column("wasted", justify="right", no_wrap=True)
    table.add_column("expected bank", overflow="fold")
    table.add_column("trial", no_wrap=True)
    table.add_column("net", justify="right", no_wrap=True)
    for job in fleet.jobs:
        table.add_row(
            str(job.rank),
            job.job if fleet.namespace else f"{job.namespace}/{job.job}",
            job.class_ or NOTHING,
            _number(job.wasted),
            _expect(job),
            Text(_stand(job), _style(job)),
            _number(job.bank.net if job.bank else None),
        )
    total = fleet.total
    unseen = f" ({total.measured} measured)" if total.measured < total.jobs else ""
    line = (
        f"{counted(total.jobs, 'job')}{unseen}: {device_hours(total.wasted)} device-hours wasted an hour, "
        f"{device_hours(total.removable)} of them removable at most; "
        f"net bank {device_hours(total.bank.net)} device-hours"
    )
    return Group(table, Text(), Text(line, "bold"), *_troubles(fleet))


def _expect(job: FleetJobShape) -> str:
    """Knobs that are worth a trial, best first, with the device-hours that they are expected to bank."""
    worth = [idea for idea in job.ideas if idea.worth_trying]
    told = [f"{', '.join(c.knob for c in idea.changes)} {device_hours(idea.expected_bank)}" for idea in worth]
    return "\n".join(told) or NOTHING


def _stand(job: FleetJobShape) -> str:
    """The state of a job's trials; where they have ended with a proven value, what became of that."""
    is_told = job.trial.reason == Reason.NOTHING_TO_TRY and job.tuned in _OUTCOMES
    return job.tuned if is_told else job.trial.reason


def _style(job: FleetJobShape) -> str:
    if job.trial.running:
        return "green"
    return "cyan" if job.trial.experiment else "default"


def _number(value: float | None) -> str:
    return NOTHING if value is None else device_hours(value)


def _troubles(fleet: FleetShape) -> list[Text]:
    """Jobs that cannot be looked at, and what to do about each."""
    return [
        Text(f"{job.namespace}/{job.job}: {clean(job.sentence)}", "yellow")
        for job in fleet.jobs
        if job.standing == Reason.INVALID_SPEC or (job.class_ is None and job.sentence)
    ]
