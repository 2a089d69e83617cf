"""Model, loss, FLOPs and optimizer: masks hold, formulas equal torch's own counts, sums do not depend on the split."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amdahl_trainer import flops, optim
from amdahl_trainer.config import Model, Optim
from amdahl_trainer.documents import find_documents
from amdahl_trainer.loss import IGNORED, loss_sum
from amdahl_trainer.model import Llama

SMALL = Model(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48, vocab_size=320)
CPU = torch.device("cpu")


def make_model(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return Llama(config)


def make_tokens(rows, seq, seed=0):
    return torch.randint(0, 256, (rows, seq), generator=torch.Generator().manual_seed(seed))


def test_changing_document_a_leaves_the_logits_of_b_untouched():
    """With document masks no bit of B moves; without them it does, so the test can fail."""
    model = make_model()
    documents = find_documents(torch.tensor([[1] * 10 + [2] * 12 + [0] * 2]), CPU)
    tokens = make_tokens(1, 24)
    changed = tokens.clone()
    changed[0, :10] = (changed[0, :10] + 1) % 256
    document_b = slice(10, 22)
    with torch.no_grad():
        assert torch.equal(model(tokens, documents)[0, document_b], model(changed, documents)[0, document_b])
        assert not torch.allclose(model(tokens)[0, document_b], model(changed)[0, document_b])


def test_a_packed_document_has_the_logits_it_has_alone():
    """Rotary positions are relative, so a document's place in its row does not matter (to float32 rounding)."""
    model = make_model()
    documents = find_documents(torch.tensor([[1] * 10 + [2] * 14]), CPU)
    tokens = make_tokens(1, 24)
    with torch.no_grad():
        packed, alone = model(tokens, documents)[0, 10:], model(tokens[:, 10:])[0]
    assert torch.allclose(packed, alone, atol=1e-5)


def test_the_future_is_not_seen():
    """Changing a token leaves all logits before it as they are, with one document and with several."""
    model = make_model()
    tokens = make_tokens(1, 24)
    changed = tokens.clone()
    changed[0, 15] = (changed[0, 15] + 1) % 256
    for documents in (None, find_documents(torch.tensor([[1] * 4 + [2] * 20]), CPU)):
        with torch.no_grad():
            assert torch.equal(model(tokens, documents)[0, :15], model(changed, documents)[0, :15])


def test_tied_embeddings_are_one_tensor():
    """And untied ones are two."""
    tied, untied = make_model(), make_model(Model(d_model=32, n_heads=4, tie_embeddings=False))
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_the_flop_formula_equals_torchs_count(kv_heads, tied):
    """`palm` is exactly what torch counts on the math attention backend, for grouped heads, tied or not."""
    config = Model(n_layers=2, d_model=32, n_heads=4, n_kv_heads=kv_heads, d_ff=48, tie_embeddings=tied)
    model, seq, rows = make_model(config), 64, 2
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss_sum(model(make_tokens(rows, seq)), make_tokens(rows, seq, 1)).backward()
    assert counter.get_total_flops() == rows * seq * flops.per_token(config, seq, seq).palm


def test_flop_conventions_are_ordered_and_meet():
    """In order packed <= causal <= palm; with documents as long as rows packed is causal."""
    cost = flops.per_token(SMALL, 128, 40.0)
    assert cost.packed < cost.causal < cost.palm
    assert flops.per_token(SMALL, 128, 128.0).packed == cost.causal


