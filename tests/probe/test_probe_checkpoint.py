"""What counts as saving: the files of a checkpoint, and what is done with them right after."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amdahl_probe import written
from amdahl_probe.checkpoint import Savers
from amdahl_probe.standin import replace
from amdahl_probe.written import Written
from probe.runs import SCRIPTS, Scripts, torch_has

SLOW_NS = 20_000_000
"""What a rename or a removal takes in `keeping.py`."""

#: Slow calls of each way to keep a checkpoint, by the phase they are booked as.
CHECKPOINT, OTHER = "checkpoint", "other"
WAYS = {
    "replace": (CHECKPOINT, 1),
    "rename_named": (CHECKPOINT, 1),
    "replace_path": (CHECKPOINT, 1),
    "move": (CHECKPOINT, 1),
    "replace_descriptor": (CHECKPOINT, 1),
    "rename_directory": (CHECKPOINT, 1),
    "unlink_oldest": (CHECKPOINT, 1),
    "unlink_oldest_path": (CHECKPOINT, 1),
    "remove_oldest_after_rename": (CHECKPOINT, 2),
    "remove_oldest_directory": (CHECKPOINT, 2),
    "fail_to_replace": (CHECKPOINT, 1),
    "rename_without_a_save": (OTHER, 1),
    "rename_another_file": (OTHER, 1),
    "unlink_elsewhere": (OTHER, 1),
    "replace_nothing": (OTHER, 1),
}

#: Guarded functions that need what not every torch has.
REACHED_BY = {
    "torch.compile": {f"Forwards.{name}_compiled" for name in ("enter", "leave", "pass")} | {"Forwards.follow"},
    "optimizer pre-hooks": {"Probe.begin_update"},
    "torch.distributed.checkpoint.async_save": {"Probe.count_async_save"},
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory, probe_zip: Path, bare_env: dict[str, str]) -> Iterator[Scripts]:
    """Every script of this file, started."""
    run = Scripts(tmp_path_factory.mktemp("checkpoints"), probe_zip, bare_env)
    for name, probe in (("keeping", True), ("keeping-bare", False)):
        run.start(name, str(SCRIPTS / "keeping.py"), str(run.out(name)), probe=probe)
        run.start(f"{name}-look", str(SCRIPTS / "keeping.py"), probe=probe)
    run.start("faults", str(SCRIPTS / "faults.py"), str(run.out("faults")))
    yield run
    run.close()


@pytest.mark.slow
class TestRealFiles:
    """Scripts that keep their checkpoints in the ways scripts do."""

    @pytest.mark.parametrize("way", WAYS)
    def test_the_end_of_a_save_is_checkpoint_time(self, way: str, scripts: Scripts) -> None:
        """What belongs to the files just written, failing or not, and nothing else that is renamed or removed."""
        step = scripts.steps("keeping")[list(WAYS).index(way) + 1]
        phase, slow = WAYS[way]

        assert step["ph"][phase] >= slow * SLOW_NS

    def test_it_is_part_of_the_save(self, scripts: Scripts) -> None:
        """One save a step; its blocked time holds the slow calls that did not fail."""
        saves = {line["step"]: line["block_ns"] for line in scripts.lines("keeping") if line["k"] == "save"}
        booked = [at for at, (way, told) in enumerate(WAYS.items(), 1) if told[0] == CHECKPOINT and "fail" not in way]

        assert list(saves) == [at for at, way in enumerate(WAYS, 1) if way != "rename_without_a_save"]
        assert all(saves[at] >= WAYS[list(WAYS)[at - 1]][1] * SLOW_NS for at in booked)

    def test_files_errors_and_answers_are_the_scripts(self, scripts: Scripts) -> None:
        """[P] Each way leaves the same files and raises the same errors with and without the probe."""
        bare = scripts.result("keeping-bare")

        assert (bare.code, bare.out.count("\n")) == (0, len(WAYS)), bare.errors
        assert scripts.result("keeping") == bare

    def test_replaced_builtins_answer_as_before(self, scripts: Scripts) -> None:
        """[P] They pickle, stand in the lists of `os`, describe themselves, and do not become methods in a class."""
        bare = scripts.result("keeping-bare-look")

        assert (bare.code, "False" in bare.out.splitlines()[-1]) == (0, True), bare.errors
        assert scripts.result("keeping-look") == bare


@pytest.mark.slow
class TestFaults:
    """[P] A failure anywhere in the probe leaves the training as it was."""

    def test_each_guarded_function_may_fail(self, scripts: Scripts) -> None:
        """The same losses to the bit; each says once that it is off."""
        assert scripts.result("faults").code == 0, scripts.result("faults").errors
        out = scripts.out("faults")
        expected = (out / "none.losses").read_text()
        said = {path.stem: path.read_text().splitlines() for path in out.glob("*.said")}

        assert expected
        assert {path.stem: path.read_text() for path in out.glob("*.losses")} == dict.fromkeys(said, expected)
        assert {name for name, lines in said.items() if not lines} == {"none"} | {
            name for interface, names in REACHED_BY.items() if not torch_has(interface) for name in names
        }
        assert {name: lines for name, lines in said.items() if lines} == {
            name: [f"amdahl_probe: off, the script goes on: {name.split('.')[1]}: RuntimeError: planted"]
            for name, lines in said.items()
            if lines
        }


class TestWritten:
    """Which calls belong to the files that a save wrote."""

    @pytest.mark.parametrize(
        ("wrote", "call", "expected"),
        [
            (("/c/a.tmp",), "/c/a.tmp", (True, True, True)),  # itself: a save that is taken back
            (("/c/a.tmp",), "/c/b.tmp", (False, True, True)),
            (("/c/a.tmp",), "/c", (True, False, False)),
            (("/c/5/model.pt",), "/c/5", (True, False, True)),
            (("/c/5/model.pt",), "/c/4", (False, False, True)),
            (("/c/5/model.pt",), "/c/4/model.pt", (False, False, False)),
            (("/c/5/model.pt",), "/d", (False, False, False)),
            (("/a.pt",), "/b.pt", (False, False, False)),  # everything lies beside the root
            (("/c/a", "/d/b"), b"/c/../c/./a", (True, True, True)),
            ((), "/c/a", (False, False, False)),
        ],
    )
    def test_paths(self, wrote: tuple[str, ...], call: str | bytes, expected: tuple[bool, ...]) -> None:
        """(moves it, removes a file beside it, removes a directory beside it)."""
        known = Written()
        for path in wrote:
            known.add((None, path), {})

        asked = (known.holds_source, known.is_beside_file, known.is_beside_directory)
        assert tuple(ask((call,), {}) for ask in asked) == expected

    @pytest.mark.parametrize(
        ("args", "kwargs", "expected"),
        [
            (("/c/a", "/c/b"), {}, True),
            ((), {"src": "/c/a", "dst": "/c/b"}, True),
            (("a", "b"), {"src_dir_fd": 3}, False),
            (("/c/a", "/c/b"), {"src_dir_fd": None}, True),
            ((7, "/c/b"), {}, False),
            ((), {}, False),
        ],
    )
    def test_calls(self, args: tuple[Any, ...], kwargs: dict[str, Any], expected: bool) -> None:
        """Named and positional arguments; what is relative to an open directory, or is no path, is left alone."""
        known = Written()
        known.add((None,), {"f": "/c/a"})

        assert known.holds_source(args, kwargs) is expected

    def test_memory_is_bounded(self) -> None:
        """The newest files are remembered."""
        known = Written()
        for at in range(written.MAX_WRITTEN + 1):
            known.add((None, f"/c/{at}/model"), {})

        assert [known.holds_source((f"/c/{at}/model",), {}) for at in (0, 1, written.MAX_WRITTEN)] == [
            False, True, True
        ]  # fmt: skip

    def test_open_files_have_paths(self, tmp_path: Path) -> None:
        """By name, by descriptor, by the object around them; memory has none, and neither has a closed descriptor."""
        path = tmp_path / "model"
        with path.open("wb") as file, os.fdopen(os.dup(file.fileno()), "wb") as numbered:
            found = [written.to_path(target) for target in (path, file, numbered, SimpleNamespace(path=path))]

        assert found == [str(path)] * 4
        assert [written.to_path(target) for target in (None, 3.5, SimpleNamespace(name=10**6))] == [None] * 3


def test_references_of_older_pathlibs_are_replaced_too() -> None:
    """Before Python 3.11 `Path` keeps the builtins in a class: the stand-in works there as it is."""
    asked: list[Any] = []
    module: Any = SimpleNamespace(__name__="os", unlink=os.unlink)

    class Accessor:
        unlink = os.unlink

    replace(module, "unlink", lambda _: asked.append, Accessor)
    Accessor().unlink("path")

    assert asked == ["path"]
    assert module.unlink is Accessor.unlink is not os.unlink
    os.supports_dir_fd.discard(module.unlink)
    os.supports_follow_symlinks.discard(module.unlink)


@pytest.mark.parametrize(("is_saving", "counted"), [(True, 1), (False, 0)])
def test_a_flush_belongs_to_the_save_before_it(is_saving: bool, counted: int) -> None:
    """`os.fsync` after `torch.save` is part of the save; any other flush of the script is not, and both still happen."""
    saves: list[int] = []
    flushed: list[int] = []
    probe: Any = SimpleNamespace(
        on=True,
        ledger=SimpleNamespace(is_mine=lambda: True),
        is_saving=lambda: is_saving,
        count_save=lambda block_ns, _: saves.append(block_ns),
        enter=lambda phase: phase,
        leave=lambda _: None,
    )

    Savers(probe).time_part(flushed.append)(7)

    assert flushed == [7]
    assert len(saves) == counted
