"""The writer of GGUF files, which the tests of weights share."""

from tests.weights.conftest import gguf_package, write

__all__ = ["gguf_package", "write"]
