"""`python -m tui`: the same as `mistral-mlx chat`, with the same arguments."""

import sys

from mistral_mlx.cli import main

if __name__ == "__main__":
    sys.exit(main(["chat", *sys.argv[1:]]))
