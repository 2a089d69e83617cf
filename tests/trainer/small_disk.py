"""Run in place of the trainer: on the ranks named in SMALL_DISK the kernel refuses files beyond 64 KiB."""

import os
import resource
import sys

from amdahl_trainer import entry

if os.environ["RANK"] in os.environ["SMALL_DISK"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))
entry.run(sys.argv[1:], os.environ)
