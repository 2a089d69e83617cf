"""kill -9 during a save: the run goes on from the last durable step, as if nothing had happened."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from amdahl_trainer.errors import Exit

SCRIPT = Path(__file__).with_name("killed_at.py")

#: Saves at 2, 4 and 6, of which two are kept: the third one commits and then retires the first.
SAVING = {"checkpoint.every_steps": 2, "checkpoint.keep": 2, "run.max_steps": 9, "optim.decay_steps": 9}

#: Before which operation of the third save the process dies, and the step that is durable then.
INSTANTS = [
    (r"os.mkdir \.draft-step-00000006-\w+", 4),
    (r"open \.draft-step-00000006-\w+/__0_0.distcp", 4),
    (r"open \.draft-step-00000006-\w+/\.metadata.tmp", 4),
    (r"os.rename \.draft-step-00000006-\w+", 4),
    (r"os.rename step-00000002", 6),
    (r"shutil.rmtree \.draft-step-00000002-\d+", 6),
]


def goes_on_from(step, killed, resumed, whole):
    """The second process resumed at `step`, no earlier than the first had said, and lost nothing of the curve."""
    said = [save["step"] for save in killed.of("save") if save.get("durable")]
    assert (int(step), max(said, default=0) <= step) == (
        int(re.findall(r"resumed .*: step (\d+)", resumed.output)[-1]),
        1,
    )
    assert killed.losses == whole.losses[: len(killed.losses)]
    assert resumed.losses == whole.losses[step:]
    assert resumed.sample_digests == whole.sample_digests[step:]


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_killed_before_any_operation_of_a_save_a_run_loses_nothing_durable(start, run, asynchronous):
    """Six instants, sync and thread: resumed from the last commit, losses and samples of an uninterrupted run."""
    saving = {**SAVING, "checkpoint.async_save": asynchronous}
    whole = run("whole", saving)
    assert whole.codes == [Exit.FINISHED]
    for number, (instant, step) in enumerate(INSTANTS):
        killed = start(f"killed{number}", saving, out=f"{number}", script=str(SCRIPT), environ={"KILL_AT": instant})
        killed = killed.join()
        assert killed.codes == [-signal.SIGKILL], (instant, killed.output)
        resumed = run(f"resumed{number}", saving, out=f"{number}")
        assert resumed.codes == [Exit.FINISHED], resumed.output
        goes_on_from(step, killed, resumed, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "instant", "step"),
    [
        ("both", r"os.rename \.draft-step-00000006-\w+", 4),
        ("both", r"os.rename step-00000002", 6),
        ("trainer", r"open \.draft-step-00000006-\w+/\.metadata.tmp", 4),
    ],
)
def test_killed_while_a_process_of_its_own_writes_a_run_loses_nothing_durable(
    start, run, tmp_path, whom, instant, step
):
    """Both die with the machine; or the trainer alone: then the writer, an orphan, commits nothing."""
    saving = {**SAVING, "checkpoint.async_save": True, "checkpoint.async_mode": "process"}
    entry = tmp_path / "entry"
    entry.mkdir()
    (entry / "sitecustomize.py").write_text(f"import runpy\nrunpy.run_path({str(SCRIPT)!r})['install']()\n")
    told = {"KILL_AT": instant, "KILL_WHOM": whom, "PYTHONPATH": str(entry)}
    killed = start("killed", {**saving, "run.max_steps": 100_000}, out="both", environ=told).join()
    assert killed.codes == [-signal.SIGKILL], killed.output
    whole = run("whole", saving)
    resumed = run("resumed", {**saving, "checkpoint.async_mode": "thread"}, out="both")
    assert resumed.codes == [Exit.FINISHED], resumed.output
    assert resumed.losses == whole.losses[step:]
    assert f"step {step}, " in resumed.output
