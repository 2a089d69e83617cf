"""Which Python runs what: our own helper programs without anything of the user's, and the user's job with all of it?"""

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from amdahl_loop.adapters.local.requests import base_environment

_CODE = (
    "import runpy, sys; sys.path.insert(0, sys.argv[1]); name = sys.argv[2]; sys.argv[:] = sys.argv[2:]; "
    "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


def run_module(module: str) -> list[str]:
    """A command that runs a module on the standard library alone: no site, no PYTHONPATH, at once.

    OSError when its package is not installed; the package is found, not imported.
    """
    package = module.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise OSError(f"package {package} is not installed beside this program; install amdahl-loop again")
    root = Path(next(iter(spec.submodule_search_locations))).parent
    return [sys.executable, "-I", "-S", "-c", _CODE, str(root), module]


def inherit(environ: Mapping[str, str]) -> dict[str, str]:
    """What the processes of a job inherit: where no environment is activated, the loop's own that could train is."""
    is_activated = bool({"VIRTUAL_ENV", "CONDA_PREFIX"} & set(environ))
    return base_environment(environ, Path(sys.executable), beside=not is_activated and _has_torch())


def _has_torch() -> bool:
    """Whether the loop's own interpreter is one that could train."""
    return importlib.util.find_spec("torch") is not None


def bundle_probe(state_dir: Path) -> Path:
    """The probe as a zip, made once for these sources; OSError says why it cannot be packed."""
    command = [*run_module("amdahl_probe.bundle"), str(state_dir / "probe")]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode != 0:
        raise OSError(f"the probe cannot be packed: {told.stderr.strip().rpartition(chr(10))[2]}")
    return Path(told.stdout.strip())
