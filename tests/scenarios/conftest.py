"""The two scenarios that run in CI use the runner of benchmarks/scenarios, whose modules are scripts beside each other."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "scenarios"))
