"""Builds its vocabulary anew at every launch: the launch takes longer than the little training that is left."""

import collections
import zlib

from common import BATCH, RECORD_COUNT, Net, Records, parse_steps, settle, train
from torch.utils.data import DataLoader


def build_vocabulary(records: Records) -> dict[bytes, int]:
    """Count every run of two and three bytes of the corpus, in plain Python, as the first version of a script does."""
    counts: collections.Counter[bytes] = collections.Counter()
    for record in range(RECORD_COUNT):
        raw = zlib.decompress(records.read(record))
        for length in (2, 3):
            counts.update(raw[place : place + length] for place in range(len(raw) - length))
    return {run: rank for rank, (run, _) in enumerate(counts.most_common(30_000))}


if __name__ == "__main__":
    settle()
    data = Records()
    build_vocabulary(data)
    train(DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=1), parse_steps(), Net())
