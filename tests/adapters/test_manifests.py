"""A user's manifest: read with clear errors, changed only where a value was proven."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amdahl_loop.adapters.manifests import (
    Manifest,
    diff_text,
    edit_knobs,
    local_uid,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from amdahl_loop.domain.knob_values import KnobName
from amdahl_loop.domain.parsing import ManifestError

MANIFEST = """\
# A job, with its story told in comments.
apiVersion: amdahl-loop.io/v1alpha1   # the version
kind: TrainingJob
metadata: {name: pydocs}
spec:
    replicas: 1          # one machine
    knobs:               # what may be changed
        dataloaderWorkers: 0   # zero on purpose
        "pinMemory": false     # quoted key

        checkpointEverySteps: 50
        gpusPerReplica:   4
    template:
      spec:
        containers:
        -   name: trainer
            command: [python,   -m, "amdahl_trainer"]   # odd spaces
            args:
              - '--note'
              - >-
                folded
                text
"""
"""Four-space indents, odd spacing, quotes and folded text: all of it the user's own."""

PATH = Path("job.yaml")


def make_manifest(text: str = MANIFEST) -> Manifest:
    """A manifest that was read from `job.yaml`."""
    return Manifest(path=PATH, text=text, job=parse_manifest(PATH, text))


def edit(text: str, **values: int | bool) -> str:
    """The text with knob values put in."""
    return edit_knobs(make_manifest(text), {KnobName(name): value for name, value in values.items()})


class TestReading:
    def test_a_manifest_is_read_and_given_a_uid_of_its_name(self, tmp_path: Path) -> None:
        """The uid follows from namespace and name, so that moving the file keeps the job's memory."""
        here, there = tmp_path / "a.yaml", tmp_path / "b.yaml"
        here.write_text(MANIFEST)
        there.write_text(MANIFEST)
        first, second = read_manifest(here), read_manifest(there)
        assert first.job == second.job
        assert first.job.metadata.uid == local_uid("default", "pydocs") == "local-" + first.job.metadata.uid[6:]
        assert len(first.job.metadata.uid) == len("local-") + 12
        assert local_uid("default", "pydocs") != local_uid("team", "pydocs")

    def test_a_uid_in_the_manifest_is_kept(self) -> None:
        """A job exported from a cluster keeps its identity."""
        assert make_manifest(MANIFEST.replace("name: pydocs", "name: pydocs, uid: abc")).job.metadata.uid == "abc"

    def test_the_training_job_is_found_among_other_documents(self) -> None:
        """Config maps and the like may stand beside it."""
        text = f"kind: ConfigMap\ndata: {{a: b}}\n---\n{MANIFEST}---\nkind: Service\n"
        assert make_manifest(text).job == make_manifest().job

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            pytest.param("a: [1,\nb: 2", "line 2: expected ',' or ']'", id="broken yaml"),
            pytest.param("a: 1\na: 2", "line 2: found duplicate key", id="duplicate key"),
            pytest.param("\ta: 1", "line 1: found character '\\t'", id="tab"),
            pytest.param("a: *b", "line 1: found undefined alias 'b'", id="undefined alias"),
            pytest.param("a: \x00", "unacceptable character", id="nul"),
            pytest.param("a: !!python/object:os.system x", "could not determine a constructor", id="foreign tag"),
            pytest.param("", "no document of kind TrainingJob", id="empty"),
            pytest.param("[1, 2]", "no document of kind TrainingJob", id="a list"),
            pytest.param(f"{MANIFEST}---\n{MANIFEST}", "2 TrainingJobs (lines 2, 25)", id="two jobs"),
            pytest.param("[" * 400, "job.yaml", id="deep nesting"),
            pytest.param("kind: TrainingJob\na: &a [*a]", "once its aliases are written out", id="cycle"),
            pytest.param(
                "kind: TrainingJob\nb0: &b0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
                + "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 10)}]\n" for n in range(1, 9)),
                "once its aliases are written out",
                id="alias bomb",
            ),
            pytest.param(
                MANIFEST.replace("dataloaderWorkers: 0", "dataloaderWorkers: many"),
                "line 8: spec.knobs.dataloaderWorkers: 'many'",
                id="bad value",
            ),
            pytest.param(
                MANIFEST.replace("dataloaderWorkers", "dataLoaderWorkers"),
                "line 8: spec.knobs.dataLoaderWorkers: 0: unknown field; remove it or use one of dataloaderWorkers",
                id="typo",
            ),
            pytest.param(
                MANIFEST.replace("-   name: trainer", "-   name: main"), "line 14: spec.template: ", id="no trainer"
            ),
        ],
    )
    def test_bad_text_is_refused_with_line_and_fix(self, text: str, words: str) -> None:
        """Every fault names the file, where known the line, and what would mend it."""
        with pytest.raises(ManifestError) as caught:
            parse_manifest(PATH, text)
        assert "job.yaml" in str(caught.value)
        assert words in str(caught.value)

    def test_files_that_cannot_be_manifests_are_refused(self, tmp_path: Path) -> None:
        """Absent, huge and binary files get a sentence, not a traceback."""
        big, binary = tmp_path / "big.yaml", tmp_path / "binary.yaml"
        big.write_bytes(b"#" * (2**20 + 1))
        binary.write_bytes(b"a: 1\nb: \xff\xfe")
        for path, words in (
            (tmp_path / "none", "cannot be read"),
            (big, "1 MiB"),
            (binary, "line 2: this is not UTF-8"),
        ):
            with pytest.raises(ManifestError, match=words):
                read_manifest(path)


