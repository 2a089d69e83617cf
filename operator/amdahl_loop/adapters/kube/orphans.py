"""What is left of a job that is gone, and who takes it away?

The garbage collector removes what the job owned. Its open experiments are closed, since they outlive it, and blocks are
stopped without waiting for the collector, which a cluster may run late.
"""

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient, Refused
from amdahl_loop.adapters.kube.closing import OPEN, mark_closed
from amdahl_loop.adapters.kube.experiments import diff, say_closed
from amdahl_loop.adapters.kube.index import ExperimentIndex, key_of
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.objects import controller_uid
from amdahl_loop.domain.api.records import StoredExperiment, close, read_experiment
from amdahl_loop.domain.children import EXPERIMENT_LABEL, JOB_LABEL
from amdahl_loop.domain.verdicts import CANCELLED, Verdict, VerdictWord
from amdahl_loop.ports import Clock

GONE = Verdict(word=VerdictWord.INCONCLUSIVE, sentence="Inconclusive: the job was deleted.", reason=CANCELLED)


async def let_go(
    client: KubeClient, index: ExperimentIndex, namespace: str, name: str, clock: Clock, keep_uid: str = ""
) -> None:
    """Stop every block and close every open experiment of a job that is gone or going.

    `keep_uid` is the job that bears the name now, where one does: what is its own stays.
    """
    labels = f"{JOB_LABEL}={name},{EXPERIMENT_LABEL}"
    async for raw in client.list(Kind.JOB, namespace, labels):
        if not (keep_uid and controller_uid(raw) in ("", keep_uid)):
            await take_away(client, raw)
    async for listed in client.list(Kind.EXPERIMENT, namespace, OPEN):
        document, stored, key = listed, read_experiment(listed), key_of(listed)
        if not isinstance(stored, StoredExperiment) or stored.experiment.plan.job != name:
            continue
        if stored.experiment.plan.job_uid == keep_uid:
            continue
        if stored.experiment.verdict is None:
            status = say_closed(close(stored.status, GONE, clock()))
            answer = await client.patch_status(Kind.EXPERIMENT, *key, diff(document, stored.status, status))
            if isinstance(answer, Refused) and answer.is_gone:
                continue
            if isinstance(answer, Refused):  # labelled closed without a verdict, nobody would look for it again
                where = f"{key.namespace}/{key.name}"
                raise ApiUnavailable(f"cannot close Experiment {where}: {answer.status} {answer.message}", answer)
            document = answer
        index.learn(await mark_closed(client, document))


async def take_away(client: KubeClient, raw: Object) -> None:
    """Delete a Job, pods included. ApiUnavailable where that is refused."""
    metadata = raw["metadata"]
    gone = await client.delete(Kind.JOB, metadata["namespace"], metadata["name"], metadata["uid"])
    if isinstance(gone, Refused) and not gone.is_outdated:
        raise ApiUnavailable(f"cannot delete Job {metadata['name']}: {gone.status} {gone.message}", gone)
