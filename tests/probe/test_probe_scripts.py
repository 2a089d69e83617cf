"""The probe in real torch scripts, through the zip: the script is never changed, and what it did is told truly."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amdahl_probe import records
from amdahl_probe.digests import digest_ids
from amdahl_probe.records import Save, Step
from probe.runs import PYTHON, SCRIPTS, Ran, Scripts, find_port, torch_has

LOOPS = [
    "plain",
    "forked",
    "spawned",
    "streamed",
    "closures",
    "accumulated",
    "adversarial",
    "threaded",
    "loaderless",
    "idle",
]


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory, probe_zip: Path, bare_env: dict[str, str]) -> Iterator[Scripts]:
    """Every script of this file, started."""
    home = tmp_path_factory.mktemp("scripts")
    run = Scripts(home, probe_zip, bare_env)
    run.start("loops-bare", str(SCRIPTS / "loops.py"), str(run.out("loops-bare")), probe=False)
    run.start("loops", str(SCRIPTS / "loops.py"), str(run.out("loops")), AMDAHL_TRACE="1")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ddp = [*(torchrun if torch_has("torch.distributed.run") else [str(SCRIPTS / "pair.py")]), str(SCRIPTS / "ddp.py")]
    run.start("ddp-bare", *ddp, str(run.out("ddp-bare")), probe=False)
    run.start("ddp", *ddp, str(run.out("ddp")), AMDAHL_METRICS_PORT=find_port())
    model = str(home / "model")
    run.start("train-bare", str(SCRIPTS / "train.py"), model, probe=False)
    run.start("train", str(SCRIPTS / "train.py"), model, AMDAHL_METRICS_PORT="0")
    (home / "file").write_text("")
    run.start("train-broken", str(SCRIPTS / "train.py"), model, AMDAHL_TELEMETRY_DIR=str(home / "file" / "x"))
    (home / "own").mkdir()
    (home / "own" / "sitecustomize.py").write_text("OWN = 'mine'\n")
    run.start(
        "package", "-m", "package", PYTHONPATH=os.pathsep.join([str(home / "own"), str(SCRIPTS)]), AMDAHL_TRIAL="1",
        AMDAHL_SEED="11", AMDAHL_DATA_OFFSET="9", AMDAHL_DATALOADER_WORKERS="1", AMDAHL_PIN_MEMORY="1",
        AMDAHL_METRICS_PORT="0", WANDB_MODE="online", PYTHONWARNINGS="error",
    )  # fmt: skip
    yield run
    run.close()


pytestmark = pytest.mark.slow


class TestUnchanged:
    """[P] With and without the probe, a script does the same."""

    @pytest.mark.parametrize("loop", LOOPS)
    def test_losses_are_bit_identical(self, loop: str, scripts: Scripts) -> None:
        """Every loop, every loader: not one bit of one loss differs."""
        bare, probed = (scripts.result(name) for name in ("loops-bare", "loops"))
        assert (bare.code, probed.code) == (0, 0), probed.errors
        expected = (scripts.out("loops-bare") / f"{loop}.losses").read_text()

        assert expected
        assert (scripts.out("loops") / f"{loop}.losses").read_text() == expected

    def test_output_exit_code_and_traceback_are_the_scripts(self, scripts: Scripts) -> None:
        """A script that raises ends as it would have."""
        assert scripts.result("train-bare").code == 1
        assert "LookupError: after the last step" in scripts.result("train-bare").errors
        assert scripts.result("train") == scripts.result("train-bare")

    def test_a_probe_that_fails_says_so_once_and_the_script_goes_on(self, scripts: Scripts) -> None:
        """Telemetry that cannot be written: one more line on stderr, nothing else."""
        bare, broken = scripts.result("train-bare"), scripts.result("train-broken")
        said, rest = broken.errors.split("\n", 1)

        assert (broken.code, broken.out, rest) == bare
        assert said.startswith("amdahl_probe: off, the script goes on: start: NotADirectoryError")

    def test_ddp_ranks_end_with_the_same_losses(self, scripts: Scripts) -> None:
        """All-reduced losses on both ranks, with and without."""
        for name in ("ddp-bare", "ddp"):
            assert scripts.result(name).code == 0, scripts.result(name).errors
        assert "amdahl_probe" not in scripts.result("ddp").errors
        losses = {
            (scripts.out(name) / f"rank-{rank}.losses").read_text() for name in ("ddp-bare", "ddp") for rank in (0, 1)
        }

        assert len(losses) == 1

    def test_nobody_is_a_rank_who_does_not_train(self, scripts: Scripts) -> None:
        """A process that imports torch and trains nothing, and torchrun itself, write nothing."""
        scripts.result("loops"), scripts.result("ddp")
        idle = LOOPS.index("idle")

        assert not (scripts.directory("loops") / f"rank-{idle}.jsonl").exists()
        assert sorted(path.name for path in scripts.directory("ddp").glob("*.jsonl")) == [
            "rank-0.jsonl",
            "rank-1.jsonl",
        ]


class TestSteps:
    """What the probe says about each loop."""

    @pytest.mark.parametrize(
        ("loop", "samples"),
        [
            ("plain", [8] * 12),
            ("forked", [8] * 12),
            ("spawned", [8] * 6),
            ("streamed", [8] * 6),
            ("closures", [16, 8, 8, 8, 8, 0]),  # the loader asks one batch ahead
            ("accumulated", [8] * 12),
            ("adversarial", [6] * 16),
            ("threaded", [8] * 6),
            ("loaderless", [0] * 4),
        ],
    )
    def test_steps_and_samples(self, loop: str, samples: list[int], scripts: Scripts) -> None:
        """One step an optimizer step of the first optimizer; evaluation is not training."""
        steps = scripts.steps("loops", LOOPS.index(loop))

        assert [step["n"] for step in steps] == samples
        assert [step["i"] for step in steps] == list(range(len(samples)))

    @pytest.mark.parametrize("loop", LOOPS[:-1])
    def test_time_is_conserved(self, loop: str, scripts: Scripts) -> None:
        """Phases sum to the step's wall, and walls to the run's, to the nanosecond."""
        steps = scripts.steps("loops", LOOPS.index(loop))

        assert all(sum(step["ph"].values()) == step["w"] > 0 for step in steps)
        assert sum(step["w"] for step in steps[1:]) == steps[-1]["t"] - steps[0]["t"]

    @pytest.mark.parametrize("loop", ["forked", "spawned", "streamed", "threaded", "loaderless"])
    def test_losses_are_the_scripts(self, loop: str, scripts: Scripts) -> None:
        """The loss that was printed is the loss that was recorded."""
        told = [step["loss"].hex() for step in scripts.steps("loops", LOOPS.index(loop))]

        assert told == (scripts.out("loops") / f"{loop}.losses").read_text().split()

    def test_micro_batches_add_up_and_a_scaler_is_seen_through(self, scripts: Scripts) -> None:
        """Loss of a step: the sum over its micro-batches, without the scaler's factor."""
        told = [step["loss"] for step in scripts.steps("loops", LOOPS.index("accumulated"))]
        losses = (scripts.out("loops") / "accumulated.losses").read_text().split()

        assert told == [float.fromhex(loss) for loss in losses]

    def test_every_sample_of_an_epoch_is_seen_once(self, scripts: Scripts) -> None:
        """The ids of an epoch are those of the data set, whoever fetched them."""
        wanted = digest_ids(list(range(48)))
        for loop, epoch in (("plain", 6), ("forked", 6), ("spawned", 6), ("accumulated", 6)):
            steps = scripts.steps("loops", LOOPS.index(loop))[:epoch]
            assert sum(int(step["ids"], 16) for step in steps) & 0xFFFFFFFF == wanted

    def test_the_same_order_has_the_same_digests_with_and_without_workers(self, scripts: Scripts) -> None:
        """What compares arms: signature, shape, ids and elements of each step."""
        alone, forked, spawned = (scripts.steps("loops", LOOPS.index(n))[:6] for n in ("plain", "forked", "spawned"))
        keys = ("sig", "shape", "ids", "el", "n")

        assert [[step[key] for key in keys] for step in alone] == [[step[key] for key in keys] for step in forked]
        assert [[step[key] for key in keys] for step in alone] == [[step[key] for key in keys] for step in spawned]
        assert len({step["sig"] for step in alone}) == 6

    @pytest.mark.parametrize("loop", ["plain", "forked", "spawned", "streamed", "accumulated"])
    def test_fetches_are_timed_where_they_happen(self, loop: str, scripts: Scripts) -> None:
        """One time a batch, from this process or from its workers."""
        steps = scripts.steps("loops", LOOPS.index(loop))
        batches = sum(step["n"] for step in steps) // (4 if loop == "accumulated" else 8)

        assert sum(step["lb"][0] for step in steps) == batches
        assert all(step["lb"][1] > 0 for step in steps)

    def test_a_checkpoint_of_two_files_is_one_save(self, scripts: Scripts) -> None:
        """Two epochs, two saves, each durable at once; the step that held it is tagged."""
        lines = scripts.lines("loops", LOOPS.index("plain"))
        saves = [(line["step"], line.get("durable", False)) for line in lines if line["k"] == "save"]

        assert saves == [(6, False), (6, True), (12, False), (12, True)]
        assert [step["i"] for step in scripts.steps("loops") if "ckpt" in step["tags"]] == [6]
        assert [step["i"] for step in scripts.steps("loops") if step["ph"].get("checkpoint")] == [6]

    @pytest.mark.parametrize(("loop", "tagged"), [("plain", [6]), ("accumulated", [6]), ("adversarial", [])])
    def test_evaluation_is_its_own_phase(self, loop: str, tagged: list[int], scripts: Scripts) -> None:
        """Without gradients, or on a loader no backward pass follows; but a training loader made anew is training."""
        steps = scripts.steps("loops", LOOPS.index(loop))

        assert [step["i"] for step in steps if "eval" in step["tags"]] == tagged
        assert [step["i"] for step in steps if step["ph"].get("eval")] == tagged

    def test_the_run_begins_and_ends_in_the_records(self, scripts: Scripts) -> None:
        """Start first, startup before the first step, end last with the reason."""
        lines = scripts.lines("loops")

        assert [line["k"] for line in lines][:3] == ["start", "startup", "step"]
        assert {**lines[0], "t": 0, "t0": 0, "pid": 0} == {
            "k": "start", "t": 0, "v": "amdahl.step/1", "rank": 0, "world": 1, "pid": 0, "t0": 0, "device": "cpu",
            "live": False, "by": "probe", "dtype": "",
        }  # fmt: skip
        assert set(lines[1]["parts"]) >= {"import", "data"}
        assert (lines[-1]["k"], lines[-1]["steps"], lines[-1]["why"]) == ("end", 12, "exit")
        assert scripts.lines("train")[-1]["why"] == "exception:LookupError"

    def test_a_trace_is_written(self, scripts: Scripts) -> None:
        """The spans of the run, in phases of the contract."""
        scripts.result("loops")
        events = json.loads((scripts.directory("loops") / "trace-0.json").read_text())

        assert {event["name"] for event in events} >= {"startup", "input", "compute", "checkpoint", "eval", "other"}


