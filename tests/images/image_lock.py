"""What goes into an image? The part of the project's lock that it needs: the operator's holds no torch.

`PYTHONPATH=tests python -m images.image_lock` writes it beside the Dockerfiles; a test holds what is there against it. Pins
and hashes are copied from requirements.lock as they are, so the images run what the tests ran.
"""

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FILES = {
    "operator.lock": "amdahl-loop[operator]",
    "trainer.lock": "amdahl-loop[trainer]",
    "build.lock": "hatchling",
}
"""What is locked: the operator, the trainer, and the tool that builds their wheel."""

_ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==.*\n(?:    --hash=.*\n)+", re.MULTILINE)
# The platform of the images, whatever the platform that this runs on.
_IMAGE = {
    "python_version": "3.11",
    "python_full_version": "3.11.0",
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
}


def select(root: str) -> str:
    """The lock's entries for a requirement and everything that it requires on the image's platform."""
    wanted = {canonicalize_name(requirement.name) for requirement in _closure(Requirement(root))}
    lock = (ROOT / "requirements.lock").read_text()
    entries = {canonicalize_name(match["name"]): match[0].rstrip("\\\n") + "\n" for match in _ENTRY.finditer(lock)}
    return "".join(entries[name] for name in sorted(wanted) if name != "amdahl-loop")


def _closure(root: Requirement) -> Iterator[Requirement]:
    """Every requirement that follows from one, by the metadata of what is installed."""
    seen: set[tuple[str, str]] = set()
    queue = [(root, extra) for extra in ("", *sorted(root.extras))]
    while queue:
        requirement, extra = queue.pop()
        key = (canonicalize_name(requirement.name), extra)
        if key in seen:
            continue
        seen.add(key)
        yield requirement
        queue += [
            (needed, part) for needed in _needed(requirement.name, extra) for part in ("", *sorted(needed.extras))
        ]


def _needed(name: str, extra: str) -> Iterable[Requirement]:
    for line in requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None:
            if not extra:
                yield requirement
        elif requirement.marker.evaluate(_IMAGE | {"extra": extra}):
            yield requirement


def main() -> None:
    """Write the lock files of the images."""
    for file, root in FILES.items():
        (ROOT / "images" / file).write_text(select(root))


if __name__ == "__main__":
    main()