@pytest.mark.parametrize(
    ("device", "compute", "peak"),
    [
        ("cpu", "bfloat16", None),
        ("cuda:NVIDIA H200", "bfloat16", 989.5e12),
        ("cuda:NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("cuda:NVIDIA H100 80GB HBM3", "bfloat16", 989.5e12),
        ("cuda:NVIDIA H100 80GB HBM3", "float32", None),
        ("cuda:NVIDIA L40S", "bfloat16", 362e12),
        ("cuda:NVIDIA L4", "bfloat16", 121e12),
        ("cuda:NVIDIA L40", "bfloat16", 181e12),
        ("cuda:NVIDIA H200 NVL", "bfloat16", 836e12),
        ("cuda:NVIDIA H100 NVL", "bfloat16", 835e12),
        ("cuda:NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("cuda:NVIDIA H800 PCIe", "bfloat16", 756e12),
        ("cuda:NVIDIA H20", "bfloat16", 148e12),
        ("cuda:NVIDIA GH200 480GB", "bfloat16", 989.5e12),
        ("cuda:NVIDIA GH200 144G HBM3e", "bfloat16", 989.5e12),
        ("cuda:NVIDIA GB200", "bfloat16", 2500e12),
        ("cuda:NVIDIA B300 SXM6 AC", "bfloat16", 2250e12),
        ("cuda:NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("cuda:NVIDIA A100 80GB PCIe", "bfloat16", 312e12),
        ("cuda:NVIDIA A100-PCIE-40GB", "bfloat16", 312e12),
        ("cuda:NVIDIA A10", "bfloat16", 125e12),
        ("cuda:NVIDIA A10G", "bfloat16", None),
        ("cuda:NVIDIA RTX A6000", "bfloat16", 154.85e12),
        ("cuda:NVIDIA GeForce RTX 4090", "bfloat16", 165.2e12),
        ("cuda:NVIDIA GeForce RTX 4090 D", "bfloat16", None),
        ("cuda:NVIDIA GeForce RTX 3090 Ti", "bfloat16", None),
        ("cuda:NVIDIA GeForce RTX 5090 Laptop GPU", "bfloat16", None),
        ("cuda:AMD Instinct MI300X VF", "bfloat16", 1307.4e12),
        ("cuda:AMD Instinct MI325X OAM", "bfloat16", 1307.4e12),
        ("cuda:", "bfloat16", None),
        ("cuda:Some Other GPU", "bfloat16", None),
    ],
)
def test_peaks_are_known_or_absent_never_guessed(device, compute, peak):
    """No utilisation is reported where the peak is unknown."""
    found = flops.peak_flops(device.replace("cuda:", "cuda: "), compute)
    assert found == flops.peak_flops(device, compute) == peak
    shares = flops.utilisation(flops.per_token(SMALL, 128, 40.0), 1e6, peak)
    assert set(shares) == (set() if peak is None else {"palm", "causal", "packed"})


@pytest.mark.parametrize("device", ["cpu", "cuda:NVIDIA H100 80GB HBM3", "cuda:Some Other GPU"])
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_a_stated_peak_holds_for_any_device_and_number_format(device, compute):
    """Whoever states it knows."""
    assert flops.peak_flops(device, compute, 400.0) == 400e12


def ragged():
    """Eight rows whose valid lengths differ, with tokens and targets."""
    tokens, targets = make_tokens(8, 16), make_tokens(8, 16, 1)
    for row in range(8):
        targets[row, 2 + 2 * row :] = IGNORED
    return tokens, targets


def gradients(model, tokens, targets, size, normalise):
    model.zero_grad()
    count = len(tokens) // size
    for first in range(0, len(tokens), size):
        rows = slice(first, first + size)
        total = loss_sum(model(tokens[rows]), targets[rows])
        normalise(total, targets[rows], targets, count).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def by_global_tokens(total, mine, whole, count):
    return total / (whole != IGNORED).sum()


def by_mean_of_means(total, mine, whole, count):
    return total / (mine != IGNORED).sum() / count


@pytest.mark.parametrize(("normalise", "is_exact"), [(by_global_tokens, True), (by_mean_of_means, False)])
def test_gradients_do_not_depend_on_the_micro_batch(normalise, is_exact):
    """Sums over global valid tokens agree to 5e-6 for every split; the mutation, a mean of means, is caught."""
    model, (tokens, targets) = make_model(), ragged()
    whole = gradients(model, tokens, targets, 8, normalise)
    apart = max(
        float((gradients(model, tokens, targets, size, normalise) - whole).abs().max() / whole.abs().max())
        for size in (1, 2, 4)
    )
    assert (apart <= 5e-6) == is_exact, apart


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("cosine", 0, 0.1),
        ("cosine", 9, 1.0),
        ("cosine", 10, 1.0),
        ("cosine", 55, 0.6),
        ("cosine", 100, 0.2),
        ("cosine", 5000, 0.2),
        ("linear", 55, 0.6),
        ("linear", 100, 0.2),
        ("constant", 4, 0.5),
        ("constant", 5000, 1.0),
    ],
)
def test_learning_rates(schedule, step, expected):
    """Ten steps of warm-up to 1.0, then down to 0.2 at step 100 and no further."""
    config = Optim(lr=1.0, warmup_steps=10, schedule=schedule, min_lr_ratio=0.2)
    assert optim.learning_rate(step, config, 100) == pytest.approx(expected)


@given(st.integers(0, 300), st.integers(0, 50), st.integers(1, 200), st.sampled_from(["cosine", "linear", "constant"]))
def test_learning_rates_are_bounded(step, warmup, decay, schedule):
    """Between nothing and the peak whatever the schedule."""
    config = Optim(lr=1.0, warmup_steps=warmup, schedule=schedule)
    assert 0 < optim.learning_rate(step, config, decay) <= 1.0


def test_only_matrices_decay():
    """Norms are in the group without decay, everything else in the other."""
    model = make_model()
    decaying, plain = optim.build(model, Optim(weight_decay=0.3)).param_groups
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    norms = [weight for name, weight in model.named_parameters() if "norm" in name]
    assert {id(weight) for weight in plain["params"]} == {id(weight) for weight in norms}
    assert len(decaying["params"]) + len(norms) == len(list(model.parameters()))


@pytest.mark.parametrize("bad", ["loss", "gradient", "nothing"])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    """Neither parameters nor the optimizer's moments nor its step count move."""
    model = make_model()
    optimizer = optim.build(model, Optim())
    for poison in (False, bad != "nothing"):
        before = [weight.detach().clone() for weight in model.parameters()]
        state = [value.clone() for one in optimizer.state.values() for value in one.values()]
        loss = loss_sum(model(make_tokens(1, 8)), make_tokens(1, 8, 1))
        loss.backward()
        if poison and bad == "gradient":
            model.norm.weight.grad[3] = math.inf
        shown = torch.tensor(math.nan) if poison and bad == "loss" else loss.detach()
        _, refused = optim.apply(optimizer, Optim(), 0.01, shown)
        assert bool(refused) == poison
        same = all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
        assert same == poison
        if poison:
            after = [value for one in optimizer.state.values() for value in one.values()]
            assert all(torch.equal(old, new) for old, new in zip(state, after, strict=True))
        assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("clip", [0.01, 1000.0, math.inf])
@pytest.mark.parametrize("loss", [1.0, math.nan])
def test_host_and_device_decide_alike(clip, loss):
    """What a device decides by itself and what the host decides that looks: the same weights but for rounding."""
    found = []
    for step in (optim.step_on_host, optim.step_on_device):
        model = make_model()
        optimizer = optim.build(model, Optim())
        loss_sum(model(make_tokens(1, 8)), make_tokens(1, 8, 1)).backward()
        norm = optim.total_norm([weight.grad for weight in model.parameters()], None)
        refused = step(optimizer, norm, torch.tensor(loss), clip)
        found.append([refused, *(weight.detach() for weight in model.parameters())])
    assert bool(found[0][0]) == math.isnan(loss)
    torch.testing.assert_close(*found)


def test_gradients_are_clipped_to_the_norm():
    """The reported norm is the one before clipping; 0 does not clip, nor does a norm that is not reached."""
    for clip, is_small in ((0.01, True), (0.0, False), (1000.0, False)):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
        before = torch.cat([weight.detach().clone().flatten() for weight in model.parameters()])
        loss = loss_sum(model(make_tokens(1, 8)), make_tokens(1, 8, 1))
        loss.backward()
        norm, _ = optim.apply(optimizer, Optim(grad_clip=clip), 1.0, loss.detach())
        after = torch.cat([weight.detach().flatten() for weight in model.parameters()])
        moved = float((after - before).norm())
        assert float(norm) > 0.1
        assert moved == pytest.approx(0.01 if is_small else float(norm), rel=1e-3)
