"""Local runs that are refused or bounded."""

import asyncio
from pathlib import Path

import pytest

from amdahl_loop.adapters.local.runner import LocalRunner, RunnerUnavailableError, RunRefusedError, default_state_dir
from amdahl_loop.domain.resources import TrainingJob
from local_builders import (
    NODE,
    make_job,
    make_request,
)


class TestRefusing:
    @pytest.mark.parametrize(
        ("job", "words"),
        [
            pytest.param(
                make_job(env=[{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
                "env TOKEN: valueFrom cannot be had on one machine; give it a value",
                id="valueFrom",
            ),
            pytest.param(make_job(envFrom=[{"secretRef": {"name": "s"}}]), "envFrom: cannot be had", id="envFrom"),
            pytest.param(
                make_job(env=[{"name": "AMDAHL_SEED", "value": "1"}]), "AMDAHL_SEED: names beginning with", id="ours"
            ),
            pytest.param(make_job(workingDir="nowhere"), "workingDir", id="no such folder"),
            pytest.param(
                make_job(tuning={"trial": {"scratchPaths": ["/no/such/folder"]}}),
                "does not exist; create it",
                id="scratch",
            ),
        ],
    )
    def test_what_cannot_be_had_is_refused_with_the_fix(
        self, runner: LocalRunner, job: TrainingJob, words: str
    ) -> None:
        """Before anything is started, with field and fix."""
        assert any(words in line for line in runner.find_obstacles(job))
        with pytest.raises(RunRefusedError, match=words):
            asyncio.run(runner.submit(job, make_request()))
        assert not (runner._runs_dir / "pydocs-d0").exists()

    def test_several_replicas_are_refused(self, runner: LocalRunner) -> None:
        """One machine is one replica."""
        job = make_job()
        job = job.model_copy(update={"spec": job.spec.model_copy(update={"replicas": 2})})
        assert "set 1, or use a cluster" in runner.find_obstacles(job)[0]

    def test_a_state_folder_that_cannot_be_used_says_so(self, tmp_path: Path, base: Path) -> None:
        """A file where the folder should be stands for any storage that refuses."""
        (tmp_path / "state").write_text("")
        runner = LocalRunner(tmp_path / "state", base, "test", machine=NODE)
        with pytest.raises((RunnerUnavailableError, RunRefusedError), match="state"):
            asyncio.run(runner.submit(make_job(), make_request()))

    @pytest.mark.parametrize(
        ("environ", "folder"),
        [
            ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/amdahl-loop"),
            ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/amdahl-loop"),
            ({"HOME": "/h"}, "/h/.local/state/amdahl-loop"),
        ],
    )
    def test_the_state_folder_follows_the_xdg_convention(self, environ: dict[str, str], folder: str) -> None:
        """Relative values are ignored, as the convention demands."""
        assert default_state_dir(environ) == Path(folder)
