"""Measurements behind every number in the documentation. ``python -m benchmarks --help``."""
