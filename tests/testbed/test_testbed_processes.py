"""Is no process ever hit but the one that was recorded?"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from testbed import processes
from testbed.cluster import wait_for

SLEEP = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends only when told to."""
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as process:
        yield process
        process.kill()


def test_a_recorded_process_is_stopped(sleeper: subprocess.Popen[bytes]) -> None:
    """SIGTERM is enough for a polite one."""
    known = processes.identify(sleeper.pid)
    assert known is not None
    processes.stop(known)
    assert sleeper.wait() == -signal.SIGTERM
    assert not processes.is_alive(known)
    processes.stop(known)  # a second time does nothing


def test_a_process_that_took_over_the_id_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    """The same id with another start time is somebody else."""
    known = processes.identify(sleeper.pid)
    assert known is not None
    processes.stop(replace(known, start_ticks=known.start_ticks - 1))
    assert sleeper.poll() is None


def test_a_deaf_process_is_killed() -> None:
    """After the grace period comes SIGKILL."""
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"deaf\n"
        known = processes.identify(process.pid)
        assert known is not None
        processes.stop(known, grace_s=0.1)
        assert process.wait() == -signal.SIGKILL


def test_a_server_dies_with_its_parent(tmp_path: Path) -> None:
    """However the parent ends, the kernel ends the child."""
    parent = f"""
import os, pathlib, signal
from testbed import processes
child = processes.spawn(["{sys.executable}", "-c", "{SLEEP}"], pathlib.Path("{tmp_path}/log"))
pathlib.Path("{tmp_path}/pid").write_text(str(child.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", parent], env=environment, check=False)
    child = int((tmp_path / "pid").read_text())
    wait_for(lambda: processes.identify(child) is None, 30, "the child has ended")
