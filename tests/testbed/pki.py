"""Who is who in a testbed cluster? One certificate authority per cluster, and certificates for servers and users signed by it.

Uses the openssl command (3.0 or newer): one call per certificate, a few milliseconds each.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DAYS = "30"  # a testbed lives for hours
EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")


class OpensslError(Exception):
    """The openssl command is missing or refused; the message holds what it said."""


@dataclass(frozen=True)
class KeyPair:
    """Two PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority: a folder with `ca.crt`, `ca.key` and the certificates it signed."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """The PEM file that clients trust."""
        return self.folder / "ca.crt"

    @property
    def key(self) -> Path:
        """The PEM file that signs."""
        return self.folder / "ca.key"

    def sign_client(self, file: str, user: str, groups: Sequence[str] = ()) -> KeyPair:
        """A client certificate: Kubernetes reads the user from the common name and the groups from the organisations."""
        return self._sign(file, [("CN", user), *(("O", group) for group in groups)], "clientAuth", ())

    def sign_server(self, file: str, names: Sequence[str]) -> KeyPair:
        """A server certificate for these names, each `DNS:name` or `IP:address`; usable as a client's too, as etcd's peers need."""
        return self._sign(file, [("CN", file)], "serverAuth,clientAuth", names)

    def _sign(self, file: str, subject: Sequence[tuple[str, str]], usage: str, names: Sequence[str]) -> KeyPair:
        pair = KeyPair(self.folder / f"{file}.crt", self.folder / f"{file}.key")
        extensions = [
            "basicConstraints=critical,CA:false",
            "keyUsage=critical,digitalSignature",
            f"extendedKeyUsage={usage}",
        ]
        extensions += [f"subjectAltName={','.join(names)}"] if names else []
        signer: list[str | Path] = ["-CA", self.certificate, "-CAkey", self.key]
        _certify(self.folder, [*signer, *EC_KEY], subject, extensions, pair)
        return pair


def create_authority(folder: Path) -> Authority:
    """A new authority in `folder`, with a key of its own."""
    folder.mkdir(mode=0o700, parents=True)
    # openssl's own configuration file would add extensions of its own: it gets this empty one instead.
    (folder / "openssl.cnf").write_text("[req]\ndistinguished_name = subject\n[subject]\n")
    authority = Authority(folder)
    extensions = ["basicConstraints=critical,CA:true", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]
    _certify(folder, [*EC_KEY], [("CN", "amdahl-testbed")], extensions, KeyPair(authority.certificate, authority.key))
    return authority


def create_signing_key(path: Path) -> KeyPair:
    """The EC key with which the API server signs service account tokens; `certificate` holds the bare public key."""
    pair = KeyPair(path.with_suffix(".pub"), path.with_suffix(".key"))
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", pair.key)
    _openssl("pkey", "-in", pair.key, "-pubout", "-out", pair.certificate)
    return pair


def create_request(path: Path, user: str, groups: Sequence[str]) -> KeyPair:
    """A certificate signing request and its key, for a cluster whose authority is not ours; `certificate` holds the request."""
    path.parent.joinpath("openssl.cnf").write_text("[req]\ndistinguished_name = subject\n[subject]\n")
    pair = KeyPair(path.with_suffix(".csr"), path.with_suffix(".key"))
    subject = _subject([("CN", user), *(("O", group) for group in groups)])
    _openssl(
        "req",
        "-new",
        "-config",
        path.parent / "openssl.cnf",
        *EC_KEY,
        "-subj",
        subject,
        "-keyout",
        pair.key,
        "-out",
        pair.certificate,
    )
    return pair


def _certify(
    folder: Path,
    how: Sequence[str | Path],
    subject: Sequence[tuple[str, str]],
    extensions: Sequence[str],
    pair: KeyPair,
) -> None:
    added = [part for extension in extensions for part in ("-addext", extension)]
    into: list[str | Path] = ["-keyout", pair.key, "-out", pair.certificate]
    _openssl(
        "req",
        "-x509",
        "-config",
        folder / "openssl.cnf",
        "-days",
        DAYS,
        "-subj",
        _subject(subject),
        *how,
        *added,
        *into,
    )


def _subject(parts: Sequence[tuple[str, str]]) -> str:
    """A subject as openssl reads it: `/CN=name/O=group`, with its own separators escaped."""
    escaped = ((kind, value.replace("\\", "\\\\").replace("/", "\\/").replace("+", "\\+")) for kind, value in parts)
    return "".join(f"/{kind}={value}" for kind, value in escaped)


def _openssl(*arguments: str | Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        raise OpensslError(
            "openssl is not on PATH: the testbed signs its certificates with it. Install openssl 3.0 or newer (Debian: apt-get install openssl)"
        )
    ran = subprocess.run([openssl, *map(str, arguments)], check=False, capture_output=True, text=True)
    if ran.returncode:
        raise OpensslError(f"openssl {arguments[0]} failed (3.0 or newer is needed): {ran.stderr.strip()}")
