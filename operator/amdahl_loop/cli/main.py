"""The entry of `amdahl-loop`: parse, run one command, end with its code."""

import asyncio
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence

from amdahl_loop.cli import explain, ledger, run, trace
from amdahl_loop.cli.arguments import build_parser
from amdahl_loop.cli.exits import Exit, Stop, explained
from amdahl_loop.cli.output import note
from amdahl_loop.cli.session import World

Command = Callable[[Namespace, World], int]
COMMANDS: Mapping[str, Command] = {
    "run": run.run,
    "explain": explain.explain,
    "ledger": ledger.list_experiments,
    "show": ledger.show_experiment,
    "replay": ledger.replay_ledger,
    "export": ledger.export_ledger,
    "import": ledger.import_ledger,
    "trace": trace.trace,
}


def main(argv: Sequence[str] | None = None, world: World | None = None) -> int:
    """Run one command; the return value is its exit code (`Exit`), which `sys.exit` takes as it is."""
    world = world or World()
    arguments = build_parser(world.environment).parse_args(argv)
    try:
        with explained():
            return find_command(arguments)(arguments, world)
    except Stop as stop:
        note(f"amdahl-loop: {stop.message}", world)
        return stop.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: nobody is left to tell
        return Exit.ENVIRONMENT
    except (KeyboardInterrupt, asyncio.CancelledError):
        note("amdahl-loop: interrupted; everything recorded is kept, and nothing is left running.", world)
        return Exit.INTERRUPTED


def find_command(arguments: Namespace) -> Command:
    """The command over this machine's ledger, or over a cluster where one is asked for."""
    if not is_about_cluster(arguments):
        return COMMANDS[arguments.command]
    try:  # imported late: one machine needs no client library
        from amdahl_loop.cli.cluster import COMMANDS as ON_CLUSTER
    except ModuleNotFoundError as error:
        raise Stop(
            Exit.ENVIRONMENT, f"clusters need more than is installed ({error}): pip install 'amdahl-loop[operator]'"
        ) from error
    return ON_CLUSTER[arguments.command]


def is_about_cluster(arguments: Namespace) -> bool:
    """Whether any option names a cluster or a place in one; `fleet` has no other meaning."""
    named = (getattr(arguments, name, None) for name in ("kubeconfig", "context", "namespace", "all_namespaces"))
    return arguments.command == "fleet" or any(named)
