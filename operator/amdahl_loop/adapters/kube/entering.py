"""Does the probe keep a program from running?

It enters by `PYTHONPATH`. What the template says of that variable follows the probe's path, but a value that only the
image sets is replaced, and nobody outside the container can read it: a program that finds its modules by it ends at its
start. Nothing else that the probe does can end a program, so such ends are held against the probe where the template
leaves the variable to the image, and where no measurement has shown that probe and program go together.
"""

from collections import Counter
from collections.abc import Iterable

from amdahl_loop.adapters.kube.objects import Ended, PodFacts
from amdahl_loop.domain.resources import TrainingJob

EARLY_S = 300.0
"""A module that is missing ends a program within minutes, after the imports and whatever is set up before the last."""

EARLY_ENDS = 2
"""So many early ends of one rank are held against the probe: one may be chance, and three count as a crash loop."""


def names_path(job: TrainingJob) -> bool:
    """Whether the template says itself what `PYTHONPATH` is: then no value of the image is hidden by the probe."""
    return any(variable.name == "PYTHONPATH" for variable in job.spec.template.trainer.env)


def count_early_ends(pods: Iterable[PodFacts]) -> int:
    """How often the program ended by itself soon after its start: the most that one rank did.

    A kubelet keeps the last two ends of a container; that those before were alike is assumed.
    """
    counts = Counter[int]()
    for pod in pods:
        trainer = pod.trainer
        last = trainer.ended or trainer.last_ended
        if last is not None and _is_early(last) and not pod.disruption:
            counts[pod.index] += trainer.restarts + (trainer.ended is not None)
    return max(counts.values(), default=0)


def _is_early(end: Ended) -> bool:
    """Whether a program failed soon after its start, of its own: memory is no matter of paths."""
    if end.exit_code == 0 or end.reason == "OOMKilled" or end.started_at_s is None or end.finished_at_s is None:
        return False
    return end.finished_at_s - end.started_at_s < EARLY_S
