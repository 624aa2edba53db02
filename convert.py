"""Convert a model from a checkout: the same as `mistral-mlx convert`.

python convert.py SOURCE -o OUT [-q 4]
"""

import sys

from mistral_mlx.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
