"""Runs a script as two ranks, where torch's own launcher does not work: `pair.py SCRIPT ARGUMENT...`."""

import os
import socket
import subprocess
import sys

with socket.socket() as asked:
    asked.bind(("127.0.0.1", 0))
    port = str(asked.getsockname()[1])
common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
ranks = [
    subprocess.Popen([sys.executable, *sys.argv[1:]], env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank})
    for rank in ("0", "1")
]
sys.exit(max(abs(rank.wait()) for rank in ranks))
