"""Instruments any PyTorch script without changing it."""