class TestRanks:
    """Two ranks on gloo under torchrun."""

    def test_each_rank_tells_its_share(self, scripts: Scripts) -> None:
        """World, samples, and waiting for the other as `comm`."""
        for rank in (0, 1):
            start, *rest = scripts.lines("ddp", rank)
            steps = scripts.steps("ddp", rank)
            startup = next(line for line in rest if line["k"] == "startup")
            assert (start["rank"], start["world"]) == (rank, 2)
            assert [step["n"] for step in steps] == [4] * 6
            assert all(step["ph"].get("comm", 0) > 0 for step in steps)
            assert "rendezvous" in startup["parts"]

    def test_the_ranks_share_the_samples(self, scripts: Scripts) -> None:
        """Together each sample once."""
        ids = [int(step["ids"], 16) for rank in (0, 1) for step in scripts.steps("ddp", rank)]

        assert sum(ids) & 0xFFFFFFFF == digest_ids(list(range(48)))

    def test_distributed_checkpoints_are_saves(self, scripts: Scripts) -> None:
        """One that blocks, one that does not and says later that it is durable."""
        saves = [record for record in map(records.parse, self._raw(scripts)) if isinstance(record, Save)]
        asynchronous = [line["async"] for line in scripts.lines("ddp") if line["k"] == "save"]

        told = [(2, False)] * torch_has("torch.distributed.checkpoint.save")
        told += [(4, True)] * torch_has("torch.distributed.checkpoint.async_save")

        assert [(save.step, save.is_durable) for save in saves] == [
            (at, end) for at, _ in told for end in (False, True)
        ]
        assert asynchronous == [is_async for _, is_async in told for _ in range(2)]

    def _raw(self, scripts: Scripts) -> list[bytes]:
        scripts.result("ddp")
        return (scripts.directory("ddp") / "rank-0.jsonl").read_bytes().splitlines()


