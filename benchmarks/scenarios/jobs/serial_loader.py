"""A data loader without workers: fetching and transforming a batch takes turns with training on it.

Each read waits a millisecond, which stands for remote storage in the same building; the rest is real work.
"""

from common import BATCH, Net, Records, parse_steps, settle, train
from torch.utils.data import DataLoader

if __name__ == "__main__":
    settle()
    loader = DataLoader(Records(latency_s=0.001), batch_size=BATCH, shuffle=True)
    train(loader, parse_steps(), Net(repeat=22))
