"""The smaller parts, each on the real thing: scratch folders, logs, metrics over HTTP, traces, digests, the bundle."""

import importlib
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from amdahl_probe import bundle, digests, metrics, supervise
from amdahl_probe.emit import Batches, Recorder, StepRecord
from amdahl_probe.guard import BoundedLog
from amdahl_probe.hook import ImportWatcher
from amdahl_probe.scratch import Scratch, ScratchError


class TestScratch:
    """Removing what a window left, and nothing else."""

    def test_only_what_is_new_goes(self, tmp_path: Path) -> None:
        """Old files and folders stay, new ones go, also inside old folders; links are removed, not followed."""
        root, outside = tmp_path / "s", tmp_path / "outside"
        (root / "old").mkdir(parents=True)
        (root / "old" / "kept").write_text("1")
        outside.mkdir()
        (outside / "precious").write_text("2")
        scratch = Scratch([root], keep=tmp_path / "run")
        before = scratch.remember()
        (root / "old" / "new").write_text("3")
        (root / "new" / "deep").mkdir(parents=True)
        (root / "new" / "deep" / "file").write_text("4")
        (root / "link").symlink_to(outside)
        (root / "file-link").symlink_to(outside / "precious")

        scratch.clean(before)

        assert sorted(path.name for path in root.rglob("*")) == ["kept", "old"]
        assert (outside / "precious").read_text() == "2"

    def test_the_supervisors_own_folder_is_kept(self, tmp_path: Path) -> None:
        """Even when it lies inside a scratch path and is new."""
        (tmp_path / "s" / "run").mkdir(parents=True)
        scratch = Scratch([tmp_path / "s"], keep=tmp_path / "s" / "run")
        (tmp_path / "s" / "run" / "summary.json").write_text("{}")

        scratch.clean((None,))

        assert (tmp_path / "s" / "run" / "summary.json").exists()

    def test_a_link_in_place_of_the_path_is_refused(self, tmp_path: Path) -> None:
        """A window could have put it there."""
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "precious").write_text("1")
        scratch = Scratch([tmp_path / "s"], keep=tmp_path / "run")
        before = scratch.remember()
        (tmp_path / "s").symlink_to(tmp_path / "target")

        with pytest.raises(ScratchError, match="not a directory of its own"):
            scratch.clean(before)
        assert (tmp_path / "target" / "precious").exists()


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        ([b"abc", b"def"], b"abcdef"),
        ([b"0123456789"], b"0123456789"),
        ([b"0123", b"4567", b"89ab", b"cdef"], b"01234\n[... 3 bytes left out ...]\n89abcdef"),
    ],
)
def test_a_log_keeps_its_two_ends(writes: list[bytes], expected: bytes, tmp_path: Path) -> None:
    """The first and (at least) the last bytes, and how many are missing between."""
    log = BoundedLog(tmp_path / "log", half_bytes=5)
    for data in writes:
        log.write(data)
    log.close()

    assert (tmp_path / "log").read_bytes() == expected


@pytest.mark.parametrize("old", [b"", b"x" * 900, b"x" * 10])
def test_a_mounted_file_is_rewritten_in_place(old: bytes, tmp_path: Path) -> None:
    """The same inode, the new content, whatever length the old one had."""
    path = tmp_path / "log"
    path.write_bytes(old)
    inode = path.stat().st_ino
    supervise.write_in_place(str(path), b'{"a":1}')

    assert (path.read_bytes(), path.stat().st_ino) == (b'{"a":1}', inode)


