"""Weight files and arrays: what a checkpoint holds, whether it fits its configuration, and how it becomes a model.

Knows no text and no generation.
"""

from mistral_mlx.backend import preload_blas

preload_blas()
