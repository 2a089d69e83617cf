"""How does the script get its batches? Patches on torch's DataLoader: waits, fetch times, sample ids, knobs, offset.

The patches sit on the base classes, so subclasses with an `__iter__` of their own (accelerate, Lightning) are seen too.
Batches pass through untouched; what workers have to say goes another way (`fetches`).
"""

from __future__ import annotations

# ruff: noqa: SLF001, N807 (torch offers no public hooks here; these names have stood since 1.2)
import functools
import inspect
import time
import weakref
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

from amdahl_probe import device, knobs, trial
from amdahl_probe.digests import digest
from amdahl_probe.fetches import FetchTimes
from amdahl_probe.guarding import guarded
from amdahl_probe.probe import Probe
from amdahl_probe.spans import NOT_MINE


class Source:
    """Stands for a loader: an object of its own, since `for batch in DataLoader(...)` drops the loader at once."""

    def __init__(self) -> None:
        self.feeds_training = False


class Loaders:
    """What the probe knows about the script's loaders and their iterators."""

    def __init__(self, probe: Probe, torch: Any) -> None:
        self.probe = probe
        self.torch = torch
        self.fetches = FetchTimes()
        self._sources: "weakref.WeakKeyDictionary[Any, Source]" = weakref.WeakKeyDictionary()
        self._candidates: List[Source] = []
        self._knows_training = False
        #: Whether the next backward pass has something to say about loaders.
        self.is_unsure = True
        self._reported: List[Tuple[Any, Any]] = []
        #: Whether batches have to be thrown away before the first that counts.
        self.must_discard = probe.settings.offset is not None

    def note_backward(self) -> None:
        """Loaders that gave batches since the last backward pass feed the training."""
        self._knows_training = True
        self.is_unsure = False
        while self._candidates:
            self._candidates.pop().feeds_training = True

    def find_source(self, loader: Any) -> Source:
        """The identity of a loader, which its iterators keep when it is gone."""
        source = self._sources.get(loader)
        if source is None:
            source = self._sources[loader] = Source()
        return source

    def is_training(self, source: Source) -> bool:
        """Whether a batch of this source is for training.

        Without gradients it is not; before the first backward pass every other one is; afterwards those of loaders
        that a backward pass has followed are.
        """
        if not self.torch.is_grad_enabled():
            return False
        if source.feeds_training:
            self._candidates.clear()
            return True
        if source not in self._candidates:
            self._candidates.append(source)
            self.is_unsure = True
        return not self._knows_training

    def place_knobs(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """The arguments to build a loader with; writes the `knob` record when it says something new."""
        asked = self.probe.settings.knobs
        if asked == knobs.LoaderKnobs():
            return given
        placed = knobs.apply(asked, given, bool(asked.pin) and bool(self.torch.cuda.is_available()))
        outcome = (placed.applied, placed.ignored)
        if outcome not in self._reported and len(self._reported) < 16:
            self._reported.append(outcome)
            self.probe.write(lambda recorder: recorder.knob(0, placed.applied, placed.ignored))
        return placed.arguments

    @guarded
    def follow(self, iterator: Any, loader: Any) -> None:
        """Put a recording, and in a trial rotated, sampler under an iterator."""
        iterator._amdahl_stream = stream = Stream(self, self.find_source(loader), iterator)
        if iterator._dataset_kind != 0:  # iterable data has no ids, and its sampler yields nothing
            return
        first = self._place_offset(iterator, loader) if self.probe.settings.offset is not None else 0
        if getattr(loader, "in_order", True):  # else batches arrive in another order than their indices
            stream.seen = trial.new_seen()
        iterator._sampler_iter = trial.rotate(iterator._sampler_iter, first, stream.seen)

    def _place_offset(self, iterator: Any, loader: Any) -> int:
        offset, sampler = self.probe.settings.offset or 0, iterator._index_sampler
        size = loader.batch_size or getattr(sampler, "batch_size", None) or 1
        try:
            first = trial.first_batch(offset, int(size), len(sampler))
        except (TypeError, NotImplementedError):
            self._report_offset(False, "the sampler has no length")
            return 0
        self._report_offset(True, "")
        return first

    @guarded
    def start(self, loader: Any) -> Optional[int]:
        """An iterator is about to be made, workers and all: that wait is the loader's. Returns its span."""
        if not self.probe.is_rank():
            return None
        if loader.num_workers > 0:
            try:
                self.fetches.listen()
            except OSError:  # no place for a pipe: fetch times stay unknown
                self.fetches.forget()
        return self.probe.enter_input(self.is_training(self.find_source(loader)))

    @guarded
    def finish_start(self, span: Optional[int]) -> None:
        """It has been made."""
        if span is not None:
            self.probe.leave_input(span)
            self.probe.end_request(is_over=False)

    @guarded
    def time_fetch(self, took_ns: int) -> None:
        """A fetch took `took_ns`, here or in a worker (which alone has a worker's info)."""
        worker = self.torch.utils.data.get_worker_info()
        if worker is None:
            self.fetches.last_ns = took_ns
        else:
            self.fetches.tell(worker.seed - worker.id, took_ns)

    def discard(self, iterator: Any, ask: Callable[[Any], Any]) -> Optional[Any]:
        """Trial, iterable data: throw away the first batches. Returns the last of them if the data ended there."""
        if getattr(iterator, "_dataset_kind", 0) == 0:
            return None
        self.must_discard = False
        batch = None
        for _ in range((self.probe.settings.offset or 0) % trial.MAX_DISCARDED):
            try:
                batch = ask(iterator)
            except StopIteration:
                self._report_offset(False, "the data ended before the offset")
                return batch
        self._report_offset(True, "")
        return None

    def _report_offset(self, applied: bool, why: str) -> None:
        told = ("offset", (applied, why))
        settings = self.probe.settings
        if told not in self._reported:
            self._reported.append(told)
            self.probe.write(lambda recorder: recorder.offset(0, settings.offset or 0, settings.seed, applied, why))


class Stream:
    """The batches of one iterator: the spans and events around the script's own `next`. One is asked for at a time."""

    __slots__ = (
        "_begun_ns",
        "_event",
        "_fetches",
        "_is_grad_enabled",
        "_is_training",
        "_loaders",
        "_source",
        "_span",
        "_worker_seed",
        "probe",
        "seen",
    )

    def __init__(self, loaders: Loaders, source: Source, iterator: Any) -> None:
        """The iterator itself is not kept: its workers end when it is dropped."""
        self.probe, self._loaders, self._source, self._fetches = loaders.probe, loaders, source, loaders.fetches
        self._is_grad_enabled = loaders.torch.is_grad_enabled
        self._worker_seed: Optional[int] = iterator._base_seed if iterator._num_workers else None
        #: Indices of the batches on their way, where they are known.
        self.seen: Optional[Deque[Any]] = None
        self._is_training = False
        self._begun_ns, self._span = 0, NOT_MINE
        self._event: Optional[Any] = None

    @guarded
    def ask(self) -> bool:
        """A batch is being asked for; true in a training process."""
        probe = self.probe
        if not (probe.is_steady and self._source.feeds_training and self._is_grad_enabled()):
            return self._ask_newly()
        if probe.has_device:
            self._look_at_device()
        self._is_training = True
        self._span = span = probe.ledger.push("input")
        if span != NOT_MINE:
            probe.forwards.ignore()
        return True

    def _ask_newly(self) -> bool:
        """Anything may have gone before, or this may be another loader than the training's."""
        probe = self.probe
        if not probe.is_rank():
            return False
        self._is_training = self._loaders.is_training(self._source)
        if self._is_training:
            probe.ask_first()
        self._look_at_device()
        self._span = probe.enter_input(self._is_training)
        return True

    def _look_at_device(self) -> None:
        torch = self._loaders.torch
        self.probe.has_device = torch.cuda.is_initialized()
        self._event = device.record_event(torch) if device.is_used(torch) else None
        self._begun_ns = time.monotonic_ns()

    @guarded
    def answer(self, batch: Any) -> None:
        """The batch is in hand."""
        probe, seen, event = self.probe, self.seen, self._event
        is_steady = probe.is_steady and self._is_training
        wait_ns = 0 if is_steady and event is None else time.monotonic_ns() - self._begun_ns
        probe.ledger.pop(self._span, "compute" if is_steady else None)
        indices = seen.popleft() if seen else None
        took_ns = self._fetches.last_ns if self._worker_seed is None else self._fetches.take(self._worker_seed)
        if not self._is_training:
            probe.count_provisional(batch, indices, wait_ns)
            return
        if event is not None:
            probe.add_wait("input", wait_ns, event, device.record_event(self._loaders.torch))
        draft = probe.steps.draft
        draft.batches += (digest(batch, indices),)
        if took_ns is not None:
            draft.took_ns += (took_ns,)
        if not is_steady:
            probe.begin_training()

    @guarded
    def refuse(self) -> None:
        """There was no batch: the end of the epoch, or an error that is the script's."""
        self.probe.leave_input(self._span)
        self.probe.end_request(is_over=not self._is_training)


def install(probe: Probe, torch: Any) -> Loaders:
    """Patch DataLoader, its iterators and its fetchers."""
    module = torch.utils.data.dataloader
    loaders = Loaders(probe, torch)
    _patch_init(loaders, module.DataLoader)
    if probe.settings.trial or probe.settings.is_recording:
        _patch_iterators(loaders, module._BaseDataLoaderIter)
    if probe.settings.is_recording:
        _patch_iter(loaders, module.DataLoader)
        for fetcher in (module._utils.fetch._MapDatasetFetcher, module._utils.fetch._IterableDatasetFetcher):
            _patch_fetch(loaders, fetcher)
    return loaders


def _patch_init(loaders: Loaders, loader_class: Any) -> None:
    original = loader_class.__init__
    names = [name for name, p in inspect.signature(original).parameters.items() if p.kind == p.POSITIONAL_OR_KEYWORD]

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = {**dict(zip(names[1:], args)), **kwargs}  # noqa: B905 (as many as there are)
        placed = given
        if loaders.probe.on and len(args) < len(names):
            try:
                placed = loaders.place_knobs(given)
            except Exception as error:
                loaders.probe.disable(f"knobs: {error!r}")
        if placed is given:
            original(self, *args, **kwargs)
            return
        try:
            original(self, **placed)
        except Exception as error:
            loaders.probe.disable(f"the loader refused the knobs: {error!r}")
            original(self, *args, **kwargs)

    loader_class.__init__ = __init__


def _patch_iter(loaders: Loaders, loader_class: Any) -> None:
    original = loader_class.__iter__

    @functools.wraps(original)
    def __iter__(self: Any) -> Any:
        span = loaders.start(self)
        try:
            return original(self)
        finally:
            loaders.finish_start(span)

    loader_class.__iter__ = __iter__


def _patch_iterators(loaders: Loaders, iterator_class: Any) -> None:
    begin, reset, ask = iterator_class.__init__, iterator_class._reset, iterator_class.__next__

    @functools.wraps(begin)
    def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
        loaders.probe.seed()
        begin(self, loader, *args, **kwargs)
        loaders.follow(self, loader)

    @functools.wraps(reset)
    def _reset(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
        reset(self, loader, *args, **kwargs)
        loaders.follow(self, loader)

    @functools.wraps(ask)
    def __next__(self: Any) -> Any:
        last = loaders.discard(self, ask) if loaders.must_discard and loaders.probe.on else None
        if last is not None:
            return last
        stream = self._amdahl_stream
        is_asked = stream is not None and stream.ask()
        try:
            batch = ask(self)
        except BaseException:
            if is_asked:
                stream.refuse()
            raise
        if is_asked:
            stream.answer(batch)
        return batch

    iterator_class._amdahl_stream = None  # of an iterator whose making was not seen

    iterator_class.__init__, iterator_class._reset, iterator_class.__next__ = __init__, _reset, __next__


def _patch_fetch(loaders: Loaders, fetcher_class: Any) -> None:
    original, probe, fetches = fetcher_class.fetch, loaders.probe, loaders.fetches

    @functools.wraps(original)
    def fetch(self: Any, index: Any) -> Any:
        begun_ns = time.monotonic_ns()
        data = original(self, index)
        took_ns = time.monotonic_ns() - begun_ns
        if probe.is_steady:  # no worker
            fetches.last_ns = took_ns
        else:
            loaders.time_fetch(took_ns)
        return data

    fetcher_class.fetch = fetch
