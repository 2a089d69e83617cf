"""The loader: samples depend on the position alone, dead workers cost nothing but time, counts are of what is consumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from amdahl_trainer.config import Config
from amdahl_trainer.data import sources
from amdahl_trainer.data.counts import Counts
from amdahl_trainer.data.loader import Flag, Loader, Patience, Settings, digest_rows
from amdahl_trainer.data.order import Order, Share
from amdahl_trainer.errors import DataError
from amdahl_trainer.loss import IGNORED
from token_builders import make_documents, make_folder, over

ALONE = Settings(0, 2, False)


class Data:
    """Rows of a configuration and loaders over them."""

    def __init__(self, config):
        self.corpora = sources.ensure(config)
        self.order = self.corpora.order(1)

    def loader(self, settings=ALONE, rank=0, world=1, **patience):
        return Loader(self.corpora.train, self.order, Share(rank, world, 8), settings, Patience(**patience))

    def expected(self, steps):
        """The sample numbers of each step, from the order alone."""
        return [[self.order.sample(at) for at in range(b, b + 8)] for b in range(0, 8 * steps, 8)]


@pytest.fixture(params=["pydocs", "shards", "mix"])
def data(request, tiny, tmp_path):
    """Each kind of source."""
    if request.param == "pydocs":
        return Data(tiny())
    books = make_folder(tmp_path / "books", make_documents(120, seed=1))
    if request.param == "shards":
        return Data(tiny(over(books)))
    code = make_folder(tmp_path / "code", make_documents(60, seed=2))
    return Data(tiny(over(books, code, mix="books=0.7, code=0.3")))


@pytest.fixture
def plain(tiny):
    return Data(tiny())


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, ["samples", "elements", "sig", "shape", "ids"]),
        ({"samples": [9, 4]}, ["samples", "elements", "sig", "shape", "ids"]),
        ({"samples": [4, 8]}, ["samples", "elements", "sig", "shape"]),
        ({"token": 7}, ["samples", "elements", "shape", "ids"]),
        ({"rows": 3, "samples": [4, 9, 2]}, ["shape"]),
        ({"seq_len": 60}, ["samples", "ids"]),
    ],
)
def test_a_digest_tells_whether_two_batches_are_the_same_work(change, same):
    """What is alike whatever the order of rows, and what an other token, row or length changes."""

    def digest(rows=2, seq_len=64, samples=(4, 9), token=3):
        return digest_rows(np.full((3, rows, seq_len), token, dtype=np.int64), samples)

    one, other = digest(), digest(**change)
    assert [name for name in one._fields if getattr(one, name) == getattr(other, name)] == same


def take(loader, count):
    return [loader.next().samples for _ in range(count)]


def end(loader, number, victim=0):
    """Send a signal to a loader process and wait until it is no more."""
    worker = loader._workers[victim]
    os.kill(worker.pid, number)
    worker.join()


def test_samples_depend_on_the_position_alone(data):
    """Any number of workers, prefetching, ranks, and any change of them on the way: the same samples in order."""
    expected = data.expected(20)
    loader = data.loader()
    taken = []
    for workers, prefetch, count in ((0, 2, 3), (2, 1, 4), (1, 4, 2), (2, 2, 5), (0, 2, 6)):
        loader.open(len(taken) * 8, Settings(workers, prefetch, False))
        taken += take(loader, count)
    loader.close()
    assert taken == expected
    halves = []
    for rank in (0, 1):
        half = data.loader(rank=rank, world=2)
        half.open(0)
        halves.append(take(half, 20))
    assert [a + b for a, b in zip(*halves, strict=True)] == expected


def test_batches_say_what_they_hold_and_cost(data):
    """Valid tokens, samples, and a positive time, measured in the worker."""
    loader = data.loader(Settings(1, 2, False))
    loader.open(0)
    batch = loader.next()
    loader.close()
    assert batch.inputs.shape == batch.targets.shape == batch.segments.shape == (8, 64)
    assert batch.valid == int((batch.targets != IGNORED).sum())
    assert batch.cost_ns > 0


@pytest.mark.parametrize(("has_gpu", "asked", "pinned"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_batches_are_page_locked_where_there_is_a_gpu(plain, monkeypatch, has_gpu, asked, pinned):
    """By default, and not if that is switched off; without a GPU nothing is asked of torch."""
    made = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda batch: made.append(1) or batch)
    assert Config().data.pin_memory
    loader = plain.loader(Settings(0, 2, asked))
    loader.open(0)
    loader.next()
    loader.close()
    assert len(made) == pinned


def test_counts_are_of_what_is_consumed_whoever_made_it(data):
    """Rows, tokens, pieces and bytes do not depend on workers, nor on batches that were made for nothing."""
    totals = []
    for settings in (ALONE, Settings(2, 3, False)):
        loader = data.loader(settings)
        loader.open(0)
        batches = [loader.next() for _ in range(5)]
        loader.open(40)
        batches += [loader.next() for _ in range(5)]
        loader.close()
        totals.append(loader.totals)
        assert loader.totals.tokens == sum(batch.valid for batch in batches)
        packing = data.corpora.train.packing_of([sample for batch in batches for sample in batch.samples])
        assert loader.totals[:5] == (80, packing.slots, packing.valid, packing.pieces, packing.sum_len_sq)
        spent_ns = loader.totals.read_ns + loader.totals.tokenize_ns + loader.totals.pack_ns
        assert spent_ns == sum(batch.cost_ns for batch in batches)
        assert loader.totals.bytes == 2 * loader.totals.tokens  # of uint16
        assert f"80 rows, {packing.valid} tokens, {packing.pad_share:.1%} padding" in loader.describe()
    assert totals[0][:6] == totals[1][:6]


def test_text_is_counted_as_it_is_tokenized(tiny):
    """On the fly the bytes are the documents', whole, and most of the time is the tokenizer's."""
    data = Data(tiny({"data.tokenizer": "bpe", "model.vocab_size": 300, "data.tokenize": "on_the_fly"}))
    loader = data.loader()
    loader.open(0)
    take(loader, 3)
    totals = loader.totals
    assert totals.bytes > totals.tokens
    assert totals.tokenize_ns > totals.read_ns + totals.pack_ns
    assert Counts().plus(totals) == totals


def test_a_killed_worker_is_replaced_and_no_sample_is_lost_or_repeated(data, capsys):
    """SIGKILL to a worker process, thrice, with others running: the samples go on as if nothing had happened."""
    loader = data.loader(Settings(2, 2, False))
    loader.open(0)
    taken = []
    for count, victim in ((3, 0), (2, 1), (4, 0)):
        taken += take(loader, count)
        end(loader, signal.SIGKILL, victim)
    taken += take(loader, 11)
    loader.close()
    assert taken == data.expected(20)
    assert loader.totals.samples == 160
    told = capsys.readouterr().out
    assert "was ended by SIGKILL, as the kernel does when memory runs out); starting it again (3 of 3)" in told


def test_a_worker_that_dies_while_it_hands_over_a_batch_hangs_nobody(tiny, tmp_path):
    """A batch far larger than a pipe holds is half written when its worker is killed: it is made again."""
    data = Data(tiny({**over(make_folder(tmp_path / "a", make_documents(3000, seed=1))), "data.seq_len": 4096}))
    loader = data.loader(Settings(1, 2, False), restarts=9)
    loader.open(0)
    taken = []
    for _ in range(3):
        taken += take(loader, 1)
        time.sleep(0.3)  # for the worker to fill the pipe; were it slower, the kill would only meet it elsewhere
        os.kill(loader.worker_pids()[0], signal.SIGKILL)
        taken += take(loader, 1)
    loader.close()
    assert taken == data.expected(6)
    assert loader.restarts == 3


def test_a_worker_that_dies_while_it_looks_whether_to_end_hangs_nobody():
    """It looks at what the loader sets, and holds nothing that the loader would have to wait for."""
    flag = Flag()
    for _ in range(20):
        start_looking(flag).kill()
    flag.set()
    looking = start_looking(flag)
    looking.join()
    assert looking.exitcode == 0


def start_looking(flag):
    """A process that does nothing but look at a flag until it is set; returns once it does."""
    begun = Flag()

    def look():
        begun.set()
        while not flag.is_set():
            pass

    looking = multiprocessing.get_context("fork").Process(target=look)
    looking.start()
    while not begun.is_set():
        pass
    return looking


def test_workers_look_at_such_a_flag(plain):
    """Torch makes it by the context that the loader hands over."""
    loader = plain.loader(Settings(2, 2, False))
    loader.open(0)
    take(loader, 1)
    assert isinstance(loader._batches._workers_done_event, Flag)
    loader.close()


def test_restarts_have_a_bound_and_the_error_names_the_signal(plain):
    """Two are allowed; the third death ends the run with what to look at."""
    loader = plain.loader(Settings(1, 2, False), restarts=2)
    loader.open(0)
    for number in (signal.SIGKILL, signal.SIGUSR2, signal.SIGUSR1):
        take(loader, 1)
        end(loader, number)
    with pytest.raises(
        DataError, match=r"at position 24 after 2 restarts on this rank: worker \d+ was ended by SIGUSR1"
    ):
        loader.next()
    loader.close()


class Broken:
    """Rows that cannot be made."""

    seq_len = 64

    def __init__(self, act):
        self.act = act

    def fill(self, _, index, __):
        self.act(index)


def test_a_worker_that_leaves_is_named_with_its_code(plain):
    """Such as by a library that calls exit."""
    loader = Loader(Broken(lambda _: os._exit(5)), plain.order, Share(0, 1, 8), Settings(1, 2, False), Patience(1))
    loader.open(16)
    with pytest.raises(DataError, match=r"at position 16 after 1 restarts on this rank: worker \d+ exited with code 5"):
        loader.next()
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_fails_again_and_again_is_an_error(plain, workers, capsys):
    """The reason and the position, after the restarts that are allowed."""

    def fail(index):
        raise OSError(5, "Input/output error", f"/data/{index}")

    loader = Loader(Broken(fail), plain.order, Share(0, 1, 8), Settings(workers, 2, False), Patience(2))
    loader.open(16)
    with pytest.raises(
        DataError, match=r"at position 16 after 2 restarts on this rank: OSError: .*Input/output error: '/data/\d+'"
    ):
        loader.next()
    loader.close()
    assert capsys.readouterr().out.count("starting it again") == 2


def test_what_passes_is_not_an_error(plain):
    """A disk that fails once: the batch comes, and nothing is missing."""
    faults = iter([True])

    class Once:
        seq_len = 64

        def fill(self, slots, index, meter):
            if next(faults, False):
                raise OSError(5, "Input/output error")
            plain.corpora.train.fill(slots, index, meter)

    loader = Loader(Once(), plain.order, Share(0, 1, 8), ALONE)
    loader.open(0)
    assert take(loader, 4) == plain.expected(4)
    assert loader.restarts == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_succeed_is_not_tried_again(plain, workers):
    """An error of the data themselves ends the run with its own words."""

    def fail(index):
        raise DataError("shard 7 is truncated")

    loader = Loader(Broken(fail), plain.order, Share(0, 1, 8), Settings(workers, 2, False))
    loader.open(16)
    with pytest.raises(DataError, match=r"^loader failed at position 16: shard 7 is truncated$"):
        loader.next()
    loader.close()
    assert loader.restarts == 0


def test_workers_outlive_sigterm(plain):
    """A SIGTERM to the whole process group must not take the batches that the last checkpoint waits for."""
    loader = plain.loader(Settings(1, 2, False))
    loader.open(0)
    take(loader, 1)
    os.kill(loader.worker_pids()[0], signal.SIGTERM)
    before = loader.worker_pids()
    take(loader, 6)
    assert loader.worker_pids() == before
    loader.close()


def test_workers_do_not_outlive_the_trainer(tiny, tmp_path):
    """One that blocks on a full pipe when its trainer is killed ends as well."""
    data = Data(tiny({**over(make_folder(tmp_path / "a", make_documents(3000, seed=1))), "data.seq_len": 4096}))
    told, tell = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        loader = data.loader(Settings(2, 4, False))
        loader.open(0)
        loader.next()
        os.write(tell, json.dumps(loader.worker_pids()).encode())
        signal.pause()
    workers = json.loads(os.read(told, 4096))
    assert len(workers) == 2
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(trainer, 0)
    until_s = time.monotonic() + 60
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < until_s, "a worker is still there"
        time.sleep(0.05)


def is_running(pid):
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_trainers_own_handler_of_dead_children_stays(plain):
    """The loader looks for its workers while a batch is asked for; at all other times SIGCHLD is whose it was."""
    loader = plain.loader(Settings(1, 2, False))
    loader.open(0)
    seen = []
    before = signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
    try:
        take(loader, 2)
        end(loader, signal.SIGKILL)
        assert seen
        assert callable(signal.getsignal(signal.SIGCHLD))
    finally:
        signal.signal(signal.SIGCHLD, before)
        loader.close()


def test_rows_of_a_mix_come_from_the_sources_that_its_law_names(tiny, tmp_path):
    """Position by position: the row is that source's, the number of it is the law's, its tokens are on that disk."""
    books = make_folder(tmp_path / "books", [[1] * 40] * 30)
    code = make_folder(tmp_path / "code", [[2] * 50] * 20)
    data = Data(tiny(over(books, code, mix="books=1/4, code=3/4")))
    loader = data.loader()
    loader.open(0)
    tokens = [set(np.unique(row[row != IGNORED]).tolist()) for _ in range(10) for row in loader.next().targets.numpy()]
    assert tokens == [{1} if data.order.source(at)[0] == 0 else {2} for at in range(80)]
    assert tokens.count({1}) == 20
    assert "epochs of books" in loader.describe()
    assert isinstance(Data(tiny(over(books, code))).order, Order)  # without shares every row comes once an epoch
