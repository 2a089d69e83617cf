"""Where do a cluster's pods stand in the machine's cgroup tree? In one folder per cluster and node, under every controller, removed with it."""

import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
EMPTY_TIMEOUT_S = (
    60.0  # killed processes leave their cgroup within milliseconds; on a starved machine they must first get to run
)


def create(path: str) -> None:
    """Make a cgroup such as `amdahl-testbed-0/node-1` under every controller."""
    for hierarchy in _hierarchies():
        folder = hierarchy
        for part in path.split("/"):
            above, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            _let_children_use(above, folder)


def remove(path: str) -> None:
    """Remove a cgroup and all below it; its processes must have been killed. Does nothing where there is none.

    Raises:
        TimeoutError: something in it still runs.
    """
    deadline = time.monotonic() + EMPTY_TIMEOUT_S
    # Wherever it is: a runtime makes its own also in a cgroup2 mount beside v1 controllers.
    for hierarchy in (ROOT, *ROOT.iterdir()):
        while not _is_removed(hierarchy / path):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"processes still run in cgroup {hierarchy / path}: end them, then run `python -m testbed down` again"
                )
            time.sleep(0.05)


def _hierarchies() -> Iterator[Path]:
    """The roots under which to create: one with cgroup v2, one per controller with v1."""
    if (ROOT / "cgroup.controllers").exists():
        yield ROOT
        return
    for folder in sorted(ROOT.iterdir()):
        # A cgroup2 mount beside v1 controllers has no controllers of its own, so nothing is limited there.
        if (folder / "tasks").exists() and not folder.is_symlink():
            yield folder


def _let_children_use(above: Path, folder: Path) -> None:
    """A new cgroup has no CPUs (v1) or no controllers (v2) until it is given what its parent has."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (folder / file).exists() and (folder / "tasks").exists():
            (folder / file).write_text((above / file).read_text())
    if (above / "cgroup.subtree_control").exists():
        wanted = (above / "cgroup.controllers").read_text().split()
        (above / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))


def _is_removed(top: Path) -> bool:
    """Try to remove a tree of cgroups from its leaves up; False while one is still busy."""
    try:
        for folder in sorted((path for path in top.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts)):
            folder.rmdir()
        if top.exists():
            top.rmdir()
    except FileNotFoundError:
        return False  # a runtime removed one beside us: look again
    except OSError:
        return False
    return True
