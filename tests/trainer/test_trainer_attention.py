"""Attention over documents: every kernel equals the dense formula, and no document is moved by another."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from amdahl_trainer import attention, recompute
from amdahl_trainer.attention import attend, attend_pieces, lay_out
from amdahl_trainer.blocks import Flash, Sequences
from amdahl_trainer.documents import (
    Documents,
    find_documents,
    flat,
    is_mask_cheaper,
    make_mask,
    meet,
    merge_spans,
    take,
)

CPU = torch.device("cpu")
ROWS = ((0, 5, 6, 16), (0, 16))


@pytest.fixture
def pretended():
    """A GPU by torch's shape functions: tensors without numbers. What is kept for real layers is kept apart."""
    lay_out.cache_clear()
    with FakeTensorMode() as mode:
        yield mode
    lay_out.cache_clear()


def make_documents(bounds=ROWS, path="masked"):
    """Documents as they are on a CPU for one kernel or the other, whatever is cheaper."""
    if path == "causal":
        return None
    return dataclasses.replace(Documents.within(bounds, CPU), mask=make_mask(bounds) if path == "masked" else None)


def make_parts(rows=2, tokens=16, heads=4, kv_heads=2, seed=0, dtype=torch.float32):
    """Queries, keys and values, to be differentiated."""
    source = torch.Generator().manual_seed(seed)
    shapes = [(rows, tokens, count, 8) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=source).to(dtype).requires_grad_() for shape in shapes]


def attend_densely(q, k, v, mask):
    """The formula: softmax of all scores in float64, minus infinity where a token is not seen."""
    shared = q.shape[2] // k.shape[2]
    q, k, v = (
        part.double().transpose(1, 2) for part in (q, k.repeat_interleave(shared, 2), v.repeat_interleave(shared, 2))
    )
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def differ(found, wanted):
    """Greatest difference over the greatest entry."""
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max())


def run(parts, weights, function):
    out = function(*parts)
    return [out, *torch.autograd.grad((out * weights).sum(), parts)]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("path", "bounds"), [("causal", ((0, 16),) * 2), ("masked", ROWS), ("apart", ROWS)])
def test_every_kernel_equals_the_formula(path, bounds, kv_heads):
    """Outputs and all three gradients, with every number of key heads."""
    parts = make_parts(kv_heads=kv_heads)
    weights = torch.randn(parts[0].shape, generator=torch.Generator().manual_seed(1))
    documents = make_documents(bounds, path)
    found = run(parts, weights, lambda *of: attend(*of, documents))
    wanted = run(parts, weights, lambda *of: attend_densely(*of, make_mask(bounds)))
    assert max(differ(*pair) for pair in zip(found, wanted, strict=True)) < 1e-6


@pytest.mark.parametrize("path", ["masked", "apart"])
def test_changing_document_a_leaves_b_untouched(path):
    """No bit of B's output moves, and B's loss has no gradient at all in A. Without documents both are false."""
    document_a, document_b = slice(0, 6), slice(6, 16)
    for documents, is_apart in ((make_documents(((0, 6, 16),), path), True), (None, False)):
        parts = make_parts(rows=1)
        changed = [part.detach().clone() for part in parts]
        for part in changed:
            part[:, document_a] += 1.0
        out, after = attend(*parts, documents), attend(*changed, documents)
        assert torch.equal(out[:, document_b], after[:, document_b]) == is_apart
        gradients = torch.autograd.grad(out[:, document_b].sum(), parts)
        assert all((part[:, document_a] == 0).all() for part in gradients) == is_apart


@pytest.mark.parametrize(
    ("segments", "bounds"),
    [
        ([[1, 1, 1], [1, 1, 0]], None),
        ([[1, 1, 1], [1, 2, 2]], ((0, 3), (0, 1, 3))),
        ([[1, 2, 0], [1, 0, 0]], ((0, 1, 2, 3), (0, 1, 3))),
        ([[1, 1, 2, 3, 3, 0]], ((0, 2, 3, 5, 6),)),
    ],
)
def test_documents_are_runs_of_equal_numbers(segments, bounds):
    """One document a row, padding behind it or not, needs no bounds: the causal rule says it all."""
    documents = find_documents(torch.tensor(segments), CPU)
    assert (documents and documents.bounds) == bounds


