"""Knobs: what applies, what is ignored and why, and what a knob file may hold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amdahl_trainer import config, knobs, start_knobs
from amdahl_trainer.config import Config
from amdahl_trainer.data.loader import Settings
from amdahl_trainer.errors import ConfigError
from amdahl_trainer.knobs import KnobFile, Knobs, Update, Window
from amdahl_trainer.peers import Place

FIXED = start_knobs.present(
    config.build({"batch.micro_batch": 4, "parallel.bucket_mb": 25, "memory.activation_checkpoint": "block"})
)
START = Knobs(Settings(0, 2, False), 50, False, FIXED)
PAIR = Place(0, 2, 0, 2)


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("dataloaderWorkers", "3", replace(START, loader=Settings(3, 2, False))),
        ("dataloaderWorkers", 0, START),
        ("prefetchFactor", 4, replace(START, loader=Settings(0, 4, False))),
        ("pinMemory", 1, replace(START, loader=Settings(0, 2, True))),
        ("checkpointEverySteps", 7, replace(START, checkpoint_every=7)),
        ("asyncCheckpoint", True, replace(START, async_checkpoint=True)),
        ("asyncCheckpoint", "0", START),
        ("persistentWorkers", 1, START),
        ("gpusPerReplica", 2, START),
        ("replicas", "1", START),
        ("dataloaderWorkers", -1, "no whole number from 0 to 256"),
        ("dataloaderWorkers", "two", "no whole number"),
        ("dataloaderWorkers", True, "no whole number"),
        ("dataloaderWorkers", 2.5, "no whole number"),
        ("dataloaderWorkers", None, "no whole number"),
        ("prefetchFactor", 0, "no whole number from 1"),
        ("asyncCheckpoint", "maybe", "neither 0 nor 1"),
        ("asyncCheckpoint", [1], "neither 0 nor 1"),
        ("persistentWorkers", 0, "workers always persist here"),
        ("gpusPerReplica", 4, "fixed at 2 while running; start with launch --nproc"),
        ("replicas", 2, "fixed at 1 while running"),
        ("microBatch", 4, START),
        ("microBatch", 2, "it is 4 while running; a change needs a restart"),
        ("microBatch", "x", "no whole number from 1"),
        ("bucketMb", "25", START),
        ("bucketMb", 50, "it is 25.0 while running; a change needs a restart"),
        ("compile", 0, START),
        ("compile", True, "a change needs a restart"),
        ("activationCheckpointing", "block", START),
        ("activationCheckpointing", "none", "it is block while running"),
        ("activationCheckpointing", "all", "'all' is none of none, block, selective"),
        ("dataParallel", "ddp", START),
        ("dataParallel", "fsdp", "a change needs a restart"),
        ("dataParallel", "hsdp", "'hsdp' is none of ddp, fsdp"),
        ("learningRate", 2, "there is no such knob"),
    ],
)
def test_each_knob_applies_or_says_why_not(name, raw, expected):
    """A knob either changes its own setting or nothing, with the reason."""
    outcome = knobs.apply({name: raw}, START, PAIR, has_gpu=True)
    if isinstance(expected, Knobs):
        assert outcome.knobs == expected
        assert set(outcome.applied) == {name}
        assert not outcome.ignored
    else:
        assert outcome.knobs == START
        assert not outcome.applied
        assert expected in outcome.ignored[name]


def test_one_bad_knob_does_not_keep_the_others_from_applying():
    """Each knob on its own; without a GPU there is nothing to pin for."""
    values = {"pinMemory": 1, "dataloaderWorkers": 2, "colour": "red"}
    outcome = knobs.apply(values, START, PAIR, has_gpu=False)
    assert outcome.knobs == replace(START, loader=Settings(2, 2, False))
    assert outcome.applied == {"dataloaderWorkers": 2}
    assert set(outcome.ignored) == {"pinMemory", "colour"}


@given(
    st.dictionaries(
        st.sampled_from([*knobs.ENVIRON, "x"]), st.one_of(st.none(), st.text(), st.floats(), st.lists(st.none()))
    )
)
def test_no_value_from_outside_raises(values):
    """Every knob is in exactly one of `applied` and `ignored`."""
    outcome = knobs.apply(values, START, PAIR, has_gpu=False)
    assert set(outcome.applied) | set(outcome.ignored) == set(values)
    assert not set(outcome.applied) & set(outcome.ignored)


def test_the_configuration_is_where_knobs_begin():
    """Unset knobs keep the configuration's values; empty variables are unset."""
    assert Knobs.from_config(Config()) == Knobs(Settings(0, 2, True), 0, False, start_knobs.present(Config()))
    assert knobs.from_environ({"AMDAHL_DATALOADER_WORKERS": "2", "AMDAHL_REPLICAS": "", "AMDAHL_RUN_ID": "x"}) == {
        "dataloaderWorkers": "2"
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"seq": 3, "knobs": {"a": 1}}, Update(3, {"a": 1}, None)),
        ({"seq": 0}, Update(0, {}, None)),
        (
            {"seq": 3, "knobs": {}, "window": {"offset": 4096, "seed": 11, "save_every": 20}},
            Update(3, {}, Window(4096, 11, 20)),
        ),
        ({"seq": 3, "window": {"offset": 4096}}, Update(3, {}, Window(4096, None, None))),
        ({"seq": "3"}, "seq is '3'"),
        ({"knobs": {}}, "seq is None"),
        ({"seq": True}, "seq is True"),
        ({"seq": 3, "knobs": []}, "knobs is not an object"),
        ({"seq": 3, "window": []}, "window is not an object"),
        ({"seq": 3, "window": {"offset": -1}}, "window.offset"),
        ({"seq": 3, "window": {"save_every": 0}}, "window.save_every"),
        ({"seq": 3, "window": {"seed": "x"}}, "window.seed"),
        ([], "not an object"),
    ],
)
def test_knob_files(content, expected):
    """A knob file is understood or refused with the reason."""
    found = knobs.parse(json.dumps(content))
    if isinstance(expected, Update):
        assert found == expected
    else:
        assert isinstance(found, str)
        assert expected in found


