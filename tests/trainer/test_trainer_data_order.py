"""Order: epochs are permutations, ranks share positions, and a mix gives each source exactly its share."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_trainer.data import mix
from amdahl_trainer.data.mix import Mix
from amdahl_trainer.data.order import Order, Share
from amdahl_trainer.errors import ConfigError

#: Weights of two to four sources, as whole numbers.
WEIGHTS = st.lists(st.integers(1, 12), min_size=2, max_size=4)


def make_mix(weights, sizes=(13, 7, 29, 5), seed=1):
    shares = tuple(Fraction(weight, sum(weights)) for weight in weights)
    names = tuple("abcd"[: len(weights)])
    return Mix(names, tuple(sizes[: len(weights)]), shares, seed)


@given(st.integers(1, 600), st.integers(0, 2**40), st.integers(0, 5))
def test_each_epoch_is_a_permutation(samples, seed, epoch):
    """Every sample once an epoch, whatever number and seed."""
    order = Order(samples, seed)
    assert sorted(order.sample(epoch * samples + at) for at in range(samples)) == list(range(samples))


def test_epochs_and_seeds_give_different_orders():
    """Neither an epoch nor a seed repeats another's order."""
    orders = {(s, e): tuple(Order(500, s).sample(e * 500 + at) for at in range(500)) for s in (1, 2) for e in (0, 1)}
    assert len(set(orders.values())) == 4
    assert sum(order[at] == at for order in orders.values() for at in range(500)) < 20


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 100))
def test_shares_cover_each_global_batch_once(world, begin):
    """Ranks take disjoint positions, together exactly the global batch."""
    shares = [Share(rank, world, 8).positions(begin) for rank in range(world)]
    assert sorted(at for share in shares for at in share) == list(range(begin, begin + 8))


@given(WEIGHTS, st.integers(0, 40))
def test_every_pattern_gives_each_source_exactly_its_share(weights, begin):
    """Wherever a stretch of one pattern's length begins."""
    one = make_mix(weights)
    length = sum(weights)
    taken = Counter(one.source(position)[0] for position in range(begin, begin + length))
    assert [taken[source] for source in range(len(weights))] == weights


@given(WEIGHTS)
def test_at_every_position_each_source_is_near_its_share(weights):
    """Two sources are less than one row from it; with more, the one that is behind catches up at once."""
    one, taken = make_mix(weights), [0] * len(weights)
    for position in range(3 * sum(weights)):
        taken[one.source(position)[0]] += 1
        gaps = [abs(n - share * (position + 1)) for n, share in zip(taken, one.shares, strict=True)]
        assert max(gaps) < (1 if len(weights) == 2 else len(weights) - 1)


@given(WEIGHTS, st.integers(0, 3))
def test_a_source_in_a_mix_gives_each_of_its_rows_once_an_epoch(weights, seed):
    """Numbers of one source run on without gap, and each epoch of it is a permutation of its rows."""
    one, seen = make_mix(weights, seed=seed), {}
    for position in range(40 * sum(weights)):
        source, number = one.source(position)
        assert number == len(seen.setdefault(source, []))
        seen[source].append(one.sample(position))
    first = 0
    for source, size in enumerate(one.sizes):
        rows = seen[source]
        for begin in range(0, len(rows) - size + 1, size):
            assert sorted(rows[begin : begin + size]) == list(range(first, first + size))
        assert {one.source_of(row) for row in rows} == {one.names[source]}
        first += size


def test_epochs_are_counted_for_each_source():
    """After 40 rows at 3 : 1, thirty of 13 rows and ten of 7."""
    assert make_mix([3, 1]).epochs(40) == {"a": 30 / 13, "b": 10 / 7}
    assert Order(16, 1).epochs(40) == {"": 2.5}


def test_a_seed_moves_rows_within_sources_and_sources_apart():
    """The pattern stays; sources of one size are not read in step."""
    one, other = make_mix([1, 1], sizes=(50, 50)), make_mix([1, 1], sizes=(50, 50)).with_seed(2)
    assert [one.source(at) for at in range(20)] == [other.source(at) for at in range(20)]
    assert [one.sample(at) for at in range(20)] != [other.sample(at) for at in range(20)]
    assert [one.sample(at) for at in range(0, 40, 2)] != [one.sample(at) - 50 for at in range(1, 41, 2)]
    assert one.with_seed(2) == other


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("books=0.7, code=0.3", {"books": Fraction(7, 10), "code": Fraction(3, 10)}),
        ("a=1/3,b=2/3", {"a": Fraction(1, 3), "b": Fraction(2, 3)}),
        ("a=1", {"a": Fraction(1)}),
        ("a=0.7, b=0.4", r"sum to 1.1 and not to 1; in proportion: a=7/11, b=4/11"),
        ("a=3, b=1", r"in proportion: a=0.75, b=0.25"),
        ("a=1, b=0", "with a share above 0"),
        ("a=1.5, b=-0.5", "with a share above 0"),
        ("a=0.5, a=0.5", "every source is named once"),
        ("=1", "every source is named once"),
        ("a", r"write it as books=0.7, code=0.3"),
        ("a=1/0", r"write it as books=0.7, code=0.3"),
        ("a=0.33333, b=0.66667", "repeats only after 100000 rows, more than 10000; use four decimals"),
    ],
)
def test_shares_are_read_or_refused_with_what_would_do(text, expected):
    """Decimals are exact; what does not sum to one is told what would."""
    if isinstance(expected, dict):
        assert mix.parse(text) == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            mix.parse(text)