class TestTrial:
    """`python -m package` inside a trial, with a sitecustomize of its own, warnings as errors, a compiled model."""

    def test_knobs_seed_offset_and_trackers_are_placed(self, scripts: Scripts) -> None:
        """Seeded generators, data begun at the offset's batch, iterable data advanced, trackers off."""
        ran = scripts.result("package")
        assert ran.code == 0, ran.errors
        assert "amdahl_probe" not in ran.errors
        told = json.loads(ran.out)

        import random

        assert told["seeded"][0] == random.Random(11).randrange(10**9)
        assert told["workers"] == 1
        assert told["order"] == [*range(8, 20), *range(8)]  # offset 9 is in the third batch of four
        assert told["stream"] == [18, 19]  # nine batches of two were thrown away
        assert (told["tracker"], told["sitecustomize"]) == ("disabled", "mine")
        assert "amdahl_steps_total 5" in told["metrics"]

    def test_what_was_placed_is_recorded(self, scripts: Scripts) -> None:
        """Knobs with what was ignored and why; the offset once for each kind of data."""
        lines = scripts.lines("package")

        assert [(line["applied"], line["ignored"]) for line in lines if line["k"] == "knob"] == [
            ({"dataloaderWorkers": 1}, {"pinMemory": "no CUDA device"})
        ]
        assert [(line["offset"], line["seed"], line["applied"]) for line in lines if line["k"] == "offset"] == [
            (9, 11, True)
        ]

    def test_other_formats_are_checkpoints_too(self, scripts: Scripts) -> None:
        """`safetensors.torch`, which is imported after torch: one save, though one saver calls the other."""
        saves = [(line["step"], "durable" in line) for line in scripts.lines("package") if line["k"] == "save"]

        assert saves == [(2, False), (2, True)]

    def test_compiling_steps_are_warmup(self, scripts: Scripts) -> None:
        """The first step compiles; a later one that does (another shape) would be tagged too."""
        steps = scripts.steps("package")

        assert [step["i"] for step in steps if "warmup" in step["tags"]] == [0]
        assert len(steps) == 5


