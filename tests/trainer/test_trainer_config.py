"""Configuration: precedence, errors that name the remedy, no dead keys, and what the semantics hash covers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from amdahl_trainer import config as configs
from amdahl_trainer.entry import split_arguments
from amdahl_trainer.errors import ConfigError

PACKAGE = Path(configs.__file__).parent
RECIPES = sorted((PACKAGE.parent / "configs").glob("*.yaml"))


def test_file_environment_and_command_line_win_in_this_order(tmp_path):
    """Defaults < file < environment < command line, key by key."""
    file = tmp_path / "x.yaml"
    file.write_text("run: {seed: 2, max_steps: 20, gc_every: 20}\n")
    environ = {"AMDAHL_TRAINER__RUN__MAX_STEPS": "30", "AMDAHL_TRAINER__RUN__GC_EVERY": "30", "AMDAHL_RUN_ID": "x"}
    config = configs.load(str(file), environ, ["--run.gc_every", "40", "--model.tie_embeddings=false"])
    assert (config.run.seed, config.run.max_steps, config.run.gc_every) == (2, 30, 40)
    assert config.model.tie_embeddings is False
    assert config.run.torch_threads == configs.Config().run.torch_threads


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run.stepz": 3}, "did you mean run.max_steps"),
        ({"modle.d_model": 3}, "did you mean model.d_model"),
        ({"run.max_steps": "ten"}, "run.max_steps is 'ten'; it must be a whole number"),
        ({"run.max_steps": 2.5}, "must be a whole number"),
        ({"run.max_steps": True}, "must be a whole number"),
        ({"run.max_steps": 0}, "least legal value is 1"),
        ({"optim.lr": "nan"}, "optim.lr is nan"),
        ({"data.doc_mask": "perhaps"}, "must be true or false"),
        ({"data.tokenizer": "byte"}, "choose one of bytes, bpe; did you mean bytes?"),
        ({"model.n_heads": 3}, "nearest legal: 2 or 4"),
        ({"model.n_kv_heads": 3}, "nearest legal: 2 or 4"),
    ],
)
def test_bad_values_name_key_and_remedy(values, message):
    """Each is refused with the key, the value and what would be legal."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        configs.build(values)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("run: [", [], "not YAML"),
        ("- run", [], "must hold sections"),
        ("run: 3", [], "must hold sections"),
        ("run: {sede: 1}", [], "did you mean run.seed"),
        ("run: {seed: 1}", ["--run.seed"], "needs a value"),
        ("run: {seed: 1}", ["run.seed", "3"], "expected --section.key"),
    ],
)
def test_bad_files_and_arguments_are_refused(tmp_path, text, arguments, message):
    """What cannot be parsed is named with its source."""
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        configs.load(str(file), {}, arguments)


def test_a_missing_file_is_named():
    """Not a traceback from the file system."""
    with pytest.raises(ConfigError, match=r"--config /nowhere\.yaml: cannot be read"):
        configs.load("/nowhere.yaml", {}, [])


@pytest.mark.parametrize(
    ("sequences", "micro", "world", "expected"),
    [
        (16, 0, 1, 16),
        (16, 0, 4, 4),
        (16, 2, 4, 2),
        (9, 0, 2, "batch.global_sequences is 9, .* nearest legal: 8 or 10, or 1 or 3 ranks"),
        (2, 0, 4, "nearest legal: 4, or 2 ranks"),
        (16, 3, 4, "batch.micro_batch is 3, .* nearest legal: 2 or 4"),
        (16, 8, 4, "nearest legal: 4"),
    ],
)
def test_batches_must_divide(sequences, micro, world, expected):
    """The micro-batch of a rank, or the nearest legal values."""
    batch = configs.Batch(global_sequences=sequences, micro_batch=micro)
    if isinstance(expected, int):
        assert configs.check_batch(batch, world) == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            configs.check_batch(batch, world)


def test_every_key_is_read_by_someone():
    """No dead keys: each leaf is read from its section, or from a value of its section's type, outside config.py."""
    read = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("config.py", "sections.py"):
            read |= _reads(ast.parse(path.read_text()))
    helpers = {("optim", "decay_steps"), ("batch", "micro_batch"), ("batch", "global_sequences")}  # read by config.py
    declared = {tuple(name.split(".")) for name in configs.flatten(configs.Config())}
    assert declared - read - helpers == set()


