"""The probe: instruments any PyTorch script, applies loader knobs, and supervises blocks of windows.

Standard library only. torch is touched only when the script itself has imported it. The contract with the operator is
`docs/telemetry.md`; the public parts for other trainers are `spans.Ledger`, `emit.Recorder`, `metrics.serve` and
`digests`.
"""

__version__ = "0.1.0"
