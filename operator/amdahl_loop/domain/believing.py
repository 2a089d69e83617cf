"""Which applications on record may be believed?

An application says which values are in force, and who may write an Experiment's status may write one by hand. So none
counts by its word: its values must follow from an experiment of the job that has won, by the judge of this version on
the recorded blocks. The plan names the judge and never changes. What another version judged and put in force stays in
force, or an upgrade would restart jobs. A forged roll-back can only take a proven value away.
"""

from collections.abc import Sequence

from amdahl_loop.domain import judge
from amdahl_loop.domain.constants import JUDGE_VERSION
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.keep import Kept
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.ledger import Application, ApplicationKind, JobMemory, effective_knobs


def sift_applications(memory: JobMemory, job_uid: str) -> JobMemory:
    """The memory without the applications that nothing bears out; `disowned` says which, and why."""
    if not memory.applications:
        return memory
    own = {experiment.name: experiment for experiment in memory.of_job(job_uid).experiments}
    newest = {application.experiment: application for application in memory.applications}
    doubts = {name: _doubt_win(own.get(name), application) for name, application in newest.items()}
    believed, disowned = list[Application](), dict[str, str]()
    for application in memory.applications:
        name = application.experiment
        doubt = doubts[name] or _doubt_values(own[name], application, believed)
        if doubt:
            disowned[name] = (
                f"status.applications of Experiment {name} holds an entry that is ignored: {doubt}. "
                "Remove the entry, or delete the Experiment."
            )
        else:
            believed.append(application)
    return memory.model_copy(update={"applications": tuple(believed), "disowned": tuple(disowned.values())})


def _doubt_win(experiment: Experiment | None, newest: Application) -> str:
    """Why nothing can have been applied of an experiment; empty where it has won.

    The blocks of one that was rolled back are no longer at hand, and its values no longer in force.
    """
    if experiment is None:
        return "this job has no such experiment"
    if experiment.verdict is None:
        return "the experiment is still open"
    if not experiment.is_won:
        return f"the experiment ended {experiment.verdict.word}"
    is_ours = experiment.plan.constants.judge_version == JUDGE_VERSION
    if newest.kind is not ApplicationKind.ROLLED_BACK and is_ours and not judge.upholds(experiment):
        return "the experiment says that it has won, and its recorded blocks do not show it"
    return ""


def _doubt_values(win: Experiment, application: Application, before: Sequence[Application]) -> str:
    """Why these values do not follow from what a win has proven and what was in force; empty where they do."""
    if application.knobs in _find_values(win, application, before):
        return ""
    return f"its values ({application.kind}) are not those of the experiment"


def _find_values(win: Experiment, application: Application, before: Sequence[Application]) -> list[Knobs]:
    plan = win.plan
    match application.kind:
        case ApplicationKind.APPLIED:
            return [plan.variant]
        case ApplicationKind.REVERTED:
            return [plan.variant, plan.baseline, *(a.knobs for a in before if a.experiment == win.name)]
        case ApplicationKind.ROLLED_BACK:
            undo = Kept(win, application).undo
            declared = application.declared
            return [plan.baseline, undo(declared), undo(effective_knobs(declared, before))]
