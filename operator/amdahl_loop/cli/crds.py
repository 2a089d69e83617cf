"""The developers' command `python -m amdahl_loop.cli.crds`: writes the CRDs and their page, or says how they drifted.

Run it in the root of the repository. `--check` writes nothing and ends with 1 where a file does not say what the models
say.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from amdahl_loop.adapters.crds import find_drift, write_files


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check; the return value is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m amdahl_loop.cli.crds", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; print differences and end with 1")
    parser.add_argument("--root", type=Path, default=Path(), help="root of the repository (default: here)")
    arguments = parser.parse_args(argv)
    if not arguments.check:
        sys.stdout.writelines(f"{path}\n" for path in write_files(arguments.root))
        return 0
    drift = find_drift(arguments.root)
    sys.stdout.writelines(found.diff for found in drift)
    if drift:
        names = ", ".join(str(found.path) for found in drift)
        sys.stderr.write(f"{names}: out of step with the models; run `python -m amdahl_loop.cli.crds`\n")
    return 1 if drift else 0


if __name__ == "__main__":
    sys.exit(main())
