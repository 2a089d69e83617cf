"""Does everything that a user can get wrong end in a message that says what to do?"""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from testbed import access, binaries, pki, starter
from testbed.binaries import BINARIES, MODULES, BuildError
from testbed.cluster import Cluster, attach
from testbed.images import Image
from testbed.layout import Folder, Plan, StateError, create_folder
from testbed.packages import MachineError, ensure


@pytest.fixture(autouse=True)
def _forget_go() -> None:
    """Each test asks anew which Go there is."""
    binaries._go_release.cache_clear()
    binaries.cache_key.cache_clear()


def fake_go(folder: Path, release: str) -> None:
    """A `go` that only knows its release, and fails to build."""
    go = folder / "go"
    go.write_text(f'#!/bin/sh\n[ "$1" = env ] && echo {release} && exit\necho "no such module" >&2\nexit 1\n')
    go.chmod(0o755)


@pytest.mark.parametrize(
    ("release", "message"),
    [
        (None, "go is not on PATH.*https://go.dev/dl.*AMDAHL_KUBECONFIG"),
        ("go1.21.3", "go1.21.3, too old.*1.26 or newer"),
        ("go1.99.0", "go build of go.etcd.io/etcd/server/v3 v3.6.8 failed.*\n.*no such module"),
    ],
    ids=["no Go", "an old Go", "a build that fails"],
)
def test_a_binary_that_cannot_be_built_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str | None, message: str
) -> None:
    """Name, version and fix are in the message, and nothing half-built stays."""
    if release is not None:
        fake_go(tmp_path, release)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if release else str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(BuildError, match=message):
        binaries.binary("etcd")
    assert not [path for path in tmp_path.glob("cache/**/*") if path.is_file() and not path.name.endswith(".lock")]


def test_what_is_in_the_cache_is_never_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Go that fails every build is not asked to build."""
    fake_go(tmp_path, "go1.99.0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = binaries.cache_home() / binaries.cache_key("etcd", BINARIES["etcd"].pinned_by) / "bin" / "etcd"
    there.parent.mkdir(parents=True)
    there.touch()
    assert binaries.binary("etcd") == there


def test_every_binary_has_a_module_that_pins_it_and_its_sums() -> None:
    """No module is without a version, none without checksums of what it takes from others."""
    for one in BINARIES.values():
        assert (MODULES / one.module / "go.mod").exists(), one.name
        assert binaries.pinned_version(one.module, one.pinned_by).startswith("v"), one.name
        assert not one.pinned_by or (MODULES / one.module / "go.sum").exists(), one.name


def test_a_folder_that_holds_something_else_is_not_emptied(tmp_path: Path) -> None:
    """The testbed empties its state folder, so it must be its own."""
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StateError, match="holds something else"):
        starter.up(Folder(tmp_path), Plan(api_only=True, nodes=0, time_limit_s=1, owner=None))
    assert (tmp_path / "thesis.tex").exists()


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    """Before anything is made."""
    folder = tmp_path / ("x" * 100)
    with pytest.raises(StateError, match="too long for the sockets"):
        create_folder(Folder(folder))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("nodes", "time_limit_s", "message"), [(-1, 1, "nodes is -1"), (33, 1, "nodes is 33"), (2, 0, "more than 0 hours")]
)
def test_a_plan_that_cannot_be_is_refused(nodes: int, time_limit_s: float, message: str) -> None:
    """Field, value and fix."""
    with pytest.raises(StateError, match=message):
        Plan(api_only=False, nodes=nodes, time_limit_s=time_limit_s, owner=None)


def test_nodes_without_root_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the way that needs no root."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(MachineError, match=r"need root.*--api-only"):
        ensure()


def test_taking_down_what_is_not_there_does_nothing(tmp_path: Path) -> None:
    """No folder appears, and a folder of somebody else's is not claimed."""
    (tmp_path / "thesis.tex").touch()
    assert not starter.down(Folder(tmp_path / "none"))
    assert not starter.down(Folder(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture
def kubeconfig_of_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A kubeconfig of the user's, with a kubectl that is never called."""
    monkeypatch.setattr("testbed.cluster.binary", lambda name: Path("/nonexistent") / name)
    authority = pki.create_authority(tmp_path / "pki")
    return access.write_kubeconfig(
        tmp_path / "config", "https://127.0.0.1:1", authority.certificate, "me", {"token": "t"}
    )


def test_a_context_that_is_not_allowed_is_not_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kubeconfig_of_user: Path
) -> None:
    """The list decides; a production cluster is never on it by accident."""
    kubeconfig_of_user.write_text(kubeconfig_of_user.read_text().replace("amdahl-testbed", "production"))
    with pytest.raises(StateError, match=r"'production'.*AMDAHL_KUBE_CONTEXTS"):
        attach(kubeconfig_of_user, tmp_path)
    monkeypatch.setenv("AMDAHL_KUBE_CONTEXTS", "staging,production")
    assert attach(kubeconfig_of_user, tmp_path).folder is None


def test_a_cluster_of_the_users_refuses_what_only_ours_can_do(tmp_path: Path, kubeconfig_of_user: Path) -> None:
    """Servers, store, audit log and images are not ours to touch there; the message names the way out."""
    theirs: Cluster = attach(kubeconfig_of_user, tmp_path)
    for what in (
        lambda: theirs.kill("etcd"),
        lambda: theirs.restore_etcd(tmp_path),
        lambda: theirs.audit_log,
        lambda: theirs.cut("node-1"),
    ):
        with pytest.raises(StateError, match="run this test on the testbed's own"):
            what()
    with pytest.raises(StateError, match="AMDAHL_IMAGE_LOAD"):
        theirs.load_image(Image("app", ()))


def test_a_users_name_may_hold_what_openssl_reads_as_syntax(tmp_path: Path) -> None:
    """Slashes, plus signs and backslashes of a name or group reach the certificate as they are."""
    pair = pki.create_authority(tmp_path / "pki").sign_client("odd", r"a/b+c\d", ["x/y"])
    said = subprocess.run(
        [
            shutil.which("openssl") or "",
            "x509",
            "-noout",
            "-subject",
            "-nameopt",
            "multiline,-esc_msb",
            "-in",
            pair.certificate,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert r"= a/b+c\\d" in said  # openssl shows a backslash as two
    assert "= x/y" in said


def test_a_users_kubeconfig_keeps_only_its_own_credentials(tmp_path: Path, kubeconfig_of_user: Path) -> None:
    """The administrator's credentials do not travel with a user's file."""
    path = access.write_kubeconfig_like(tmp_path / "alice", kubeconfig_of_user, "alice", {"token": "hers"})
    document = yaml.safe_load(path.read_text())
    assert document["users"] == [{"name": "alice", "user": {"token": "hers"}}]
    assert [context["context"]["user"] for context in document["contexts"]] == ["alice"]
    assert path.stat().st_mode & 0o077 == 0
