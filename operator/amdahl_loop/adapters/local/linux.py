"""Which system calls does the local runner need that Python 3.11 does not offer?

Namespaces, mounts and Landlock through libc, each raising OSError in words. See unshare(2), mount(2),
mount_setattr(2), landlock(7), prctl(2). The numbers are the same on every architecture.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_SYS_MOUNT_SETATTR = 442

_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_ADD_RULE = 445
_SYS_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_VERSION_FLAG = 1
_LANDLOCK_PATH_BENEATH = 1
_LANDLOCK_FILE_WRITES = (1 << 1) | (1 << 14)
"""Rights that make sense for a file: write, truncate."""
_LANDLOCK_WRITES = _LANDLOCK_FILE_WRITES | sum(1 << bit for bit in range(4, 14))
"""Also remove, make of every kind, move between folders."""
LANDLOCK_WITH_TRUNCATE = 3
"""First version that holds back truncate(2): before it, a file could be emptied."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the given namespaces; for who may not, in a user namespace where nobody's identity changes.

    The caller keeps its user and group ids there, so files have the owners they had, and a program it executes has no
    more rights than before. Needs a process with one thread.
    """
    try:
        _check(_libc.unshare(flags), "unshare")
    except PermissionError:
        uid, gid = os.geteuid(), os.getegid()
        _check(_libc.unshare(flags | CLONE_NEWUSER), "unshare with a user namespace")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount a file system, or (MS_BIND) a folder at another place."""
    words = [os.fsencode(word) for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(options)), f"mount {kind or 'bind'} on {target}")


def make_mounts_private() -> None:
    """Nothing mounted from here on is seen outside."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


def set_read_only(path: str, *, read_only: bool, recursive: bool = False) -> None:
    """Make a mount (and all below it) read-only, or writable again."""
    changes = (_MOUNT_ATTR_RDONLY, 0) if read_only else (0, _MOUNT_ATTR_RDONLY)
    attributes = struct.pack("=QQQQ", *changes, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    arguments = (_AT_FDCWD, os.fsencode(path), flags, attributes, ctypes.c_size_t(len(attributes)))
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, *arguments), f"mount_setattr on {path}")


def landlock_version() -> int:
    """Version of Landlock that the kernel speaks, 0 where it has none."""
    return max(0, int(_libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION_FLAG)))


def allow_writes_only_below(paths: Iterable[str]) -> None:
    """For this process and all it starts: no file is made, changed or removed outside of `paths`, for good."""
    rights = struct.pack("=Q", _LANDLOCK_WRITES)
    size = ctypes.c_size_t(len(rights))
    rules = _check(_libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, rights, size, 0), "landlock_create_ruleset")
    for path in paths:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = _LANDLOCK_WRITES if Path(path).is_dir() else _LANDLOCK_FILE_WRITES
        rule = struct.pack("=Qi", allowed, opened)
        _check(_libc.syscall(_SYS_LANDLOCK_ADD_RULE, rules, _LANDLOCK_PATH_BENEATH, rule, 0), f"landlock rule {path}")
        os.close(opened)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(_libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, rules, 0), "landlock_restrict_self")
    os.close(rules)


def signal_on_parent_death(number: int) -> None:
    """Ask the kernel for a signal when the parent dies; the caller checks that it has not died already."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def become_subreaper() -> None:
    """Inherit orphaned descendants, however deep."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")
