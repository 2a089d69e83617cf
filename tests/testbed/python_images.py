"""How does this machine's Python, with chosen packages, become an image? For tests; the project's Dockerfiles serve everybody else."""

import functools
import importlib.metadata
import re
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from testbed.images import Entry, Image, ImageError, Link, NewFolder, programs, shared_libraries

PREFIX = "/usr/local"
LIBRARY = f"{PREFIX}/lib/python{sys.version_info.major}.{sys.version_info.minor}"
SITE_PACKAGES = f"{LIBRARY}/site-packages"
# Parts of the standard library that no training job and no operator loads; they are two thirds of it.
_LEFT_OUT_OF_STDLIB = frozenset(
    {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages", "dist-packages"}
)


@functools.cache
def python_layer() -> tuple[Entry, ...]:
    """An interpreter at /usr/local/bin/python3, its standard library, /bin/sh and a writable /tmp. About 90 MB."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    interpreter = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    builds = frozenset(path.name for path in stdlib.glob("config-*"))  # what an embedder links against, 60 MB
    windows = frozenset(
        path.name for path in stdlib.glob("lib-dynload/_tkinter*")
    )  # would bring the libraries of a desktop
    extensions = sorted(path for path in stdlib.glob("lib-dynload/*.so") if path.name not in windows)
    return (
        Entry(interpreter, f"{PREFIX}/bin/python3"),
        Entry(Link("python3"), f"{PREFIX}/bin/python"),
        *_outside(interpreter, *extensions, than=stdlib),
        *_unwinder(interpreter, *extensions),
        Entry(stdlib, LIBRARY, _LEFT_OUT_OF_STDLIB | builds | windows),
        *programs(Path("/bin/sh")),
        Entry(b"root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/tmp:/bin/sh\n", "/etc/passwd"),
        Entry(NewFolder(0o1777), "/tmp"),
    )


def packages_layer(*requirements: str, left_out: frozenset[str] = frozenset()) -> tuple[Entry, ...]:
    """The files of installed distributions, such as `kopf` or `aiohttp[speedups]`, of all that they require, and of the libraries they link.

    A package installed in place (`pip install -e`) has no files here: add its folder as an `Entry` below `SITE_PACKAGES`.

    Raises:
        ImageError: one of them is not installed in this environment.
    """
    entries = []
    for distribution in _closure(requirements, left_out):
        files = distribution.files or []
        # Scripts lie outside of site-packages and name this environment's interpreter: they stay here.
        inside = [file for file in files if ".." not in file.parts]
        tops = sorted({file.parts[0] for file in inside})
        root = Path(str(distribution.locate_file("")))
        entries += [
            Entry(root / top, f"{SITE_PACKAGES}/{top}", frozenset({"tests"})) for top in tops if (root / top).exists()
        ]
    root = Path(sysconfig.get_path("purelib"))
    extensions = [
        path
        for entry in entries
        if isinstance(entry.source, Path)
        for path in entry.source.rglob("*.so*")
        if path.is_file()
    ]
    return (*entries, *_outside(*extensions, than=root))


def python_image(name: str, *layers: tuple[Entry, ...], command: tuple[str, ...] = ()) -> Image:
    """The interpreter and these layers, run as a user without rights."""
    environment = {"PATH": f"{PREFIX}/bin:/usr/bin:/bin", "PYTHONUNBUFFERED": "1", "HOME": "/tmp"}
    return Image(
        name, (python_layer(), *layers), entrypoint=(), command=command or ("python3",), environment=environment
    )


def _unwinder(*files: Path) -> list[Entry]:
    """The library that glibc opens by name when a thread ends early, and aborts without: `ldd` does not know of it."""
    linked = {library.name: library for library in shared_libraries(*files)}
    found = linked["libc.so.6"].parent / "libgcc_s.so.1"
    return [] if found.name in linked else [Entry(found.resolve(), str(found))]


def _outside(*files: Path, than: Path) -> list[Entry]:
    """The shared libraries that these files load from elsewhere, each where the loader looks for it."""
    return [
        Entry(library.resolve(), str(library))
        for library in shared_libraries(*files)
        if not library.is_relative_to(than)
    ]


def _closure(requirements: Iterable[str], left_out: frozenset[str]) -> list[importlib.metadata.Distribution]:
    """Installed distributions and all that they require here, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        for extra in {"", *wanted.extras}:
            if name in left_out or (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                found[name] = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                raise ImageError(
                    f"{name}, wanted in an image, is not installed here: add it to the environment that runs the tests"
                ) from None
            needs = [Requirement(text) for text in found[name].requires or []]
            waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return [found[name] for name in sorted(found)]
