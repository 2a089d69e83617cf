# ruff: noqa: INP001 (the root of the zip, not a package)
"""`python <zip> PLAN.json`, or `--plan-env NAME`: the supervisor, run from the probe's zip as a script.

Nothing has to be on `PYTHONPATH` for it, so a container keeps the path that its image has set; the supervisor puts the
probe before that path for the programs that it launches.
"""

import os
import sys

from amdahl_probe import supervise

if __name__ == "__main__":
    sys.exit(supervise.main(sys.argv[1:], os.environ))
