# ruff: noqa: INP001 (the root of the zip, not a package)
"""How the probe enters a process: Python imports this file at start-up when PYTHONPATH names the probe's zip.

The user's own `sitecustomize`, which this one hides, is loaded first and exactly as Python would have loaded it. The
syntax is old on purpose: any Python that can read the file must be able to leave it unharmed.
"""

import sys


def load_hidden():
    # type: () -> None
    """Run the `sitecustomize` that would have been found without this file; its errors are its own."""
    import os
    from importlib import util
    from importlib.machinery import PathFinder

    mine = os.path.realpath(os.path.split(__file__)[0])
    others = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != mine]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def enter():
    # type: () -> None
    """Wait for torch to be imported; whatever goes wrong here must not reach the script."""
    try:
        from amdahl_probe import hook

        hook.enter()
    except Exception as error:  # [P] the script comes first
        sys.stderr.write("amdahl_probe: off: %r\n" % (error,))


if sys.version_info >= (3, 9):
    try:
        load_hidden()
    finally:
        enter()
