"""How are our own helper programs started, so that nothing of the user's Python can get in their way?"""

import importlib.util
import subprocess
import sys
from pathlib import Path

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


def has_torch() -> bool:
    """Whether the loop's own interpreter is one that could train."""
    return importlib.util.find_spec("torch") is not None


def bundle_probe(state_dir: Path) -> Path:
    """The probe as a zip, made once for these sources; OSError says why it cannot be packed."""
    command = [*run_module("amdahl_probe.bundle"), str(state_dir / "probe")]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode != 0:
        raise OSError(f"the probe cannot be packed: {told.stderr.strip().rpartition(chr(10))[2]}")
    return Path(told.stdout.strip())