def test_all_that_wait_for_a_module_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each callback once, in order, with the module; one that comes late is told at once."""
    (tmp_path / "awaited_module.py").write_text("VALUE = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    watcher, told = ImportWatcher(), []
    monkeypatch.setattr(sys, "meta_path", [watcher, *sys.meta_path])
    for name in ("first", "second"):
        watcher.call_after("awaited_module", lambda module, name=name: told.append((name, module.VALUE)))

    importlib.import_module("awaited_module")
    watcher.call_after("awaited_module", lambda module: told.append(("late", module.VALUE)))
    monkeypatch.delitem(sys.modules, "awaited_module")

    assert told == [("first", 7), ("second", 7), ("late", 7)]


class TestMetrics:
    """`/metrics` of one rank, over HTTP."""

    def test_what_was_recorded_is_served(self, tmp_path: Path) -> None:
        """Phases, steps, histogram, checkpoints, loader, loss: each once; startup is not counted twice."""
        counters = metrics.Metrics({"run": 'a "run"'})
        recorder = Recorder(None, metrics=counters)
        recorder.start("cpu", live=False, by="probe", t0_ns=0)
        recorder.startup(3_000_000_000)
        phases = {"startup": 5, "compute": 1_500_000_000, "input": 500_000_000}
        recorder.step(StepRecord(0, 9, phases, 8, 64, "", "", "", 1.25, loader=Batches(2, 250_000_000)))
        recorder.save(125_000_000, False, 1)
        recorder.knob(0, {"dataloaderWorkers": 2}, {"compile": "no compiler"})
        counters.mfu["palm"] = 0.5
        server = metrics.serve(counters, 0, port_dir=str(tmp_path))
        port = (tmp_path / "metrics.port").read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            lines = set(reply.read().decode().splitlines())
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/")
        refusal.value.close()
        server.shutdown()
        server.server_close()

        assert refusal.value.code == 404
        assert lines >= {
            'amdahl_phase_seconds_total{phase="startup"} 3.0',
            'amdahl_phase_seconds_total{phase="compute"} 1.5',
            'amdahl_phase_seconds_total{phase="input"} 0.5',
            "amdahl_steps_total 1",
            "amdahl_samples_total 8",
            'amdahl_step_seconds_bucket{le="1.0"} 0',
            'amdahl_step_seconds_bucket{le="3.0"} 1',
            'amdahl_step_seconds_bucket{le="+Inf"} 1',
            "amdahl_step_seconds_count 1",
            "amdahl_checkpoint_block_seconds_total 0.125",
            "amdahl_checkpoints_total 1",
            "amdahl_loader_batches_total 2",
            "amdahl_loader_batch_seconds_total 0.25",
            "amdahl_loss 1.25",
            'amdahl_knob_ignored{knob="compile"} 1',
            'amdahl_mfu{convention="palm"} 0.5',
            'amdahl_info{by="probe",device="cpu",rank="0",run="a \\"run\\"",world="1"} 1',
        }
        assert server.server_address[0] == "127.0.0.1"

    def test_every_sample_has_a_family(self) -> None:
        """Each name is declared once before its samples: what a scraper checks."""
        text = metrics.Metrics().render()
        declared = re.findall(r"^# TYPE (\S+) \S+$", text, re.MULTILINE)
        used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"^(amdahl_\w+)", text, re.MULTILINE)}

        assert len(declared) == len(set(declared))
        assert used <= set(declared)


ROWS, LABELS = torch.arange(96.0).reshape(8, 12), torch.arange(8)


class TestDigests:
    """What tells batches apart, and what must not."""

    @pytest.mark.parametrize(
        ("batch", "indices", "expected"),
        [
            ([ROWS, LABELS], list(range(40, 48)), (8, 104, 3227200312, 3496929759, 643177527)),
            ({"x": ROWS.bfloat16(), "y": LABELS}, [True, 1, 2], (3, 104, 350728399, 884504559, 4236349815)),
            ((ROWS.t(), LABELS), ["a", "b"], (2, 104, 1494024219, 411949820, 1517727292)),
            ([ROWS.to(torch.complex64)], [1 << 70, -1], (2, 96, 3691193041, 2608526508, 3456272029)),
            (ROWS, None, (8, 96, 985094206, 4090447398, 3326017465)),
            ([[ROWS, LABELS], {"z": ROWS.double()}], 5, (8, 200, 1349546012, 2316749318, 4280831239)),
            ([LABELS] * 70, None, (8, 512, 1948178234, 2256041777, 4214891257)),
            (None, None, (1, 0, 1580606521, 223132457, 223132457)),
        ],
    )
    def test_a_digest_stays_what_it_is(self, batch: Any, indices: Any, expected: tuple[int, ...]) -> None:
        """Recorded ledgers hold them: read, not read, of ids or of content, in containers of every make."""
        assert [digests.digest(batch, indices) for _ in range(2)] == [expected] * 2

    @pytest.mark.parametrize(
        "change",
        [
            lambda rows: rows + 1,
            lambda rows: rows[:7],
            lambda rows: rows.double(),
            lambda rows: rows.reshape(4, 16),
        ],
    )
    def test_another_batch_has_another_signature(self, change: Any) -> None:
        """Values, number, type and shape all count."""
        rows = torch.arange(64.0).reshape(8, 8)

        assert digests.digest([change(rows)]).sig != digests.digest([rows]).sig

    @pytest.mark.parametrize("width", [2, 12, 64, 100])
    def test_rows_that_begin_alike_are_told_apart(self, width: int) -> None:
        """As texts do, whose first token is the same: the elements that are read are not one a row."""
        first, second = torch.arange(8.0 * width).reshape(8, width), torch.arange(8.0 * width).reshape(8, width) + 1
        first[:, 0] = second[:, 0] = 7

        assert digests.digest([first]).sig != digests.digest([second]).sig

    def test_shape_leaves_the_number_of_samples_out(self) -> None:
        """A shorter last batch has the same shape; another width has not."""
        digest = digests.digest([torch.zeros(8, 3)])

        assert digests.digest([torch.zeros(5, 3)]).shape == digest.shape
        assert digests.digest([torch.zeros(8, 4)]).shape != digest.shape

    def test_ids_do_not_depend_on_order_nor_on_how_batches_were_cut(self) -> None:
        """A multiset: the same samples once each, however dealt; one twice is another one."""
        rows = torch.arange(8.0)
        together = digests.digest(rows, [1, 2, 3, 4])
        apart = digests.combine([digests.digest(rows, [4, 2]), digests.digest(rows, [1, 3])])

        assert apart.ids == together.ids != digests.digest(rows, [1, 2, 3, 3]).ids
        assert (apart.samples, together.samples) == (4, 4)

    def test_content_stands_for_ids_where_there_are_none(self) -> None:
        """Rows in another order and another cut, the same multiset."""
        rows, labels = torch.rand(8, 32), torch.arange(8)
        order = torch.randperm(8)
        cut = [digests.digest({"x": rows[part], "y": labels[part]}) for part in order.split(3)]

        assert digests.combine(cut).ids == digests.digest({"x": rows, "y": labels}).ids
        assert digests.combine(cut).elements == 8 * 33

    @pytest.mark.parametrize("batch", [None, [], "text", ["a", "b"], {"x": {"y": [1]}}, object(), torch.tensor(3.0)])
    def test_any_batch_has_a_digest(self, batch: Any) -> None:
        """Batches without tensors too."""
        assert digests.digest(batch).elements in (0, 1)

    def test_a_tensor_out_of_reach_is_not_read(self) -> None:
        """Not contiguous, sparse or elsewhere: shape and type stand for it."""
        rows = torch.zeros(4, 6)

        assert digests.digest(rows.t()).sig == digests.digest((rows + 1).t()).sig
        assert digests.digest(torch.zeros(4, 6, device="meta")).samples == 4


class TestBundle:
    """One zip from the sources."""

    def test_equal_sources_give_equal_bytes(self, tmp_path: Path, probe_zip: Path) -> None:
        """The name holds the digest of the content; building twice changes nothing."""
        again = bundle.build(tmp_path)

        assert (again.name, again.read_bytes()) == (probe_zip.name, probe_zip.read_bytes())
        assert re.fullmatch(r"amdahl_probe-[0-9a-f]{12}\.zip", again.name)
        assert bundle.build(tmp_path) == again
        assert list(tmp_path.iterdir()) == [again]

    def test_the_zip_builds_nothing_but_runs(self, probe_zip: Path, bare_env: dict[str, str]) -> None:
        """From the zip alone, the supervisor answers; without arguments the bundler says how it is used."""
        env = {**bare_env, "PYTHONPATH": str(probe_zip)}
        command = [sys.executable, "-m", "amdahl_probe.supervise"]
        asked = subprocess.run(command, env=env, capture_output=True, text=True, check=False)

        assert asked.returncode == 2
        assert "usage: python -m amdahl_probe.supervise" in asked.stderr
        assert bundle.main([]) == 2