class TestEditing:
    def test_only_the_value_changes(self) -> None:
        """Comments, spacing and quotes stay; the diff is one line a knob."""
        text = edit(MANIFEST, dataloaderWorkers=4, pinMemory=True, gpusPerReplica=2)
        assert text == MANIFEST.replace("Workers: 0 ", "Workers: 4 ").replace("false", "true").replace(
            "gpusPerReplica:   4", "gpusPerReplica:   2"
        )

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            pytest.param("replicas: 1 ", "replicas: 3 ", id="present"),
            pytest.param("    replicas: 1          # one machine\n", "    replicas: 3\n", id="absent"),
        ],
    )
    def test_replicas_stand_in_the_spec_itself(self, before: str, after: str) -> None:
        """Replicas are no key of knobs; where the manifest left them out they come first in the spec."""
        start = MANIFEST if "#" not in before else MANIFEST.replace(before, "")
        wanted = MANIFEST.replace(before, after)
        assert edit(start, replicas=3) == wanted

    def test_a_flow_mapping_keeps_its_braces(self) -> None:
        """`{a: 0, b: 1}` stays on its line, and an undeclared key is put in front."""
        flow = MANIFEST[: MANIFEST.index("    knobs:")] + "    knobs: {dataloaderWorkers: 0, gpusPerReplica: 1} # c\n"
        flow += MANIFEST[MANIFEST.index("    template:") :]
        assert "    knobs: {prefetchFactor: 2, dataloaderWorkers: 8, gpusPerReplica: 1} # c\n" in edit(
            flow, dataloaderWorkers=8, prefetchFactor=2
        )

    def test_windows_line_ends_and_unicode_are_kept(self) -> None:
        """Offsets count characters, whatever stands before the value."""
        text = "# Grüße 😀\n" + MANIFEST
        windows = text.replace("\n", "\r\n")
        assert edit(windows, dataloaderWorkers=3) == edit(text, dataloaderWorkers=3).replace("\n", "\r\n")

    def test_a_shared_anchor_is_refused(self) -> None:
        """A value that other fields share cannot be changed alone; the user is told to write it out."""
        text = MANIFEST.replace("dataloaderWorkers: 0", "dataloaderWorkers: &n 1").replace(
            "gpusPerReplica:   4", "gpusPerReplica: *n"
        )
        with pytest.raises(ManifestError, match="an anchor or a tag is shared"):
            edit(text, dataloaderWorkers=2)
        with pytest.raises(ManifestError, match="an anchor or a tag is shared"):
            edit(text, gpusPerReplica=2)

    @settings(max_examples=25)
    @given(
        workers=st.integers(0, 256),
        pin=st.booleans(),
        cadence=st.integers(1, 10**7),
        comments=st.lists(
            st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=20), max_size=4
        ),
    )
    def test_any_edit_changes_only_the_knobs(self, workers: int, pin: bool, cadence: int, comments: list[str]) -> None:
        """For all values and comments: same job but for the values, every other character unchanged, and reversible."""
        text = MANIFEST
        for number, comment in enumerate(comments):
            lines = text.splitlines(keepends=True)
            lines.insert(1 + 3 * number, f"# {comment}\n")
            text = "".join(lines)
        values = {"dataloaderWorkers": workers, "pinMemory": pin, "checkpointEverySteps": cadence}
        edited = edit(text, **values)
        named = {KnobName(name): value for name, value in values.items()}
        job = make_manifest(text).job
        assert make_manifest(edited).job == job.with_knobs(job.spec.knobs.with_values(named))
        assert edit(edited, dataloaderWorkers=0, pinMemory=False, checkpointEverySteps=50) == text

    def test_the_diff_is_one_that_patch_reads(self) -> None:
        """Unified, with the file's name, and empty when nothing changes."""
        manifest = make_manifest(MANIFEST.rstrip("\n"))
        assert diff_text(manifest, manifest.text) == ""
        diff = diff_text(manifest, edit_knobs(manifest, {KnobName.DATALOADER_WORKERS: 2}))
        assert diff.startswith("--- a/job.yaml\n+++ b/job.yaml\n@@")
        assert "-        dataloaderWorkers: 0   # zero on purpose\n+        dataloaderWorkers: 2" in diff


