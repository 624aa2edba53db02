"""What MLX runs on here: the BLAS it gets on Linux, the memory there is, the precision to compute in.

Every package that imports `mlx.core` calls `preload_blas` in its `__init__`, so it has run before any of our
modules touches MLX. Imports MLX itself only where a function needs it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

_of_thread = threading.local()


@cache
def preload_blas() -> bool:
    """Give MLX's CPU backend an optimised BLAS: on Linux it links the reference one, which is 8 to 100 times slower.

    A symbol that is global before `mlx.core` is loaded wins over the library that it was linked against; afterwards
    loading changes nothing, so a late call warns. Elsewhere than Linux, or without the package `cmeel-openblas`, it
    does nothing.

    Returns:
        Whether the optimised BLAS is in place.
    """
    if sys.platform != "linux":
        return False
    package = importlib.util.find_spec("cmeel")
    if package is None or package.origin is None:
        return False
    site = Path(package.origin).parents[1]
    library = site / "cmeel.prefix" / "lib" / "libopenblas.so.0"
    if not library.exists():
        return False
    if "mlx.core" in sys.modules:
        warnings.warn(
            "mlx.core was imported before mistral_mlx, so MLX keeps its slow BLAS. "
            "Import mistral_mlx.backend and call preload_blas() first.",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError:  # it wants the Fortran runtime, which slim systems lack
        try:
            if not _lend_fortran_runtime(site / "mlx_cpu.libs"):
                return False
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError:  # no memory to put it in
            return False
    return True


def _lend_fortran_runtime(bundled: Path) -> bool:
    """Load the Fortran runtime that MLX's wheel bundles under the name by which any other library asks for it.

    Wheels rename what they bundle, and the loader knows a loaded library by the name written inside it: so a copy in
    memory gets the original name back.
    """
    quadmath, fortran = (next(bundled.glob(f"{name}-*.so*"), None) for name in ("libquadmath", "libgfortran"))
    if quadmath is None or fortran is None:
        return False
    ctypes.CDLL(str(quadmath))
    renamed, original = fortran.name.encode(), b"libgfortran.so.5"
    with os.fdopen(os.memfd_create("libgfortran"), "wb") as copy:
        copy.write(fortran.read_bytes().replace(renamed, original.ljust(len(renamed), b"\0")))
        copy.flush()
        ctypes.CDLL(f"/proc/self/fd/{copy.fileno()}")
    return True


def on_gpu() -> bool:
    """Whether MLX's default device is a GPU (Metal, or CUDA)."""
    import mlx.core as mx

    return bool(mx.default_device().type == mx.DeviceType.gpu)


def compute_dtype() -> mx.Dtype:
    """The precision to compute in where the user names none: float32 on the CPU backend, where half precision is slow,
    and bfloat16, which Mistral's releases are stored in, on a GPU.
    """
    import mlx.core as mx

    return mx.bfloat16 if on_gpu() else mx.float32


def reset_peak_memory() -> None:
    """Start counting `peak_memory` anew."""
    import mlx.core as mx

    mx.reset_peak_memory()


def peak_memory() -> int:
    """The most bytes that MLX held since the count was reset."""
    import mlx.core as mx

    return mx.get_peak_memory()


def release_thread() -> None:
    """Let MLX forget the thread that ends now: it aborts a process that exits while one that used it is still known."""
    if "mlx.core" in sys.modules:
        import mlx.core as mx

        mx.clear_streams()


def active_memory() -> int:
    """The bytes that MLX holds now."""
    import mlx.core as mx

    return mx.get_active_memory()


def worker_streams() -> list[mx.Stream]:
    """Streams of this thread to share out independent work over: on the CPU, where one is one core, one for each."""
    import mlx.core as mx

    if on_gpu():
        return [mx.default_stream(mx.default_device())]
    # Made once for a thread, for MLX takes none back before the thread ends.
    if not hasattr(_of_thread, "streams"):
        _of_thread.streams = [mx.new_stream(mx.cpu) for _ in range(os.cpu_count() or 1)]
    streams: list[mx.Stream] = _of_thread.streams
    return streams


def machine() -> str:
    """The system and the device that MLX computes on, in words."""
    import mlx.core as mx

    name = str(mx.device_info().get("device_name", "")) if on_gpu() else f"{platform.machine()} CPU"
    return f"{platform.system()} {platform.release().split('-')[0]}, {name}"


def wire_memory() -> bool:
    """Keep what MLX holds resident, up to what Metal recommends, for the rest of the process (macOS 15 and newer).

    Returns:
        Whether there is Metal, which alone can do that.
    """
    import mlx.core as mx

    if not mx.metal.is_available():
        return False
    mx.set_wired_limit(memory_limit())
    return True


def memory_limit() -> int:
    """Bytes that weights and cache may take together: what Metal recommends to keep on the GPU, else all memory."""
    import mlx.core as mx

    recommended = mx.device_info().get("max_recommended_working_set_size") if on_gpu() else None
    return int(recommended or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
