"""Blocks of every quantized GGUF type, as ggml itself writes and reads them: `ggml.safetensors`.

    python tests/golden/make_ggml.py LIBRARY        ggml's shared library (libggml-base.so or .dylib)

For each type two tensors: NAME.blocks, its bytes (rows, bytes of a row), by ggml's quantizer; and NAME.values, the same
read back by ggml's own dequantizer, (rows, columns) float32. The file in this folder was
written by the ggml in node-llama-cpp 3.22.1.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.numpy import save_file

ROWS, COLUMNS = 2, 256
FLOATS = ctypes.POINTER(ctypes.c_float)


class Traits(ctypes.Structure):
    """ggml.h, struct ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, FLOATS, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


def main(library: str) -> None:
    ggml = ctypes.CDLL(library)
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = (
        ctypes.c_int, FLOATS, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, FLOATS,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    source = generator.standard_normal((ROWS, COLUMNS), np.float32) * np.float32(0.05)
    source[:, ::37] *= 6  # outliers, so that blocks differ in scale
    importance = generator.uniform(0.5, 2, COLUMNS).astype(np.float32)
    tensors: dict[str, np.ndarray] = {}
    for kind in GGMLQuantizationType:
        traits = ggml.ggml_get_type_traits(kind).contents
        if not traits.is_quantized or not traits.to_float or (not traits.from_float_ref and "IQ" not in kind.name):
            continue
        assert (traits.blck_size, traits.type_size) == GGML_QUANT_SIZES[kind], kind.name
        blocks = np.zeros((ROWS, COLUMNS // traits.blck_size * traits.type_size), np.uint8)
        written = ggml.ggml_quantize_chunk(
            kind, source.ctypes.data_as(FLOATS), blocks.ctypes.data, 0, ROWS, COLUMNS, importance.ctypes.data_as(FLOATS)
        )
        if written != blocks.nbytes:
            print(f"{kind.name}: ggml does not quantize to it")
            continue
        values = np.empty((ROWS, COLUMNS), np.float32)
        traits.to_float(blocks.ctypes.data, values.ctypes.data_as(FLOATS), ROWS * COLUMNS)
        print(f"{kind.name:8} rms error {np.sqrt(np.mean((values - source) ** 2)):.5f}")
        tensors |= {f"{kind.name}.blocks": blocks, f"{kind.name}.values": values}
    save_file(tensors, Path(__file__).with_name("ggml.safetensors"))


main(sys.argv[1])
