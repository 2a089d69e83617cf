"""The trainer: a readable Llama-style pretraining loop that accounts for every nanosecond of its wall time.

One file per idea. `train.py` wires them together and `loop.py` is the step engine; start reading there.
"""

__version__ = "0.1.0"
