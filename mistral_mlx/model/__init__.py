"""The transformer: arrays in, arrays out. Knows the configuration; knows no file, no text and no sampling."""

from mistral_mlx.backend import preload_blas

preload_blas()
