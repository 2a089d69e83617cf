"""How does a container image come about with no Docker engine and no registry?

An image is described as layers of files from this machine. It is written as an OCI layout: a folder of blobs named by their SHA-256, with an index
(https://github.com/opencontainers/image-spec). The same files give the same digests, whoever owns them here.
"""

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

PLATFORM = {"architecture": "amd64", "os": "linux"}
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CHUNK = 1 << 20


class ImageError(Exception):
    """An image cannot be made of what it is described by; the message names the file."""


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    to: str


@dataclass(frozen=True)
class NewFolder:
    """An empty folder."""

    mode: int = 0o755


@dataclass(frozen=True)
class Entry:
    """A file, or a folder with all below it, and where it goes. Bytes stand for a small file that is nowhere on this machine."""

    source: Path | bytes | Link | NewFolder
    target: str
    left_out: frozenset[str] = frozenset()  # names of files and folders, at any depth


@dataclass(frozen=True)
class Image:
    """What `Dockerfile`s say with FROM scratch, COPY, ENV, USER, WORKDIR, ENTRYPOINT and CMD."""

    name: str
    layers: tuple[tuple[Entry, ...], ...]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = "65532"
    folder: str = "/"

    @property
    def full_name(self) -> str:
        """The name as a container runtime stores it: with a registry host and a tag."""
        first, slash, _ = self.name.partition("/")
        has_host = slash and ("." in first or ":" in first or first == "localhost")
        hosted = self.name if has_host else f"docker.io/{self.name if slash else f'library/{self.name}'}"
        return hosted if ":" in hosted.rpartition("/")[2] else f"{hosted}:latest"


def write_layout(image: Image, folder: Path) -> Path:
    """Write an image as an OCI layout into a new folder; returns the folder.

    Raises:
        ImageError: a source is missing.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = [_write_layer(layer, blobs) for layer in image.layers]
    settings: dict[str, Any] = {
        "Env": [f"{name}={value}" for name, value in image.environment.items()],
        "Entrypoint": list(image.entrypoint),
        "Cmd": list(image.command),
        "User": image.user,
        "WorkingDir": image.folder,
    }
    # Uncompressed layers: the digest of what is stored is also the digest of what is unpacked.
    root = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    config = _write_json(
        blobs,
        CONFIG_TYPE,
        {**PLATFORM, "config": {name: value for name, value in settings.items() if value}, "rootfs": root},
    )
    manifest = _write_json(
        blobs, MANIFEST_TYPE, {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
    )
    named = {**manifest, "platform": PLATFORM, "annotations": {"io.containerd.image.name": image.full_name}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return folder


def write_archive(layout: Path, output: IO[bytes]) -> None:
    """Stream a layout as the tar file that container runtimes import."""
    with tarfile.open(fileobj=output, mode="w|") as archive:
        for path in sorted(layout.rglob("*")):
            archive.add(path, str(path.relative_to(layout)), recursive=False)


def programs(*paths: Path) -> tuple[Entry, ...]:
    """Programs at their own paths, with every shared library that they load at the path where the loader looks for it.

    Links are resolved: what goes in is the file that a link leads to, under the link's name. A static program brings no library.
    """
    return tuple(Entry(path.resolve(), str(path)) for path in (*paths, *shared_libraries(*paths)))


def shared_libraries(*paths: Path) -> list[Path]:
    """What the dynamic loader loads for programs and libraries, the loader included; nothing for static ones.

    Raises:
        ImageError: one of them is not on this machine.
    """
    if not paths:
        return []
    said = subprocess.run(["ldd", *paths], check=False, capture_output=True, text=True).stdout
    missing = sorted(set(re.findall(r"^\s*(\S+) => not found", said, re.MULTILINE)))
    if missing:
        raise ImageError(
            f"{', '.join(map(str, paths))}: {', '.join(missing)} not found on this machine: install what brings it"
        )
    return sorted({Path(found) for found in re.findall(r"(/\S+) \(0x", said)})


def _write_layer(layer: Iterable[Entry], blobs: Path) -> dict[str, Any]:
    """Write one layer as a tar file; returns its descriptor."""
    unnamed = blobs / ".layer"
    with unnamed.open("wb") as output:
        with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
            made: set[str] = set()
            for entry in layer:
                for target, source in _files(entry):
                    _add(archive, target, source, made)
        size = output.tell()
    digest = _digest(unnamed)
    unnamed.rename(blobs / digest)
    return {"mediaType": LAYER_TYPE, "digest": f"sha256:{digest}", "size": size}


def _files(entry: Entry) -> Iterator[tuple[PurePosixPath, Path | bytes | Link | NewFolder]]:
    """Every file, link and folder of an entry with its target, in an order that does not depend on the file system."""
    target = PurePosixPath(entry.target.lstrip("/"))
    source = entry.source
    if not isinstance(source, Path):
        yield target, source
        return
    if not os.path.lexists(source):
        raise ImageError(f"{source}, meant for {entry.target} in an image, is not there")
    yield target, source
    if source.is_dir() and not source.is_symlink():
        for child in sorted(source.iterdir()):
            if child.name not in entry.left_out:
                yield from _files(Entry(child, str(target / child.name), entry.left_out))


def _add(
    archive: tarfile.TarFile, target: PurePosixPath, source: Path | bytes | Link | NewFolder, made: set[str]
) -> None:
    """Add one file, link or folder, after the folders above it; what is there already stays."""
    for parent in reversed(target.parents[:-1]):
        if str(parent) not in made:
            made.add(str(parent))
            archive.addfile(_new(parent, tarfile.DIRTYPE, 0o755))
    if str(target) in made:
        return  # two entries may bring one library
    made.add(str(target))
    if isinstance(source, Path):
        _add_from_machine(archive, target, source)
    elif isinstance(source, NewFolder):
        archive.addfile(_new(target, tarfile.DIRTYPE, source.mode))
    elif isinstance(source, Link):
        header = _new(target, tarfile.SYMTYPE, 0o777)
        header.linkname = source.to
        archive.addfile(header)
    else:
        header = _new(target, tarfile.REGTYPE, 0o644)
        header.size = len(source)
        archive.addfile(header, io.BytesIO(source))


def _add_from_machine(archive: tarfile.TarFile, target: PurePosixPath, source: Path) -> None:
    header = archive.gettarinfo(source, str(target))
    if header.islnk():  # a second name of a file that is in already: it goes in as a file of its own
        header.type, header.linkname, header.size = tarfile.REGTYPE, "", source.stat().st_size
    header.uid = header.gid = 0
    header.uname = header.gname = ""
    header.mtime = int(header.mtime)  # kept, or Python would not believe its compiled files
    # Whoever runs the container is not whoever owns these files here.
    header.mode |= 0o555 if header.isdir() or header.mode & 0o100 else 0o444
    if header.isreg():
        with source.open("rb") as content:
            archive.addfile(header, content)
    elif header.isdir() or header.issym():
        archive.addfile(header)


def _new(target: PurePosixPath, kind: bytes, mode: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(str(target))
    header.type, header.mode = kind, mode
    return header


def _write_json(blobs: Path, media_type: str, value: Mapping[str, Any]) -> dict[str, Any]:
    content = json.dumps(value, sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
