"""What is told of a decision beyond the status: to the job's owner in an event, to the log, to Prometheus?"""

import logging

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.jobs import ShownJob, tell_owner
from amdahl_loop.adapters.metrics import Metrics
from amdahl_loop.domain.knob_values import Knobs
from amdahl_loop.domain.plan import Action, Apply, Judge, Propose, Rollback
from amdahl_loop.domain.verdicts import VerdictWord
from amdahl_loop.recollection import JobKey

_log = logging.getLogger(__name__)


async def announce(client: KubeClient, metrics: Metrics, key: JobKey, job: ShownJob, action: Action) -> None:
    """Tell the owner of a job what was decided; `kubectl describe` shows it. Of most actions nothing is told."""
    match action:
        case Propose(plan=plan, worth=worth):
            told = ("ExperimentStarted", f"{plan.name}: {worth.sentence}", False)
        case Judge(experiment=experiment, verdict=verdict):
            metrics.count_verdict(key.namespace, experiment, verdict)
            told = (f"Experiment{verdict.word}", verdict.sentence, verdict.word is VerdictWord.ERROR)
        case Apply(experiment=experiment, knobs=knobs):
            told = ("TuningApplied", f"{experiment.name}: {_say(knobs)}", False)
        case Rollback(sentence=sentence, knobs=knobs):
            metrics.count_rollback(key.namespace)
            told = ("TuningRolledBack", f"{_say(knobs)} again: {sentence}", True)
        case _:
            return
    reason, message, is_warning = told
    _log.info("%s %s: %s", key, reason, message)
    await tell_owner(client, job, reason, message, warning=is_warning)


def _say(knobs: Knobs) -> str:
    return ", ".join(f"{knob} {str(value).lower()}" for knob, value in knobs.declared().items())
