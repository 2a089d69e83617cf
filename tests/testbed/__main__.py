"""The testbed by hand: `PYTHONPATH=tests python -m testbed up | down | status`."""

import argparse
import sys
import time
from pathlib import Path

from testbed import starter
from testbed.binaries import BuildError, binary
from testbed.images import ImageError
from testbed.layout import Facts, Folder, Plan, StateError, default_folder
from testbed.packages import MachineError
from testbed.pki import OpensslError
from testbed.servers import StartError
from testbed.teardown import LeftoverError

SECONDS_PER_HOUR = 3600.0


def main() -> int:
    """Parse, act, print; 1 with one message on stderr for anything that a user can mend, 3 from `status` when nothing is up."""
    options = _parser().parse_args()
    folder = Folder(options.state.resolve())
    try:
        if options.verb == "up":
            return _up(folder, options)
        return _down(folder) if options.verb == "down" else _status(folder)
    except (
        BuildError,
        StateError,
        StartError,
        OpensslError,
        LeftoverError,
        MachineError,
        ImageError,
        TimeoutError,
    ) as problem:
        print(f"testbed: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("testbed: interrupted; what was started is gone again", file=sys.stderr)
        return 130


def _up(folder: Folder, options: argparse.Namespace) -> int:
    started = time.monotonic()
    plan = Plan(options.api_only, 0 if options.api_only else options.nodes, options.hours * SECONDS_PER_HOUR, None)
    facts = starter.up(folder, plan)
    print(f"testbed: ready after {time.monotonic() - started:.1f} s")
    _describe(folder, facts)
    return 0


def _down(folder: Folder) -> int:
    print("testbed: down" if starter.down(folder) else f"testbed: nothing was up in {folder.path}")
    return 0


def _status(folder: Folder) -> int:
    facts = starter.status(folder)
    if facts is None:
        print(f"testbed: nothing is up in {folder.path}")
        return 3
    _describe(folder, facts)
    return 0


def _describe(folder: Folder, facts: Facts) -> None:
    left_h = (facts.ends_at - time.time()) / SECONDS_PER_HOUR
    print(
        f"  server   {facts.server}"
        + (" (API server and etcd only)" if facts.api_only else f", nodes {', '.join(facts.node_names)}")
    )
    print(f"  ends     by itself in {left_h:.1f} h, or by: python -m testbed down")
    print(f"  logs     {folder.logs}, audit log {folder.audit_log}")
    print(f"  export KUBECONFIG={folder.kubeconfig}")
    print(f"  export PATH={binary('kubectl').parent}:$PATH")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="testbed", description="A Kubernetes cluster from this checkout's own Go modules."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="build what is missing, start, write a kubeconfig")
    up.add_argument(
        "--api-only", action="store_true", help="etcd and the API server only: ready in seconds, needs no root"
    )
    up.add_argument(
        "--nodes",
        type=int,
        default=2,
        help="nodes with a kubelet and containerd (default 2); 0 for the controllers only, which needs no root",
    )
    up.add_argument("--hours", type=float, default=8.0, help="the cluster ends by itself after this long (default 8)")
    for parser_of_verb in (
        up,
        verbs.add_parser("down", help="stop it and remove what it made"),
        verbs.add_parser("status", help="what runs, and until when"),
    ):
        parser_of_verb.add_argument(
            "--state", type=Path, default=default_folder().path, help="state folder (default %(default)s)"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
