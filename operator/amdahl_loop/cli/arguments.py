"""What may be typed? Commands, their options, and the help text."""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

from amdahl_loop import __version__
from amdahl_loop.adapters.local.runner import default_state_dir
from amdahl_loop.cli.exits import MEANINGS
from amdahl_loop.domain.tuning import ProfileName

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

MAX_TRACE_S = 600
"""The probe keeps the newest 200,000 spans: about this long at ten steps a second."""


def default_ledger(environment: Mapping[str, str]) -> Path:
    """One ledger per user, so that what one job proved is known to its kin."""
    return default_state_dir(environment) / "ledger.sqlite"


def build_parser(environment: Mapping[str, str] | None = None) -> argparse.ArgumentParser:
    """The whole command line; `environment` decides where the default ledger lies."""
    ledger = default_ledger(os.environ if environment is None else environment)
    parser = argparse.ArgumentParser(
        prog="amdahl-loop",
        description="Training jobs that optimise themselves: account every device-second, try, refute, and only then "
        "change.",
        epilog="exit codes:\n" + "\n".join(f"  {code:<4} {text}" for code, text in MEANINGS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"amdahl-loop {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    job, kept, output = _job_options(), _ledger_option(ledger), _output_option()
    profile, one, any_of = _profile_option(), _cluster_options(), _cluster_options(has_all=True)

    run = commands.add_parser(
        "run", parents=[job, profile, kept, output], help="observe, try, refute, and show what is proven"
    )
    run.add_argument("--write", action="store_true", help="write proven values into JOB.yaml; comments are kept")
    run.add_argument(
        "--train",
        action="store_true",
        help="then train on in the foreground with the values in force; the exit code is the training's own",
    )
    explain = commands.add_parser(
        "explain",
        parents=[profile, kept, one, output],
        help="observe, say what holds the job back and what is worth trying",
    )
    explain.add_argument(
        "manifest",
        metavar="JOB",
        type=Path,
        help="a TrainingJob manifest; of a cluster, the name of a job, which is not observed anew",
    )
    commands.add_parser(
        "fleet", parents=[any_of, output], help="rank a cluster's jobs by what tuning would bring; reads only"
    )
    commands.add_parser("ledger", parents=[kept, any_of, output], help="list every experiment, won or lost")

    show = commands.add_parser(
        "show", parents=[kept, one, output], help="show every window, vote and veto of an experiment"
    )
    show.add_argument("experiment", metavar="EXPERIMENT", help="its name, or a beginning of it that fits only one")
    show.add_argument("--svg", metavar="FILE", type=Path, help="draw its blocks into FILE")

    replay = commands.add_parser("replay", parents=[output], help="derive every recorded decision anew; starts nothing")
    replay.add_argument(
        "ledger",
        metavar="LEDGER",
        type=Path,
        nargs="?",
        default=ledger,
        help=f"a ledger, or a file that `export` wrote; default: {ledger}",
    )

    export = commands.add_parser("export", parents=[kept, one, output], help="write a ledger as JSON lines")
    export.add_argument("file", metavar="FILE", type=Path, nargs="?", help="default: standard output")
    merge = commands.add_parser("import", parents=[kept, one, output], help="add an exported ledger to this one")
    merge.add_argument("file", metavar="FILE", type=Path)

    trace = commands.add_parser(
        "trace", parents=[job, profile, output], help="record a short run as a Chrome trace for Perfetto"
    )
    trace.add_argument(
        "--seconds", metavar="S", type=_seconds, default=20, help="length, start-up included; default: 20"
    )
    trace.add_argument("--out", metavar="FILE", dest="file", type=Path, help="default: <job>.trace.json")
    return parser


def _seconds(text: str) -> int:
    """A length that a trace can have; argparse turns the error into a usage message."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_TRACE_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of seconds from 1 to {MAX_TRACE_S}")
    return int(text)


def is_name(text: str) -> bool:
    """Whether namespaces, jobs and experiments can be called so; nothing else may get into a request's path."""
    return _NAME.fullmatch(text) is not None


def _namespace(text: str) -> str:
    """A name that a namespace can have."""
    if not is_name(text):
        raise argparse.ArgumentTypeError(
            f"{text[:80]!r} is no namespace's name: lower-case letters, digits and hyphens, at most 63"
        )
    return text


def _job_options() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("manifest", metavar="JOB.yaml", type=Path, help="a TrainingJob manifest")
    return parent


def _cluster_options(has_all: bool = False) -> argparse.ArgumentParser:
    """Which cluster, and where in it. Any of these means a cluster, not this machine."""
    parent = argparse.ArgumentParser(add_help=False)
    cluster = parent.add_argument_group("of a cluster (any of these, instead of --ledger)")
    cluster.add_argument("--kubeconfig", metavar="FILE", type=Path, help="default: as kubectl, $KUBECONFIG first")
    cluster.add_argument("--context", metavar="NAME", help="default: the kubeconfig's current context")
    where = cluster.add_mutually_exclusive_group()
    where.add_argument("-n", "--namespace", metavar="NS", type=_namespace, help="default: the context's")
    if has_all:
        where.add_argument("-A", "--all-namespaces", action="store_true", help="every namespace")
    return parent


def _profile_option() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--profile",
        type=ProfileName,
        choices=list(ProfileName),
        metavar="{" + ",".join(ProfileName) + "}",
        help="how much evidence is bought; default: the manifest's tuning.profile",
    )
    return parent


def _ledger_option(default: Path) -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--ledger", metavar="PATH", type=Path, default=default, help=f"default: {default}")
    return parent


def _output_option() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default: text")
    return parent
