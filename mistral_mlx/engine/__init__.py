"""Ids over time: choose the next token, feed it back. Knows the model; knows no text and no file."""

from mistral_mlx.backend import preload_blas

preload_blas()
