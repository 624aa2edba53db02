"""Measurements beside mlx-lm: the same weights, the same backend, in turn. `python -m benchmarks --list` names them."""
