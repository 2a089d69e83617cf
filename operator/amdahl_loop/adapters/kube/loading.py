"""What is known of all Experiments from the start on, without the evidence of closed ones being sent?

Open ones are listed whole, closed ones by their metadata. Whose metadata do not tell, because a crash came between or
another version closed it, is read, and marked for the next time.
"""

import asyncio
from collections.abc import Iterable

from amdahl_loop.adapters.kube.client import KubeClient
from amdahl_loop.adapters.kube.closing import CLOSED, OPEN, mark_closed, unfold
from amdahl_loop.adapters.kube.experiments import PAGE
from amdahl_loop.adapters.kube.index import ExperimentIndex, Key, key_of
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.streaming import tell_all

BARE_PAGE = 500
"""Experiments by metadata a page, where the server does not stream: about 2 MiB."""
PARALLEL_READS = 8


async def load_index(client: KubeClient, namespaces: Iterable[str | None]) -> ExperimentIndex:
    """Every Experiment of these namespaces (None: of all); marks that a crash left out are set.

    No object is kept, only its row. One that nobody could have written is passed over, with a warning.
    """
    index = ExperimentIndex()
    for namespace in namespaces:
        await fill_index(client, index, namespace, is_writer=True)
    return index


async def fill_index(client: KubeClient, index: ExperimentIndex, namespace: str | None, is_writer: bool) -> None:
    """Tell an index of every Experiment of a namespace, or (None) of all; `is_writer`: marks that lack are set."""
    untold = await _list_open(client, index, namespace)
    untold += await _list_closed(client, index, namespace)
    for at in range(0, len(untold), PARALLEL_READS):
        await asyncio.gather(*(_read(client, index, key, is_writer) for key in untold[at : at + PARALLEL_READS]))


async def _list_open(client: KubeClient, index: ExperimentIndex, namespace: str | None) -> list[Key]:
    """Hear of those that are not labelled as closed; which of them are."""
    closed = list[Key]()

    def hear(document: Object, is_gone: bool) -> None:
        key = key_of(document)
        if is_gone:
            index.forget(key)
        elif index.hear(document) and index.is_closed(key):
            closed.append(key)

    index.listed[namespace] = await tell_all(client, Kind.EXPERIMENT, namespace, OPEN, hear, page=PAGE)
    return closed


async def _list_closed(client: KubeClient, index: ExperimentIndex, namespace: str | None) -> list[Key]:
    """Hear of those that are labelled as closed; which of them do not tell what is recalled of them."""
    untold = list[Key]()

    def hear(told: Object, is_gone: bool) -> None:
        key, form = key_of(told), unfold(told)
        if form is not None and not is_gone:
            index.hear(form)
        if is_gone or not index.is_closed(key):
            untold.append(key)

    await tell_all(client, Kind.EXPERIMENT, namespace, CLOSED, hear, page=BARE_PAGE, is_bare=True)
    return untold


async def _read(client: KubeClient, index: ExperimentIndex, key: Key, is_writer: bool) -> None:
    document = await client.get(Kind.EXPERIMENT, *key)
    if document is None:
        index.forget(key)
        return
    index.hear(document)
    if is_writer and index.is_closed(key):
        index.hear(await mark_closed(client, document))
