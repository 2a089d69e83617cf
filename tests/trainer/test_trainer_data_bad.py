"""Bad samples: named, left out where they lie, and the same for every worker, rank and resumed run."""

from __future__ import annotations

import numpy as np
import pytest

from amdahl_trainer.data import sources
from amdahl_trainer.data.counts import Meter
from amdahl_trainer.data.loader import Loader, Patience, Settings
from amdahl_trainer.data.order import Share
from amdahl_trainer.data.rows import FromText, Row
from amdahl_trainer.data.shards import Vocabulary
from amdahl_trainer.data.tokens import BytePairs
from amdahl_trainer.errors import DataError, Exit
from amdahl_trainer.loss import IGNORED
from token_builders import make_documents, make_folder, over

#: A vocabulary of more tokens than the tiny model's 320.
WIDE = Vocabulary(256, (1,) * 500)


@pytest.fixture
def spoilt(tmp_path):
    """A hundred documents, of which 5 (fills a row alone), 40 and 41 hold a token that the model has no row for."""
    documents = make_documents(100, seed=1, longest=60)
    documents[5] = [7] * 63 + [400]
    documents[40] = [9, 401, 9]
    documents[41] = [402] * 20
    return make_folder(tmp_path / "spoilt", documents, shard_tokens=1500, vocabulary=WIDE)


def skipping(folder, **changes):
    return over(folder, bad_samples="skip", **changes)


def load(corpora, settings=Settings(0, 2, False), steps=8, begin=0, rank=0, world=1):  # noqa: B008 (a frozen value)
    """The loader after some steps, and its batches."""
    share = Share(rank, world, 8)
    loader = Loader(corpora.train, corpora.order(1), share, settings, Patience(0))
    loader.open(begin)
    batches = [loader.next() for _ in range(steps)]
    loader.close()
    return loader, batches


def read_all(rows, meter):
    """(rows, 3, 64) inputs, targets and segments of all rows."""
    slots = np.empty((len(rows), 3, 64), dtype=np.int64)
    for index in range(len(rows)):
        rows.fill(slots[index], index, meter)
    return slots


def test_a_run_that_skips_nothing_names_the_document_and_the_remedy(tiny, tmp_path):
    """A token that its manifest denies, as a flipped bit makes one: found when the row is read."""
    folder = make_folder(tmp_path / "flipped", [[n] * 10 for n in range(30)], shard_tokens=100)
    path = folder / "train-00001.tokens"
    content = bytearray(path.read_bytes())
    content[2 * 35 + 1] ^= 0x10
    path.write_bytes(content)
    train = sources.ensure(tiny(over(folder))).train
    message = (
        r"^flipped: shard train-00001, document 3, tokens 0 to 9: token 4109, model.vocab_size is 320; "
        r"mend it, or set data.bad_samples to skip$"
    )
    with pytest.raises(DataError, match=message):
        read_all(train, Meter())


def test_what_is_bad_leaves_its_row_and_nothing_else_does(tiny, spoilt):
    """All other pieces are there once, whole and in order; the row's padding is at its end."""
    whole = sources.ensure(tiny({**over(spoilt), "model.vocab_size": 512})).train
    kept = sources.ensure(tiny(skipping(spoilt))).train
    meter = Meter()
    for index, slots in enumerate(read_all(kept, meter)):
        full, left = whole.row(index), Row(*slots)
        pieces = [full.targets[full.segments == n].tolist() for n in range(1, full.segments.max() + 1)]
        good = [piece for piece in pieces if max(piece) < 320]
        if not good:
            following = kept.row((index + 1) % len(kept))
            assert np.array_equal(left.targets, following.targets)
            continue
        assert [left.targets[left.segments == n].tolist() for n in range(1, left.segments.max() + 1)] == good
        size = sum(map(len, good))
        assert (left.segments[:size] > 0).all()
        assert (left.targets[size:] == IGNORED).all()
    assert {(bad.shard, bad.why.split(",")[0]) for bad in meter.bad} >= {("train-00000", "token 400")}
    assert len({(bad.shard, bad.document) for bad in meter.bad}) == 3
    assert all(bad.source == "spoilt" for bad in meter.bad)


def test_what_is_left_out_is_the_same_for_every_loader_and_rank(tiny, spoilt, capsys):
    """One process, workers, two ranks, resumed in the middle: the same rows, the same names, once each."""
    corpora = sources.ensure(tiny(skipping(spoilt)))
    steps = 3 * len(corpora.train) // 8  # some epochs
    loader, batches = load(corpora, steps=steps)
    told = capsys.readouterr().out
    assert len(loader.bad) == 3
    assert told.count("left out: spoilt: shard train-") == 3
    behind, others = load(corpora, Settings(2, 3, False), steps=steps)
    assert behind.bad == loader.bad
    assert all(np.array_equal(a.packed, b.packed) for a, b in zip(batches, others, strict=True))
    assert behind.totals[:6] == loader.totals[:6]
    ranks = [load(corpora, steps=steps, rank=rank, world=2) for rank in (0, 1)]
    assert ranks[0][0].bad | ranks[1][0].bad == loader.bad
    for whole, first, second in zip(batches, ranks[0][1], ranks[1][1], strict=True):
        assert np.array_equal(whole.packed, np.concatenate((first.packed, second.packed), axis=1))
    _, resumed = load(corpora, begin=5 * 8, steps=steps - 5)
    assert all(np.array_equal(a.packed, b.packed) for a, b in zip(batches[5:], resumed, strict=True))


@pytest.mark.parametrize(("limit", "codes"), [(2, [Exit.DATA] * 2), (3, [Exit.FINISHED] * 2)])
def test_the_limit_is_of_all_ranks_together(run, spoilt, limit, codes):
    """Three different ones, met by two ranks in several epochs: each counts once, and one too many ends both alike."""
    ended = run("two", {**skipping(spoilt, max_bad_samples=limit), "run.max_steps": 40}, nproc=2)
    assert ended.codes == codes, ended.output
    said = "all ranks together have left out 3 bad samples, and data.max_bad_samples is 2"
    assert ended.output.count(said) == (limit == 2), "said once"
    assert ended.output.count("left out: spoilt") > 3 or limit == 2, "both ranks meet some of them"
    assert len(ended.of("step", 0)) == len(ended.of("step", 1))


def test_a_source_without_a_good_row_is_an_error_not_an_endless_search(tiny, tmp_path):
    """Every row gives way to the next, until all have."""
    folder = make_folder(tmp_path / "a", [[400], [401]], vocabulary=WIDE)
    train = sources.ensure(tiny(skipping(folder))).train
    with pytest.raises(DataError, match="no row holds anything that can be trained on"):
        train.row(0)


def test_a_text_that_cannot_be_tokenized_is_a_bad_sample():
    """A byte-pair tokenizer needs UTF-8; the reason says where it ends."""
    texts = FromText([([b"good", b"b\xffd"], np.array([4, 7]))], BytePairs([]))
    meter = Meter()
    found = texts.read(0, 0, 4, meter)
    assert not isinstance(found, str)
    assert bytes(found.tolist()) == b"good"
    assert "it is no UTF-8" in str(texts.read(0, 4, 7, meter))
    assert meter.bytes == 7
    assert meter.spent_ns["tokenize_ns"] > 0
