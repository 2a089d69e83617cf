"""Writes the data of the jobs, once, before any of them runs: the same bytes every time. No argument: all of it."""

import sys

from common import write_records
from many_workers import write_shards

WRITERS = {"records": write_records, "shards": write_shards}

if __name__ == "__main__":
    for name in sys.argv[1:] or WRITERS:
        WRITERS[name]()