def test_a_mask_is_causal_within_documents():
    """Two documents and padding: blocks of lower triangles."""
    mask = make_mask(((0, 2, 3, 4),))[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_kernels_see_few_shapes():
    """Offsets of all rows end to end, their number and the longest document rounded up to powers of two."""
    documents = Documents.within(((0, 5, 8), (0, 1, 3, 8)), CPU)
    assert documents.offsets.tolist() == [0, 5, 8, 9, 11, 16, 16, 16, 16]
    assert documents.longest == 8


@pytest.mark.parametrize(
    ("rows", "bounds", "is_cheaper"),
    [
        (16, tuple(range(0, 257, 32)), True),  # a batch of short rows: calls would cost more than they save
        (16, (0, 255, 256), True),
        (1, tuple(range(0, 2049, 256)), False),
        (1, (0, 8000, 8192), False),
        (1, tuple(range(0, 1025, 2)), True),  # documents of two tokens
    ],
)
def test_a_cpu_takes_the_cheaper_kernel(rows, bounds, is_cheaper):
    """Many short documents are masked, long rows of long documents go one by one."""
    assert is_mask_cheaper((bounds,) * rows) == is_cheaper
    assert (Documents.within((bounds,) * rows, CPU).mask is not None) == is_cheaper


@st.composite
def packed_rows(draw, most=3, chunks=8):
    """Bounds of rows whose length is a multiple of `chunks`."""
    tokens = chunks * draw(st.integers(1, 4))
    ends = st.sets(st.integers(1, tokens), max_size=6).map(lambda found: tuple(sorted({0, tokens, *found})))
    return tuple(draw(st.lists(ends, min_size=1, max_size=most)))


def fill(pieces, shape):
    """The mask that pieces stand for."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, queries, keys, is_causal in pieces:
        block = torch.ones(queries[1] - queries[0], keys[1] - keys[0], dtype=torch.bool)
        aligned = block.tril(block.shape[1] - block.shape[0]) if is_causal else block
        assert not mask[row, slice(*queries), slice(*keys)].any(), "no pair twice"
        mask[row, slice(*queries), slice(*keys)] = aligned
    return mask


@given(packed_rows(), st.sampled_from([1, 2, 4, 8]))
def test_pieces_of_all_pairs_of_chunks_are_the_mask(bounds, chunks):
    """Queries of a chunk meet keys of a chunk, or of everything, exactly where the dense mask is true."""
    tokens = bounds[0][-1]
    size, shape = tokens // chunks, (len(bounds), tokens, tokens)
    spans = list(pairwise(range(0, tokens + 1, size)))
    mask = make_mask(bounds)[:, 0]
    in_pairs = [piece for q in spans for k in spans for piece in meet(bounds, q, k, q[0], k[0])]
    assert torch.equal(fill(in_pairs, shape), mask)
    by_queries = [piece for q in spans for piece in meet(bounds, q, (0, tokens), q[0])]
    assert torch.equal(fill(by_queries, shape), mask)


@given(st.lists(st.integers(0, 3), max_size=8))
def test_taking_spans_is_slicing_with_a_gradient_of_its_own(sizes):
    """Alternate gaps and spans; the gradient is one where something was taken, zero elsewhere."""
    edges = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    spans = [pair for number, pair in enumerate(pairwise(edges)) if number % 2]
    rows = torch.arange(edges[-1] + 2.0, requires_grad=True)
    parts = take(rows, spans)
    assert [part.tolist() for part in parts] == [rows[first:end].tolist() for first, end in spans]
    gradient = torch.autograd.grad(sum(part.sum() for part in parts) + rows.sum(), rows)[0]
    assert [int(at) for at in (gradient == 2).nonzero()] == [at for span in spans for at in range(*span)]
    merged = merge_spans(spans)
    assert [at for span in merged for at in range(*span)] == [at for span in spans for at in range(*span)]


def test_spans_of_rows_are_laid_end_to_end():
    """Positions 2 to 4 of the third row of ten."""
    assert flat(2, (2, 5), 10) == (22, 25)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # dynamo's own, at a graph break
@pytest.mark.parametrize("path", ["masked", "apart"])
def test_other_documents_are_no_other_graph(path):
    """Compiled, what is around attention is the same graphs for all batches, though none has another's documents."""
    torch.compiler.reset()

    def run_twice(*of):
        return attend(*of) * 2 + attend(*of)

    compiled = torch.compile(run_twice, backend="eager")
    for number, ends in enumerate(((0, 5, 16), (0, 7, 9, 16), (0, 1, 16), (0, 2, 3, 4, 5, 16))):
        documents, parts = make_documents((ends,), path), make_parts(rows=1)
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            assert torch.equal(compiled(*parts, documents), run_twice(*parts, documents))


class Calls(TorchDispatchMode):
    """Counts the operators that torch is asked for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))

    @property
    def varlen(self):
        return sum("_varlen_attn." in name for name in self.names)


def to_gpu(parts, dtype=torch.bfloat16):
    return [torch.empty(part.shape, dtype=dtype, device="cuda") for part in parts]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("dtype", "calls"), [(torch.bfloat16, 1), (torch.float16, 1), (torch.float32, 0)])
def test_on_a_gpu_packed_rows_go_to_variable_length_flash_attention(pretended, dtype, calls, kv_heads):
    """One call in half precision; float32, which it does not have, goes document by document."""
    documents = Documents(ROWS, None, torch.empty(9, dtype=torch.int32, device="cuda"), 16)
    parts = to_gpu(make_parts(kv_heads=kv_heads), dtype)
    with Calls() as made:
        out = attend(*parts, documents)
    assert made.varlen == calls
    assert (out.shape, out.dtype, out.device.type) == (parts[0].shape, dtype, "cuda")


def test_on_a_gpu_attention_of_packed_rows_is_among_what_selective_checkpointing_keeps(pretended):
    """Its operator is torch's own, within which the kernel's is not seen."""
    documents = Documents(ROWS, None, torch.empty(9, dtype=torch.int32, device="cuda"), 16)
    with Calls() as made:
        attend(*to_gpu(make_parts()), documents)
    kernels = {name for name in made.names if "attn" in name or "attention" in name}
    assert kernels
    assert kernels <= {str(operation) for operation in recompute.DEAR}


def test_where_the_kernel_has_no_grouped_heads_they_are_copied(pretended, monkeypatch):
    """As in torch 2.11: given fewer key heads and no flag for it, the kernel of 2.13 would refuse."""
    monkeypatch.setattr(attention, "_GROUPED", {})
    documents = Documents(ROWS, None, torch.empty(9, dtype=torch.int32, device="cuda"), 16)
    parts = to_gpu(make_parts(kv_heads=2))
    assert attend(*parts, documents).shape == parts[0].shape


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_on_a_gpu_queries_over_other_ranks_keys_are_one_call(pretended, kv_heads):
    """Second half of the queries, all keys: each document's keys up to its last query, packed for one kernel."""
    q, k, v = to_gpu(make_parts(kv_heads=kv_heads))
    with Calls() as made:
        out = attend_pieces(q[:, 8:], k, v, meet(ROWS, (8, 16), (0, 16)))
    assert made.varlen == 1
    assert out.shape == (2, 8, 4, 8)


def test_the_flash_kernel_of_blocks_takes_and_gives_what_the_other_does(pretended):
    """Torch's own shape functions accept its arguments; shapes and types are those of plain products."""
    of = Sequences((3, 2), (4, 6), is_causal=False)
    q, k, v = to_gpu([torch.empty(size, heads, 8) for size, heads in ((5, 4), (10, 2), (10, 2))])
    whole = Flash().forward(q, k, v, of)
    assert [(part.shape, part.dtype) for part in whole] == [((5, 4, 8), torch.float32), ((5, 4), torch.float32)]
    gradients = Flash().backward(q, k, v, of, whole, torch.empty_like(q))
    assert [(part.shape, part.dtype) for part in gradients] == [(part.shape, torch.float32) for part in (q, k, v)]
