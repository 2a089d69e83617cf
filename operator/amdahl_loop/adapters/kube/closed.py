"""Which closed Experiments come and go while the operator runs, without their evidence being sent?

The operator itself is told of open ones alone. Closed ones are many and large, and change no more; but somebody may
import them, or delete one so that its question is asked again. A watch on their metadata tells, and only what is news
is then read.
"""

from collections.abc import Callable, Sequence
from functools import partial

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.closing import CLOSED
from amdahl_loop.adapters.kube.index import ExperimentIndex, Key, key_of
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.watches import Watch

PAUSE_S = 5.0
"""Between two watches: nobody waits for this news."""

Tell = Callable[[Key, str], None]
"""Told where an Experiment is that came or went, and the name of its job, as far as it is known."""


async def follow_closed(
    client: KubeClient,
    index: ExperimentIndex,
    namespace: str | None,
    tell: Tell,
    pause_s: float = PAUSE_S,
) -> None:
    """Keep the memory of closed Experiments as the server has them, from the list on that it was built from."""

    async def hear(told: Object, is_gone: bool) -> None:
        """What was added is read, unless it is known; what seems to be gone may only have lost its label."""
        key = key_of(told)
        if is_gone or not index.is_closed(key):
            await check(client, index, key, tell)

    version = index.listed.get(namespace, "")
    watch = Watch(client, Kind.EXPERIMENT, namespace, CLOSED, version=version)
    await watch.follow(hear, partial(_compare, client, index, namespace, tell), pause_s)


async def _compare(
    client: KubeClient, index: ExperimentIndex, namespace: str | None, tell: Tell, found: Sequence[Object]
) -> None:
    """What is there and not known is read, what is known and not there is forgotten."""
    there, known = {key_of(told) for told in found}, set(index.closed_keys(namespace))
    for key in sorted(there ^ known):
        await check(client, index, key, tell)


async def check(client: KubeClient, index: ExperimentIndex, key: Key, tell: Tell) -> None:
    """Read one Experiment: what it says now is remembered, and what is gone is forgotten.

    One that is older than what was shown before stays in doubt: whoever wants to know reads it.
    """
    job = index.job_of(key)
    document = await client.get(Kind.EXPERIMENT, *key)
    if document is None:
        index.forget(key)
        tell(key, job)
    elif index.hear(document):
        tell(key, index.job_of(key))
    elif index.is_past(document):
        index.doubt(key)
        tell(key, job)
