"""How does a launch see the user's files, so that it may write where it likes and change nothing?

Run as a process of its own for every launch: enter a fresh view, then become the command. In the view called `overlay`

- the working directory, the manifest's folder, the scratch paths, the home folder and the temporary folders are
  copy-on-write: everything is there, and what is written goes to the run's scratch storage;
- /dev/shm is empty and private, the run's report folder is writable, and all other files are read-only.

Where the kernel gives no mount namespace, the view called `copy` runs the command in a copy of its working directory,
and Landlock holds back every write elsewhere. Each launch starts from the user's files as they are: what one window
writes, the next does not see. The view called `plain` is for jobs whose owner declares them isolated: no protection.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from amdahl_loop.adapters.local import linux
from amdahl_loop.adapters.local.processes import remove_tree

MAX_COPY_BYTES = 2 * 2**30
MAX_COPY_FILES = 50_000
"""A copy is made for every launch; beyond this it would take longer than most windows."""

CANNOT_ENTER = 125
"""Exit code when the view cannot be made (as env(1) has it for its own failures)."""
CANNOT_RUN = 126
NOT_FOUND = 127

_OCTAL = re.compile(r"\\([0-7]{3})")
_PSEUDO = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"),
        *("fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "securityfs", "sysfs", "tracefs"),
    )
)
"""File systems without files of anybody's: put back as they are."""


class View(NamedTuple):
    """What to make of the files. All paths are absolute and free of symbolic links."""

    kind: str
    """overlay, copy or plain."""
    cwd: str
    scratch: str
    """Emptied and refilled by every launch."""
    tmp: str
    """A short path for TMPDIR in the view `copy`: sockets are made there, whose paths may have 107 bytes."""
    hidden: str
    """The runner's state: never copied along."""
    reports: tuple[str, ...]
    """Folders whose writes go through to the outside."""
    scratch_paths: tuple[str, ...]
    """Folders that the job writes to by absolute path: copy-on-write, or in the view `copy` written to as they are."""
    essential: tuple[str, ...]
    """Further folders that must be copy-on-write."""
    optional: tuple[str, ...]
    """Folders that are copy-on-write where that is to be had, and read-only elsewhere."""


def enter(view: View) -> str:
    """Enter a fresh view; returns the folder to start in. Raises OSError where the machine does not allow it."""
    if view.kind == "plain":
        return view.cwd
    remove_tree(Path(view.scratch))
    Path(view.scratch).mkdir(parents=True)
    if view.kind == "copy":
        return _enter_copy(view)
    _Overlay(view).enter()
    return view.cwd


class _Mount(NamedTuple):
    """A mount below a covered folder: covering hides it, so it is opened before and put back after."""

    point: str
    kind: str
    opened: int

    @property
    def path(self) -> str:
        """A way to it that no later mount can hide."""
        return f"/proc/self/fd/{self.opened}"


