"""python -m mistral_mlx: the same as the command mistral-mlx."""

import sys

from mistral_mlx.cli import main

sys.exit(main())