def _reads(tree):
    """(section, leaf) of each `x.section.leaf`, and of `x.leaf` where x is annotated with a section's class."""
    found = set()
    for function in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]:
        arguments = function.args.args + function.args.kwonlyargs if isinstance(function, ast.FunctionDef) else []
        kinds = {
            argument.arg: ast.unparse(argument.annotation).lower() for argument in arguments if argument.annotation
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute):
                if isinstance(node.value, ast.Attribute):
                    found.add((node.value.attr, node.attr))
                elif isinstance(node.value, ast.Name):
                    found.add((kinds.get(node.value.id, node.value.id), node.attr))
    return found


def test_the_semantics_hash_covers_what_is_trained_and_nothing_else():
    """Changing a key changes the hash exactly if the key is declared to change the mathematics."""
    reference = configs.semantics_hash(configs.Config())
    others = {"model.n_heads": 8, "model.n_kv_heads": 1, "optim.decay_steps": 7}
    others |= {"data.mix": "a=1", "data.subset": "10%"}
    for name, value in configs.flatten(configs.Config()).items():
        choices = [choice for choice in configs.declared(name).metadata["choices"] if choice != value]
        if name in others or choices:
            changed = others.get(name) or choices[0]
        else:
            changed = not value if isinstance(value, bool) else value * 2 if value else 1
        changes_hash = configs.semantics_hash(configs.build({name: changed})) != reference
        is_horizon = name == "run.max_steps"  # it ends the schedule unless optim.decay_steps says otherwise
        assert changes_hash == (configs.declared(name).metadata["maths"] or is_horizon), name


@pytest.mark.parametrize(
    ("longer", "is_another"),
    [
        ({}, True),
        ({"optim.schedule": "linear"}, True),
        ({"optim.schedule": "constant"}, False),
        ({"optim.decay_steps": 100}, False),
    ],
)
def test_a_longer_run_trains_the_same_where_its_schedule_does_not_end_later(longer, is_another):
    """A constant one has no end; another ends with the run, unless told when."""
    first = configs.build({k: v for k, v in longer.items() if k == "optim.schedule"} | {"run.max_steps": 100})
    again = configs.build({**longer, "run.max_steps": 200})
    assert (configs.semantics_hash(first) != configs.semantics_hash(again)) == is_another


def test_the_resolved_configuration_reads_back_as_itself(tmp_path):
    """What is written beside checkpoints can be given to --config."""
    config = configs.build({"optim.lr": 1e-4, "data.max_documents": 5})
    file = tmp_path / "config.yaml"
    file.write_text(configs.to_yaml(config))
    assert configs.load(str(file), {}, []) == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_name_their_output(path):
    """Each file in configs/ is legal as it stands."""
    assert configs.load(str(path), {}, []).run.out_dir.endswith(path.stem)


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.stem.startswith("pydocs")], ids=lambda path: path.stem
)
def test_recipes_for_any_machine_split_over_one_and_two_ranks(path):
    """They leave the micro-batch to the number of ranks."""
    config = configs.load(str(path), {}, [])
    assert configs.check_batch(config.batch, 1) == 2 * configs.check_batch(config.batch, 2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (None, [])),
        (["--config", "x", "--run.seed", "1"], ("x", ["--run.seed", "1"])),
        (["--run.seed=1", "--config=x"], ("x", ["--run.seed=1"])),
    ],
)
def test_the_configuration_file_is_found_anywhere_in_the_arguments(arguments, expected):
    """--config FILE and --config=FILE; the rest are keys."""
    assert split_arguments(arguments) == expected


def test_the_documentation_lists_every_key_with_its_default():
    """docs/trainer.md is the table of keys as they are declared."""
    text = (PACKAGE.parents[1] / "docs" / "trainer.md").read_text()
    for name, value in configs.flatten(configs.Config()).items():
        metadata = configs.declared(name).metadata
        shown = str(value).lower() if isinstance(value, bool) else value
        row = f"| `{name}` | {shown} | {'yes' if metadata['maths'] else ''} | {metadata['text']}"
        assert row in text, row