class _Overlay:
    """Everything read-only, then some folders copy-on-write."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._essential = (*view.essential, *view.scratch_paths)
        self._layers = 0
        self._storage = Path(view.scratch)
        self._options = ""

    def enter(self) -> None:
        """Leave the machine's own view of the files for good."""
        view = self._view
        linux.unshare(linux.CLONE_NEWNS)
        self._options = ",userxattr" if _in_user_namespace() else ",redirect_dir=on"
        linux.make_mounts_private()
        own = (*view.reports, view.scratch)
        for path in own:
            linux.mount(path, path, flags=linux.MS_BIND)
        linux.set_read_only("/", read_only=True, recursive=True)
        for path in own:
            linux.set_read_only(path, read_only=False)
        with contextlib.suppress(OSError):  # a container's /proc may be read-only for good
            linux.set_read_only("/proc", read_only=False)
        reports = [(path, os.open(path, os.O_PATH)) for path in view.reports]
        self._find_storage()
        self._cover_all()
        for path, opened in reports:
            linux.mount(f"/proc/self/fd/{opened}", path, flags=linux.MS_BIND)
        if Path("/dev/shm").is_dir():  # noqa: S108 - made private, not used
            linux.mount("shm", "/dev/shm", "tmpfs", 0, "mode=1777")  # noqa: S108 - see above
        empty = self._new_layer()
        linux.mount(str(empty), view.scratch, flags=linux.MS_BIND)  # the layers themselves are nobody's to see

    def _find_storage(self) -> None:
        """Use memory for the layers where the scratch folder's own file system cannot hold them (overlayfs, NFS)."""
        lower, upper, work = (self._new_layer() for _ in range(3))
        try:
            self._mount_overlay(str(lower), str(lower), upper, work)
        except OSError:
            linux.mount("amdahl-view", self._view.scratch, "tmpfs", 0, "mode=0755")
        self._storage = Path(
            f"/proc/self/fd/{os.open(self._view.scratch, os.O_PATH)}"
        )  # whatever covers its path later

    def _mount_overlay(self, lower: str, point: str, upper: Path, work: Path) -> None:
        layers = [os.open(path, os.O_PATH) for path in (upper, work)]
        options = f"lowerdir={lower},upperdir=/proc/self/fd/{layers[0]},workdir=/proc/self/fd/{layers[1]}"
        linux.mount("amdahl-view", point, "overlay", 0, options + self._options)

    def _cover_all(self) -> None:
        """Cover folders from the root down; one that lies in a covered folder is covered with it."""
        own = {*self._view.reports, self._view.scratch}
        mounts = {point: kind for point, kind in _read_mounts() if point not in own}
        covered: list[str] = []
        for folder in sorted({*self._essential, *self._view.optional}):
            if any(_is_below(folder, above) for above in covered) or not Path(folder).is_dir():
                continue
            inner = [_Mount(p, kind, _open(p)) for p, kind in mounts.items() if _is_below(p, folder) and p != folder]
            if self._cover(folder, _Mount(folder, "", os.open(folder, os.O_PATH)), self._is_essential(folder)):
                covered.append(folder)
                for mount in sorted(inner):
                    if mount.opened >= 0:
                        self._restore(mount)

    def _is_essential(self, folder: str) -> bool:
        return any(_is_below(path, folder) for path in self._essential)

    def _restore(self, mount: _Mount) -> None:
        """Put a hidden mount back: copy-on-write like the folder that it lies in, or read-only as it is by now."""
        if mount.kind not in _PSEUDO and Path(mount.path).is_dir():
            self._cover(mount.point, mount, self._is_essential(mount.point))
        else:
            linux.mount(mount.path, mount.point, flags=linux.MS_BIND)

    def _cover(self, folder: str, lower: _Mount, essential: bool) -> bool:
        """Make a folder copy-on-write; False where it stays read-only instead, which only the optional ones may."""
        upper, work = self._new_layer(), self._new_layer()
        status = Path(lower.path).stat()
        with contextlib.suppress(PermissionError):  # not ours to give away; then it is not ours to write to either
            os.chown(upper, status.st_uid, status.st_gid)
        upper.chmod(stat.S_IMODE(status.st_mode))
        try:
            self._mount_overlay(lower.path, folder, upper, work)
        except OSError:
            if essential:
                copy = self._new_layer()
                _copy(Path(lower.path), copy, self._view.hidden)
                linux.mount(str(copy), folder, flags=linux.MS_BIND)
                return True
            if lower.kind:  # a mount of its own: without this its place would be an empty folder
                linux.mount(lower.path, folder, flags=linux.MS_BIND)
            return False
        return True

    def _new_layer(self) -> Path:
        self._layers += 1
        layer = self._storage / str(self._layers)
        layer.mkdir()
        return layer


def _enter_copy(view: View) -> str:
    """Copy the working directory and forbid writes anywhere else."""
    if linux.landlock_version() < linux.LANDLOCK_WITH_TRUNCATE:
        raise OSError("the kernel has no Landlock of version 3 or later (Linux 6.2)")
    copy = Path(view.scratch) / "cwd"
    _copy(Path(view.cwd), copy, view.hidden)
    Path(view.tmp).mkdir(mode=0o700, exist_ok=True)
    os.environ["TMPDIR"] = view.tmp
    linux.allow_writes_only_below([str(copy), view.tmp, "/dev", "/proc", *view.reports, *view.scratch_paths])
    return str(copy)


def _copy(source: Path, target: Path, hidden: str) -> None:
    """Copy a folder, links as links, devices and sockets left out; OSError when it is too large to copy every time."""
    budget = [MAX_COPY_FILES, MAX_COPY_BYTES]

    def leave_out(folder: str, names: list[str]) -> list[str]:
        left_out = []
        for name in names:
            path = Path(folder) / name
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) or str(path.resolve()) == hidden:
                left_out.append(name)
            budget[0] -= 1
            budget[1] -= status.st_size if kind == stat.S_IFREG else 0
        if min(budget) < 0:
            raise OSError(f"{source} is too large to be copied for every launch (over 2 GiB or 50,000 files)")
        return left_out

    shutil.copytree(source, target, symlinks=True, ignore=leave_out, dirs_exist_ok=True)


def _read_mounts() -> list[tuple[str, str]]:
    """Mount points with their file systems, in the order of mounting."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        point = _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), before.split()[4])
        mounts.append((point, after.split()[0]))
    return mounts


def _open(path: str) -> int:
    """A handle on a mount, -1 where we may not even look at it."""
    try:
        return os.open(path, os.O_PATH)
    except OSError:
        return -1


def _in_user_namespace() -> bool:
    """True unless all user ids are those of the machine."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def parse_view(raw: dict[str, Any]) -> View:
    """The view that a runner wrote down."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    return View(**fields)


def main() -> NoReturn:
    """`VIEW.json COMMAND...`: enter the view and become the command."""
    path, *command = sys.argv[1:]
    try:
        os.chdir(enter(parse_view(json.loads(Path(path).read_text()))))
        linux.signal_on_parent_death(signal.SIGKILL)
    except (OSError, shutil.Error) as error:
        sys.stderr.write(f"amdahl-loop: no protected view of the files: {error}\n")
        sys.exit(CANNOT_ENTER)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the user's command is what this is for
    except OSError as error:
        sys.stderr.write(f"amdahl-loop: cannot run {command[0]!r}: {error.strerror}\n")
        sys.exit(NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN)


if __name__ == "__main__":
    main()