@given(st.text())
def test_any_text_is_an_update_or_a_reason(text):
    """Half files and other files never raise."""
    assert isinstance(knobs.parse(text), str | Update)


def test_a_file_is_reported_once_for_each_replacement(tmp_path):
    """New content is seen once; no file, a directory in its place, and bytes that are no text do no harm."""
    path = tmp_path / "knobs.json"
    file = KnobFile(str(path))
    assert [KnobFile(None).poll(), KnobFile(str(tmp_path)).poll(), file.poll()] == [None] * 3
    for text in ("one", "two"):
        draft = tmp_path / "draft"
        draft.write_text(text)
        draft.replace(path)
        assert [file.poll(), file.poll()] == [text, None]
    path.write_bytes(b"\xff\xfe")
    assert isinstance(file.poll(), str)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"AMDAHL_SEED": "3", "AMDAHL_DATA_OFFSET": "8"}, None),
        ({"AMDAHL_TRIAL": "0", "AMDAHL_SEED": "x"}, None),
        ({"AMDAHL_TRIAL": "1"}, None),
        ({"AMDAHL_TRIAL": "1", "AMDAHL_SEED": "3"}, Window(None, 3, None)),
        ({"AMDAHL_TRIAL": "1", "AMDAHL_SEED": "3", "AMDAHL_DATA_OFFSET": "8"}, Window(8, 3, None)),
    ],
)
def test_only_a_trial_has_a_window(environ, expected):
    """In an ordinary run seeds and data are never touched."""
    assert knobs.window_from_environ(environ) == expected


def test_a_bad_window_is_an_error():
    """A trial that reads the wrong data would be worse than none."""
    with pytest.raises(ConfigError, match="AMDAHL_DATA_OFFSET is 'x'"):
        knobs.window_from_environ({"AMDAHL_TRIAL": "1", "AMDAHL_DATA_OFFSET": "x"})