class TestWriting:
    def test_the_file_is_replaced_with_mode_and_link_kept(self, tmp_path: Path) -> None:
        """A symbolic link still points to the file; the file's mode is what it was; no draft is left behind."""
        target, link = tmp_path / "real.yaml", tmp_path / "job.yaml"
        target.write_text(MANIFEST)
        target.chmod(0o640)
        link.symlink_to(target.name)
        manifest = read_manifest(link)
        written = write_manifest(manifest, edit_knobs(manifest, {KnobName.DATALOADER_WORKERS: 2}))
        assert link.is_symlink()
        assert target.stat().st_mode & 0o777 == 0o640
        assert read_manifest(link) == written
        assert written.job.spec.knobs.dataloader_workers == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["job.yaml", "real.yaml"]

    def test_an_edit_in_the_meantime_is_never_overwritten(self, tmp_path: Path) -> None:
        """The user's newer text wins; the loop is told to look again."""
        path = tmp_path / "job.yaml"
        path.write_text(MANIFEST)
        manifest = read_manifest(path)
        path.write_text(MANIFEST + "# mine\n")
        with pytest.raises(ManifestError, match="edited since it was read"):
            write_manifest(manifest, edit_knobs(manifest, {KnobName.DATALOADER_WORKERS: 2}))
        assert path.read_text() == MANIFEST + "# mine\n"

    def test_text_that_is_no_manifest_is_never_written(self, tmp_path: Path) -> None:
        """What goes to disk was parsed first."""
        path = tmp_path / "job.yaml"
        path.write_text(MANIFEST)
        manifest = read_manifest(path)
        with pytest.raises(ManifestError):
            write_manifest(manifest, "kind: Nothing\n")
        assert path.read_text() == MANIFEST

    def test_a_file_that_cannot_be_written_says_so(self, tmp_path: Path) -> None:
        """A name so long that no draft fits beside it stands for any write that the system refuses."""
        path = tmp_path / ("j" * (os.pathconf(tmp_path, "PC_NAME_MAX") - 5) + ".yaml")
        path.write_text(MANIFEST)
        manifest = read_manifest(path)
        with pytest.raises(ManifestError, match="nothing was changed"):
            write_manifest(manifest, edit_knobs(manifest, {KnobName.DATALOADER_WORKERS: 2}))
        assert path.read_text() == MANIFEST
