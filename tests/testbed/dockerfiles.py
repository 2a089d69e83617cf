"""How does an ordinary Dockerfile become an image with no Docker engine and no registry? Buildah carries out the very file, in a chroot.

Only the base differs: what a registry would give is made here of Debian's packages, with the same release of Python. It is named by the build
argument `BASE`, so that not a line of a Dockerfile is for tests. `PYTHONPATH=tests python -m testbed.dockerfiles` makes the images by hand.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed import packages
from testbed.binaries import cache_home
from testbed.images import Image, ImageError

ROOT = Path(__file__).parents[2]
IMAGES = {"operator": "amdahl-loop/operator:dev", "trainer": "amdahl-loop/trainer:dev"}
SUITE = "bookworm"  # Debian 12, which the base named in the Dockerfiles stands on too; its Python is 3.11
# A C++ runtime is what PyTorch wants of the system; python3-venv makes environments. python.org's image has apt and Python's headers, too.
INCLUDED = ("apt", "ca-certificates", "libpython3.11-dev", "libstdc++6", "python3-venv")
LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
BASE = "localhost/amdahl-testbed/python"
# What a machine may have to say about the way to the package index; the rest of its pip settings is its own business.
PIP_SETTINGS = frozenset({"index-url", "extra-index-url", "trusted-host", "cert", "client-cert", "proxy", "timeout"})


def build(what: str) -> Path:
    """The image of `images/WHAT.Dockerfile` as an OCI layout; built once for each content of the files that go into it.

    Raises:
        ImageError: a step failed; the message holds its last words.
        MachineError: this machine cannot build images as it is.
    """
    recipe = ROOT / "images" / f"{what}.Dockerfile"
    layout = _home() / f"{what}-{_digest(recipe)}"
    with _lock():
        if not layout.exists():
            packages.ensure_builders()
            _build(recipe, IMAGES[what], layout)
    return layout


def context_files(recipe: Path) -> list[Path]:
    """Every file that the builder gets, by the lines of the ignore file that let one through."""
    lines = recipe.with_name(f"{recipe.name}.dockerignore").read_text().splitlines()
    sources = [ROOT / line[1:] for line in lines if line.startswith("!")]
    found = {path for source in sources for path in (source, *source.rglob("*")) if path.is_file()}
    return sorted(path for path in found if "__pycache__" not in path.parts)


def size(layout: Path) -> int:
    """Bytes of an image as a registry would hold it: compressed layers."""
    return sum(path.stat().st_size for path in (layout / "blobs" / "sha256").iterdir())


def _digest(recipe: Path) -> str:
    digest = hashlib.sha256(repr((SUITE, INCLUDED, LEFT_OUT)).encode())
    for path in (recipe, *context_files(recipe)):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _build(recipe: Path, name: str, layout: Path) -> None:
    begun_s = time.monotonic()
    print(
        f"testbed: building {name} from {recipe.relative_to(ROOT)}, once for this content", file=sys.stderr, flush=True
    )
    _buildah("rm", "--all")  # what a build that was killed has left
    base, made = _base(), f"localhost/amdahl-testbed/{recipe.stem}"
    with tempfile.TemporaryDirectory(dir=_home(), prefix=".") as scratch:
        _buildah(
            "build",
            "--isolation=chroot",
            "--network=host",
            f"--build-arg=BASE={base}",
            *(f"--volume={volume}" for volume in _lend(Path(scratch))),
            f"--file={recipe}",
            f"--ignorefile={recipe}.dockerignore",
            f"--tag={made}",
            ROOT,
        )
        half_done = Path(scratch) / "layout"
        _buildah("push", made, f"oci:{half_done}")
        _buildah("rmi", made)
        _name(half_done, Image(name, ()).full_name)
        half_done.rename(layout)
    took_s = time.monotonic() - begun_s
    print(f"testbed: built {name} in {took_s:.0f} s, {size(layout) / 1e6:.0f} MB", file=sys.stderr, flush=True)


def _base() -> str:
    """The base's name in buildah's storage: a Debian with Python, and nothing that asks for a terminal or a manual."""
    key = hashlib.sha256(repr((SUITE, INCLUDED, LEFT_OUT)).encode()).hexdigest()[:12]
    name = f"{BASE}:{key}"
    if name in _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        return name
    with tempfile.TemporaryDirectory(dir=_home(), prefix=".") as scratch:
        left_out = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
        tar = Path(scratch) / "base.tar"
        _run("mmdebstrap", "--variant=essential", f"--include={','.join(INCLUDED)}", *left_out, SUITE, tar)
        container = _buildah("from", "scratch").strip()
        _buildah("add", container, tar, "/")
        _buildah("commit", "--rm", container, name)
    return name


def _lend(scratch: Path) -> Iterator[str]:
    """This machine's way to the package index, for the time of the build: pip's settings, and the authorities that they name."""
    said = _run(sys.executable, "-m", "pip", "config", "list")
    settings = {}
    for line in said.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in PIP_SETTINGS:
            settings[key] = value.strip("'\"")
    file = scratch / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in sorted(settings.items())))
    yield f"{file}:/etc/pip.conf:ro"
    for key in ("cert", "client-cert"):
        if key in settings:
            yield f"{settings[key]}:{settings[key]}:ro"


def _name(layout: Path, full_name: str) -> None:
    """Write the image's name where container runtimes look for it."""
    file = layout / "index.json"
    index = json.loads(file.read_text())
    (manifest,) = index["manifests"]
    manifest["annotations"] = {"io.containerd.image.name": full_name}
    file.write_text(json.dumps(index))


def _buildah(*arguments: str | Path) -> str:
    """Run buildah on a storage of its own."""
    storage = _home() / "storage"
    return _run("buildah", f"--root={storage}", f"--runroot={storage}/run", *arguments)


def _run(*command: str | Path) -> str:
    ran = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ran.returncode:
        words = "\n".join((ran.stdout + ran.stderr).splitlines()[-25:])
        raise ImageError(f"{command[0]} {command[-1]} failed:\n{words}")
    return ran.stdout


def _home() -> Path:
    folder = cache_home() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _lock() -> Iterator[None]:
    """One build at a time."""
    with (_home() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Make images by hand, and say where they are and how large."""
    parser = argparse.ArgumentParser(prog="python -m testbed.dockerfiles", description="Build the project's images.")
    parser.add_argument("images", nargs="*", default=sorted(IMAGES), choices=sorted(IMAGES))
    parser.add_argument("--remove", action="store_true", help="remove every image built so far, and the base")
    options = parser.parse_args()
    if options.remove:
        with _lock():
            if shutil.which("buildah"):
                _buildah("rmi", "--all", "--force")
            shutil.rmtree(_home())
        return 0
    try:
        for what in options.images:
            layout = build(what)
            print(f"{IMAGES[what]}: {size(layout) / 1e6:.0f} MB in {os.path.relpath(layout)}")
    except (ImageError, packages.MachineError) as problem:
        print(f"testbed: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
