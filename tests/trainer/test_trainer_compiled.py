"""Compiling: the same losses, its time in the account where it belongs, and no surprise without a compiler."""

from __future__ import annotations

import threading

import pytest
import torch

from amdahl_probe.spans import Ledger
from amdahl_trainer import compiled, parallel
from amdahl_trainer import config as configs
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.peers import Place


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


def compile_for(clock, ns):
    """What torch does when it compiles, as far as its listeners see it."""
    handler = torch._dynamo.callback_handler
    with handler.install_callbacks(None, "0/0"):
        clock.now += ns


@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["training thread", "a thread of autograd's"])
def test_compiling_counts_as_warmup_whoever_does_it(is_elsewhere):
    """Forward passes are compiled on the training thread, on a GPU backward passes on another: sums stay exact."""
    clock = Clock()
    ledger = Ledger(clock, bottom="compute")
    with compiled.as_warmup(ledger):
        clock.now += 5
        if is_elsewhere:
            worker = threading.Thread(target=compile_for, args=(clock, 100))
            worker.start()
            worker.join()
        else:
            compile_for(clock, 100)
        clock.now += 7
        assert ledger.is_mine()
        assert ledger.take() == {"compute": 12, "warmup": 100}
    compile_for(clock, 50)
    assert ledger.take() == {"compute": 50}


def test_a_machine_without_a_compiler_is_told_so(monkeypatch):
    """The error names key, lack and both remedies; it comes before anything is made."""
    from torch._inductor import config as inductor

    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    for device, language in (("cpu", r"C\+\+"), ("cuda", "C")):
        told = rf"run.compile is blocks, but there is no {language} compiler.*install"
        with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ConfigError, match=told):
            compiled.check(torch.device(device))


@pytest.fixture
def searched_anew():
    """Torch remembers a compiler that it has found, also for tests that hide it."""
    from torch._inductor.cpp_builder import cpp_compiler_search

    yield
    cpp_compiler_search.cache_clear()


@pytest.mark.usefixtures("searched_anew")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_machine_without_pythons_headers_is_told_so(monkeypatch, tmp_path, device):
    """What torch makes for either device includes them; Debian's Python leaves them to a package of their own."""
    monkeypatch.setattr(compiled.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigError, match="Python's headers are not on this machine: install python3-dev, or set"):
        compiled.check(torch.device(device))
    (tmp_path / "Python.h").touch()
    compiled.check(torch.device(device))


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_another_and_says_what_compiling_took(run):
    """Within rounding. Steps that compiled are tagged, and each one's phases sum to its wall time to the nanosecond."""
    plain = run("plain", {"run.max_steps": 4, "eval.every_steps": 4})
    fused = run("fused", {"run.max_steps": 4, "eval.every_steps": 4, "run.compile": "blocks"})
    assert fused.codes == [0], fused.output
    assert fused.losses == pytest.approx(plain.losses, rel=2e-5)
    first, *others = fused.of("step")
    assert first["ph"]["warmup"] > 0
    assert all(sum(step["ph"].values()) == step["w"] for step in (first, *others))
    assert all(("warmup" in step["ph"]) <= ("warmup" in step["tags"]) for step in (first, *others))
    assert not any("warmup" in step["ph"] for step in plain.of("step"))


@pytest.mark.parametrize(("changes", "place"), [({}, Place(0, 4, 0, 4)), ({"parallel.dp_mode": "fsdp2"}, Place())])
def test_whole_parameters_are_not_offloaded(changes, place):
    """Refused before anyone waits for anyone, with what would do."""
    config = configs.build({"memory.cpu_offload": True, **changes})
    with pytest.raises(
        ConfigError, match=r"memory.cpu_offload is true.*set parallel.dp_mode to fsdp2 on 2 ranks or more"
    ):
        parallel.fit(config, place)


def test_split_matrices_are_not_compiled():
    """Torch's compiler does not take them; the run is refused with both remedies."""
    config = configs.build({"run.compile": "blocks", "parallel.tp": 2})
    with pytest.raises(ConfigError, match=r"run.compile is blocks.*set run.compile to none, or parallel.tp to 1"):
        parallel.fit(config, Place(0, 2, 0, 2))
