"""Training runs as supervised processes of this machine: the `Runner` port without a cluster.

Kept empty of imports: `keeper` and `view` are started as processes of their own for every run and launch, on the
standard library alone, and should start within milliseconds.
"""
