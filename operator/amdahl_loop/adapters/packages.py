"""Which packages can a program import, where no image holds them?

A verdict reached with one version of torch says little about the next. Names and versions are read from folder names
(`torch-2.9.0.dist-info`), so that no interpreter is started: those of the environment of the command's first word and
of the `python3` and `python` that PATH leads to, since a shell script or a launcher starts one of these.

Not seen are what an editable installation's folder holds, libraries that are not Python's (conda's, the driver's),
folders on PYTHONPATH, and an interpreter that only the program itself can find, such as pyenv's behind its shims.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

OURS = "amdahl_loop-"
"""The loop itself may be installed beside the job's packages; upgrading it changes no job."""


def list_packages(command: str, folder: Path, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Sorted `python3.11/torch-2.9.0` of all installed distributions that the command's program may see.

    `folder` is the process's working directory, `environment` what the process is started with.
    """
    found: set[str] = set()
    for word in (command, "python3", "python"):
        program = shutil.which(str(folder / word) if os.sep in word else word, path=environment.get("PATH"))
        for site in _find_sites(Path(program), environment) if program else ():
            found.update(f"{site.parent.name}/{name}" for name in _list_distributions(site))
    return tuple(sorted(found))


def _find_sites(program: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """Folders of installed packages: the environment's, and unless it is sealed off those behind it and the user's."""
    prefix, base = program.parent.parent, program.resolve().parent.parent
    yield from prefix.glob("lib/python3*/site-packages")
    if not _is_sealed(prefix):
        yield from base.glob("lib/python3*/site-packages")
        yield from base.glob("lib/python3*/dist-packages")
        yield from base.glob("local/lib/python3*/dist-packages")
        user = environment.get("PYTHONUSERBASE") or Path(environment.get("HOME", os.sep), ".local")
        yield from Path(user).glob("lib/python3*/site-packages")


def _is_sealed(prefix: Path) -> bool:
    """Whether it is a virtual environment that sees no packages but its own."""
    try:
        settings = (prefix / "pyvenv.cfg").read_text(errors="replace").lower().replace(" ", "")
    except OSError:
        return False
    return "include-system-site-packages=true" not in settings.splitlines()


def _list_distributions(site: Path) -> Iterator[str]:
    """`torch-2.9.0` of each distribution's folder (or file: older tools); none of a folder that cannot be read."""
    try:
        entries = list(site.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.suffix in (".dist-info", ".egg-info") and not entry.name.startswith(OURS):
            yield entry.stem
