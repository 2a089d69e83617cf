"""Context parallelism equals one process: outputs, gradients, whatever mode, balance, documents and heads."""

from __future__ import annotations

import re
from dataclasses import astuple
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amdahl_trainer.blocks import Partial, Products, Sequences, merge
from amdahl_trainer.cp_ring import count_hops, find_blocks
from amdahl_trainer.documents import make_mask
from amdahl_trainer.memory import Shape, attention
from amdahl_trainer.shards import Shards, check

SCRIPT = str(Path(__file__).with_name("context_parity.py"))
MODES, BALANCES = ("allgather", "ulysses", "ring"), ("zigzag", "contiguous")
CASES = list(product(MODES, BALANCES))
SHARDS = st.builds(Shards, st.integers(1, 8), st.sampled_from(BALANCES))


@pytest.fixture(scope="module")
def found(zygote, tmp_path_factory):
    """What every rank of two and of four processes found: one start for all cases."""
    homes = {world: tmp_path_factory.mktemp(f"world{world}") for world in (2, 4)}
    for world, home in homes.items():
        done = zygote.start(home, [], world, {"OMP_NUM_THREADS": "1"}, SCRIPT).join()
        assert done.codes == [0] * world, done.output
    return {world: [torch.load(home / f"parity-{rank}.pt") for rank in range(world)] for world, home in homes.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "balance"), CASES)
@pytest.mark.parametrize("world", [2, 4])
def test_outputs_and_gradients_are_those_of_one_process(found, world, mode, balance):
    """To 5e-6 of the largest entry: one document a row, few and many; as many key heads as query heads, fewer, one."""
    cases = {case[2:]: parts for case, parts in found[world][0]["parity"].items() if case[:2] == (mode, balance)}
    assert set(cases) == set(product(("one", "ragged", "short"), (12, 3, 1)))
    for case, parts in cases.items():
        assert max(parts) <= 5e-6, (case, parts)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["near", "far"])
def test_groups_need_not_be_the_world(found, layout, mode):
    """Two groups of two side by side, of ranks next to each other or apart, on every rank."""
    for rank in found[4]:
        assert max(rank["groups"][layout, mode]) <= 5e-6


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "balance"), CASES)
def test_half_precision_is_as_good_as_its_inputs(found, mode, balance):
    """In bfloat16, whose step is 0.8 %, sums over ranks add no error of their own kind."""
    for world in (2, 4):
        assert max(found[world][0]["half"][mode, balance]) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "balance"), CASES)
@pytest.mark.parametrize("world", [2, 4])
def test_gradients_of_parameters_add_up_over_the_ranks_of_a_row(found, world, mode, balance):
    """Summed over the context's group they are one process's, also without data parallelism; no rank's own are."""
    for rank in found[world]:
        summed, own = rank["model"][mode, balance]
        assert summed <= 5e-6
        assert own > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_model_may_be_run_again_or_compiled_around_it(found, world):
    """Activation checkpointing repeats the messages in the backward pass; a compiled model leaves attention alone."""
    for how in (*((*case, "recomputed") for case in CASES), "compiled"):
        assert found[world][0]["model"][how][0] <= 5e-6, how


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "balance"), CASES)
@pytest.mark.parametrize("world", [2, 4])
def test_bytes_kept_and_sent_are_those_computed(found, world, mode, balance):
    """To the byte, against what autograd saves and collectives are given; the ring stops early for short documents."""
    hops = {"one": world, "ragged": world, "short": 1}
    for (*how, documents, kv_heads), measured in found[world][0]["bytes"].items():
        if how == [mode, balance]:
            computed = attention(mode, Shape(2, 48, 12, kv_heads, 8, 4), world, hops[documents])
            assert astuple(computed) == measured, (documents, kv_heads)


@given(SHARDS, st.integers(1, 5), st.integers(0, 2))
def test_each_token_is_held_once_and_rows_can_be_joined(shards, size, dim):
    """By one rank, in ascending order, as many by each; cutting and joining change nothing, along any axis."""
    tokens = shards.chunks * size
    held = [at for rank in range(shards.world) for span in shards.spans(rank, tokens) for at in range(*span)]
    assert sorted(held) == list(range(tokens))
    for rank in range(shards.world):
        spans = shards.spans(rank, tokens)
        assert list(spans) == sorted(spans)
        assert sum(end - first for first, end in spans) == tokens // shards.world
    shape = [2, 3, 2]
    shape[dim] = tokens
    row = torch.randn(shape)
    parts = shards.cut(row, dim)
    for rank, part in enumerate(parts):
        held = [at for span in shards.spans(rank, tokens) for at in range(*span)]
        assert torch.equal(part, row.index_select(dim, torch.tensor(held)))
    assert torch.equal(shards.join(parts, dim), row)


def count_pairs(shards, tokens):
    """Pairs of query and key that each rank computes of one document."""
    bounds, ranks = ((0, tokens),), range(shards.world)
    sequences = [
        [block.sequences for source in ranks for block in find_blocks(bounds, shards, rank, source)] for rank in ranks
    ]
    return [sum(pairs(one) for one in each) for each in sequences]