class TestBystanders:
    """Processes that the probe must leave alone."""

    @pytest.fixture
    def run(self, bare_env: dict[str, str], tmp_path: Path) -> Callable[..., Ran]:
        """Run a few words of Python with the probe's environment."""

        def run(path: Path, words: str) -> Ran:
            env = {**bare_env, "PYTHONPATH": str(path), "AMDAHL_TELEMETRY_DIR": str(tmp_path / "told")}
            ran = subprocess.run([PYTHON, "-c", words], env=env, capture_output=True, text=True, check=False)
            return Ran(ran.returncode, ran.stdout, ran.stderr)

        return run

    def test_a_script_without_torch_is_untouched(
        self, run: Callable[..., Ran], probe_zip: Path, tmp_path: Path
    ) -> None:
        """Nothing is written, and nothing of the probe but its import hook is loaded."""
        words = "import sys; print(sorted(m for m in sys.modules if m.startswith('amdahl')))"

        assert run(probe_zip, words) == Ran(0, "['amdahl_probe', 'amdahl_probe.hook']\n", "")
        assert not (tmp_path / "told").exists()

    @pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
    def test_an_unreadable_zip_leaves_the_script_alone(
        self, content: bytes, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        """Python passes over it."""
        (tmp_path / "broken.zip").write_bytes(content)

        assert run(tmp_path / "broken.zip", "print(1)") == Ran(0, "1\n", "")

    def test_an_error_in_the_users_own_sitecustomize_is_theirs(
        self, bare_env: dict[str, str], probe_zip: Path, tmp_path: Path
    ) -> None:
        """Python says what it says without the probe, and the probe enters all the same."""
        (tmp_path / "sitecustomize.py").write_text("raise RuntimeError('theirs')\n")
        words = "import sys; print('amdahl_probe.hook' in sys.modules)"
        said = []
        for path in ([tmp_path], [probe_zip, tmp_path]):
            env = {**bare_env, "PYTHONPATH": os.pathsep.join(map(str, path)), "AMDAHL_RUN_ID": "x"}
            said.append(subprocess.run([PYTHON, "-c", words], env=env, capture_output=True, text=True, check=True))

        assert said[0].stderr == said[1].stderr != ""
        assert [ran.stdout for ran in said] == ["False\n", "True\n"]


def test_all_steps_parse_as_the_supervisor_reads_them(scripts: Scripts) -> None:
    """The probe's own records are believed: none refused, each step a `Step`."""
    scripts.result("loops")
    raw = (scripts.directory("loops") / "rank-0.jsonl").read_bytes().splitlines()

    assert sum(isinstance(records.parse(line), Step) for line in raw) == 12
