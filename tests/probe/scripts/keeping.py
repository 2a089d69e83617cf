"""How scripts keep their checkpoints, one way a step, on a disk that takes its time: `keeping.py OUT_DIR`.

Renaming and removing take 20 ms each here, so that it can be told where that time was booked. Prints what each way came
to, errors included, and what became of the functions that the probe replaced.
"""

# ruff: noqa: PTH104, PTH105, PTH107, PTH108 (as scripts write it)
import os
import pickle
import shutil
import sys
import tempfile
import time
from pathlib import Path

SLOW_S = 0.02


def slowed(call):
    def slow(*args, **kwargs):
        time.sleep(SLOW_S)
        return call(*args, **kwargs)

    return slow


BUILTINS = {name: getattr(os, name) for name in ("rename", "replace", "remove", "unlink", "fsync")}
if len(sys.argv) > 1:
    for name in ("rename", "replace", "remove", "unlink"):
        setattr(os, name, slowed(BUILTINS[name]))

import torch  # noqa: E402 (after its tools were slowed)


class Way:
    """One way to keep a checkpoint, in a directory of its own that holds an old file and an old directory."""

    def __init__(self, home):
        self.home, self.temporary, self.final = home, home / "new.tmp", home / "new.pt"
        (home / "old").mkdir(parents=True)
        (home / "elsewhere").mkdir()
        for path in ("old.pt", "old/model.pt", "old/optimizer.pt", "elsewhere/notes"):
            (home / path).write_text(path)

    def save(self, path):
        torch.save({"weights": torch.zeros(16)}, path)

    def replace(self):
        self.save(self.temporary)
        os.replace(self.temporary, self.final)

    def rename_named(self):
        self.save(str(self.temporary))
        os.rename(src=str(self.temporary), dst=str(self.final))

    def replace_path(self):
        with self.temporary.open("wb") as file:
            self.save(file)
        self.temporary.replace(self.final)

    def move(self):
        self.save(self.temporary)
        shutil.move(self.temporary, self.final)

    def replace_descriptor(self):
        opened, path = tempfile.mkstemp(dir=self.home)
        with os.fdopen(opened, "wb") as file:
            self.save(file)
            file.flush()
            os.fsync(opened)
        os.replace(path, self.final)

    def rename_directory(self):
        (self.home / "new").mkdir()
        self.save(self.home / "new" / "model.pt")
        (self.home / "new").rename(self.home / "newest")

    def unlink_oldest(self):
        self.save(self.final)
        os.unlink(self.home / "old.pt")

    def unlink_oldest_path(self):
        self.save(self.final)
        (self.home / "old.pt").unlink()

    def remove_oldest_after_rename(self):
        self.save(self.home / "elsewhere" / "model.pt")
        os.rename(self.home / "elsewhere" / "model.pt", self.final)
        os.remove(self.home / "old.pt")

    def remove_oldest_directory(self):
        (self.home / "new").mkdir()
        self.save(self.home / "new" / "model.pt")
        shutil.rmtree(self.home / "old")

    def fail_to_replace(self):
        self.save(self.temporary)
        os.replace(self.temporary, self.home / "nowhere" / "new.pt")

    def rename_without_a_save(self):
        os.rename(self.home / "old.pt", self.final)

    def rename_another_file(self):
        self.save(self.final)
        os.rename(self.home / "elsewhere" / "notes", self.home / "elsewhere" / "read")

    def unlink_elsewhere(self):
        self.save(self.final)
        os.unlink(self.home / "elsewhere" / "notes")

    def replace_nothing(self):
        self.save(self.final)
        os.replace(None, self.final)


WAYS = [name for name in vars(Way) if name not in ("__init__", "save") and not name.startswith("__")]


def train(out):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = torch.utils.data.DataLoader(torch.ones(len(WAYS) + 1, 4), 1)
    for row, name in zip(rows, [*WAYS, None], strict=True):
        optimizer.zero_grad()
        model(row).sum().backward()
        optimizer.step()
        if name is not None:
            way = Way(out / name)
            try:
                told = getattr(way, name)()
            except (OSError, TypeError) as error:
                told = f"{type(error).__name__}: {error}".replace(str(out), "")
            left = sorted(str(path.relative_to(way.home)) for path in way.home.rglob("*") if "tmp" not in path.name)
            print(name, told, left)


class Keeps:
    """A class that keeps a builtin, as a plain attribute."""

    unlink = os.unlink


def look():
    """What a careful script may ask of the functions."""
    for name, original in BUILTINS.items():
        now = getattr(os, name)
        same = [pickle.loads(pickle.dumps(call)) is call for call in (original, now)]
        listed = [(original in known, now in known) for known in (os.supports_fd, os.supports_dir_fd)]
        print(name, same, all(before == after for before, after in listed), now.__name__, repr(now), now.__doc__)
    print(shutil.rmtree.avoids_symlink_attacks, pickle.loads(pickle.dumps(shutil.move)) is shutil.move)
    path = Path(tempfile.mkdtemp(), "file")
    path.write_text("")
    Keeps.unlink = os.unlink
    Keeps().unlink(path)
    print(path.exists())
    shutil.rmtree(path.parent)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]))
    else:
        look()
