"""Policies on their way to generators, also while processes die: `python -m benchmarks.sync`."""
