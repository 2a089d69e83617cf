"""Writes the data of all jobs, once, before any of them runs: the same bytes every time."""

from common import write_records
from many_workers import write_shards

if __name__ == "__main__":
    write_records()
    write_shards()
