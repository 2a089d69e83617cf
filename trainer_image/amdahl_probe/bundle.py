"""How does the probe travel? As one zip, the same bytes for the same sources, named after its content.

`PYTHONPATH=<zip>` is all a process needs: the zip holds the package and, at its root, the `sitecustomize` that enters.
Run as a script, `python <zip>` is the supervisor.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path
from typing import Dict, List

#: The earliest time a zip can hold: fixed, so that equal sources give equal bytes.
EPOCH = (1980, 1, 1, 0, 0, 0)


def build(out_dir: Path) -> Path:
    """Write `amdahl_probe-<sha12>.zip` into `out_dir` and return its path. An equal file is left as it is."""
    data = _zip(_sources())
    path = Path(out_dir) / f"amdahl_probe-{hashlib.sha256(data).hexdigest()[:12]}.zip"
    if not path.is_file() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_bytes(data)
        draft.replace(path)
    return path


def _sources() -> Dict[str, bytes]:
    package = Path(__file__).parent
    files = {f"amdahl_probe/{path.name}": path.read_bytes() for path in sorted(package.glob("*.py"))}
    entry = {path.name: path.read_bytes() for path in sorted((package / "entry").glob("*.py"))}
    return {**files, **entry}


def _zip(files: Dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # a Unix file, whatever built it
            archive.writestr(entry, files[name], zipfile.ZIP_STORED)  # zlib's versions differ in their output
    return buffer.getvalue()


def main(arguments: List[str]) -> int:
    """`python -m amdahl_probe.bundle OUT_DIR`: print the path of the zip."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m amdahl_probe.bundle OUT_DIR\n")
        return 2
    sys.stdout.write(f"{build(Path(arguments[0]))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