def pairs(sequences):
    lengths = zip(sequences.queries, sequences.keys, strict=True)
    return sum(q * (q + 1) // 2 if sequences.is_causal else q * k for q, k in lengths)


@given(st.integers(1, 8), st.integers(1, 5))
def test_zigzag_gives_each_rank_the_same_work(world, size):
    """Exactly; dealt in order the last rank has up to 2 W - 1 times the first one's, and nearly that of long chunks."""
    tokens = 2 * world * size
    equal = count_pairs(Shards(world, "zigzag"), tokens)
    ordered = count_pairs(Shards(world, "contiguous"), tokens)
    assert sum(equal) == sum(ordered) == tokens * (tokens + 1) // 2
    assert len(set(equal)) == 1
    assert ordered == sorted(ordered)
    assert (world - 1) < ordered[-1] / ordered[0] + 1e-9 <= 2 * world


@st.composite
def packed_rows(draw):
    """Shards, and bounds of rows that they cut evenly."""
    shards = draw(st.builds(Shards, st.integers(1, 4), st.sampled_from(BALANCES)))
    tokens = shards.chunks * draw(st.integers(1, 4))
    ends = st.sets(st.integers(1, tokens), max_size=6).map(lambda found: tuple(sorted({0, tokens, *found})))
    return shards, tuple(draw(st.lists(ends, min_size=1, max_size=3)))


@given(packed_rows())
def test_blocks_of_a_round_are_the_mask_and_no_hop_is_for_nothing(packed):
    """Every pair that sees each other is in one block, no other is; and nothing meets after the last hop."""
    shards, bounds = packed
    tokens, ranks, hops = bounds[0][-1], range(shards.world), count_hops(bounds, shards)
    assert any(find_blocks(bounds, shards, rank, (rank - hops + 1) % shards.world) for rank in ranks)
    seen = torch.zeros(len(bounds) * tokens, len(bounds) * tokens, dtype=torch.int)
    rows = torch.arange(len(bounds) * tokens).view(len(bounds), tokens)
    held = [shards.cut(rows, 1)[rank].flatten() for rank in ranks]
    for rank, hop in product(ranks, range(hops)):
        source = (rank - hop) % shards.world
        for block in find_blocks(bounds, shards, rank, source):
            queries, keys = (
                torch.cat([own[slice(*span)] for span in spans])
                for own, spans in ((held[rank], block.queries), (held[source], block.keys))
            )
            sizes = block.sequences.queries, block.sequences.keys
            for q, k in zip(
                *(part.split(size) for part, size in zip((queries, keys), sizes, strict=True)), strict=True
            ):
                one = torch.ones(len(q), len(k), dtype=torch.int)
                seen[q[:, None], k] += one.tril() if block.sequences.is_causal else one
    wanted = torch.block_diag(*make_mask(bounds)[:, 0].int())
    assert torch.equal(seen, wanted)


@pytest.mark.parametrize(
    ("balance", "bounds", "hops"),
    [
        ("contiguous", ((0, 64),), 4),
        ("zigzag", ((0, 64),), 4),
        ("contiguous", (tuple(range(0, 65, 16)),), 1),  # documents end where chunks do
        ("contiguous", ((0, 10, 20, 30, 40, 50, 64),), 2),
        ("zigzag", ((0, 10, 20, 30, 40, 50, 64),), 4),  # chunk 4 is on rank 3, chunk 5 on rank 2, three hops on
        ("zigzag", (tuple(range(0, 65, 8)),), 1),
    ],
)
def test_the_ring_stops_when_nothing_meets_any_more(balance, bounds, hops):
    """Short documents in contiguous chunks need one neighbour's keys, none where no document crosses a chunk's end."""
    assert count_hops(bounds, Shards(4, balance)) == hops


def make_partials(blocks, seed=0, tokens=5, heads=2):
    """Attention of the same queries over several sets of keys; a size of 0 is no keys."""
    source = torch.Generator().manual_seed(seed)
    q = torch.randn(tokens, heads, 4, generator=source)
    empty = Partial(torch.zeros(tokens, heads, 4), torch.full((tokens, heads), -torch.inf))
    made = []
    for size in blocks:
        k, v = torch.randn(2, size, heads, 4, generator=source) * 3
        made.append(Products().forward(q, k, v, Sequences((tokens,), (size,), False)) if size else empty)
    return made


def fold(partials):
    total = partials[0]
    for part in partials[1:]:
        total = merge(total, part)
    return total


def is_close(one, other):
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(one, other, strict=True))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.randoms(), st.integers(0, 5))
def test_blocks_may_be_merged_in_any_order_and_grouping(blocks, shuffle, seed):
    """Shuffled, from either end or by halves the result is the same; sets of no keys change no bit of it."""
    partials = make_partials(blocks, seed)
    total = fold(partials)
    shuffled = shuffle.sample(partials, len(partials))
    half = len(partials) // 2
    assert is_close(fold(shuffled), total)
    assert is_close(fold(partials[::-1]), total)
    if half:
        assert is_close(merge(fold(partials[:half]), fold(partials[half:])), total)
    without = [part for part, size in zip(partials, blocks, strict=True) if size]
    if without:
        assert all(torch.equal(a, b) for a, b in zip(fold(without), total, strict=True))


