"""A server that speaks OpenAI's API: requests over HTTP that are answered together by one model.

Only `engine` knows that there are arrays; what requests and answers look like is everything else here.
"""

from mistral_mlx.backend import preload_blas

preload_blas()
