"""Converting: any form that weights come in to a folder that this project, mlx-lm and what stands on it open.

Joins the rooms: reads by `weights`, writes tokenizers by `text`, judges the result by running it through `llm`.
"""

from mistral_mlx.backend import preload_blas

preload_blas()

from mistral_mlx.conversion.comparison import Comparison, compare  # noqa: E402
from mistral_mlx.conversion.pipeline import convert  # noqa: E402
from mistral_mlx.conversion.receipt import Receipt  # noqa: E402

__all__ = ["Comparison", "Receipt", "compare", "convert"]