def test_no_keys_at_all_are_neutral_on_either_side():
    """Nothing merged with nothing is nothing, and no NaN; with something it is that."""
    (nothing,), (something,) = make_partials([0]), make_partials([3])
    for one, other, expected in (
        (nothing, nothing, nothing),
        (nothing, something, something),
        (something, nothing, something),
    ):
        assert all(torch.equal(a, b) for a, b in zip(merge(one, other), expected, strict=True))


def test_scores_of_any_size_merge_without_overflow():
    """A block whose scores are a thousand higher simply wins."""
    low, high = make_partials([3, 3])
    high = Partial(high.out, high.lse + 1000.0)
    assert all(torch.equal(a, b) for a, b in zip(merge(low, high), high, strict=True))


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from([1, 2, 4]), st.booleans(), st.integers(0, 5)
)
def test_blocks_add_up_to_the_attention_over_all_keys(blocks, kv_heads, is_causal, seed):
    """Outputs merge to the formula's, and gradients of blocks, each given the merged lse, are autograd's."""
    source = torch.Generator().manual_seed(seed)
    total, tokens = sum(blocks), blocks[0] if is_causal else 3
    q = torch.randn(tokens, 4, 8, generator=source, requires_grad=True)
    k, v = (torch.randn(total, kv_heads, 8, generator=source, requires_grad=True) for _ in range(2))
    grad = torch.randn(tokens, 4, 8, generator=source)
    scores = torch.einsum("the,uhe->htu", q, k.repeat_interleave(4 // kv_heads, 1)) / 8**0.5
    if is_causal:  # the first block is the queries' own
        hidden = torch.ones(tokens, total, dtype=torch.bool).triu(1)
        hidden[:, tokens:] = False
        scores = scores.masked_fill(hidden, -torch.inf)
    wanted = torch.einsum("htu,uhe->the", scores.softmax(-1), v.repeat_interleave(4 // kv_heads, 1))
    gradients = torch.autograd.grad((wanted * grad).sum(), (q, k, v))
    edges = [sum(blocks[:count]) for count in range(len(blocks) + 1)]
    of = [
        (slice(*pair), Sequences((tokens,), (pair[1] - pair[0],), is_causal and not pair[0]))
        for pair in pairwise(edges)
    ]
    with torch.no_grad():
        whole = fold([Products().forward(q, k[here], v[here], one) for here, one in of])
        parts = [Products().backward(q, k[here], v[here], one, whole, grad) for here, one in of]
    assert torch.allclose(whole.out, wanted, atol=1e-5)
    found = sum(part.q for part in parts), torch.cat([part.k for part in parts]), torch.cat([part.v for part in parts])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, gradients, strict=True))


@pytest.mark.parametrize(
    ("shards", "mode", "tokens", "heads", "says"),
    [
        (Shards(3, "zigzag"), "ring", 64, 4, "into the 6 equal chunks.*nearest legal row length: 60 or 66"),
        (Shards(4, "contiguous"), "ring", 3, 4, "nearest legal row length: 4$"),
        (Shards(3, "contiguous"), "ulysses", 66, 4, "4 query heads to 3 ranks.*nearest legal degree: 2 or 4"),
        (Shards(8, "contiguous"), "ulysses", 64, 4, "nearest legal degree: 4, or another mode"),
        (Shards(2, "zigzag"), "rings", 64, 4, "'rings' is unknown; choose one of allgather, ulysses, ring"),
        (Shards(2, "zagzig"), "ring", 64, 4, "'zagzig' is unknown; choose one of zigzag, contiguous"),
    ],
)
def test_what_does_not_come_out_even_is_refused(shards, mode, tokens, heads, says):
    """With the nearest values that would."""
    with pytest.raises(ValueError, match=says):
        check(shards, mode, tokens, heads)


@pytest.mark.parametrize("mode", MODES)
def test_what_comes_out_even_is_accepted(mode):
    """Four ranks, rows of 64, four heads."""
    check(Shards(4, "zigzag"), mode, 64, 4)


def test_the_documented_costs_are_the_computed_ones():
    """The table of docs/trainer/context-parallel.md, in MiB."""
    text = (Path(__file__).parents[2] / "docs" / "trainer" / "context-parallel.md").read_text()
    lines = re.findall(r"^\| (allgather|ulysses|ring) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert len(lines) == 8
    for mode, world, *documented in lines:
        computed = attention(mode, Shape(1, 131_072, 32, 8, 128, 2), int(world))
        assert [round(count / 2**20) for count in astuple(computed)] == list(map(int, documented))
