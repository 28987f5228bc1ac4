"""The C library's allocator, told to keep the memory that a training step on a CPU gives back.

XLA takes a step's tens of megabytes of temporary memory and gives them back at its end. By itself glibc
returns such blocks to the kernel, which hands out cleared pages at the next step: nearly a quarter of the
time of a small U-Net's step (docs/benchmarks.md, "The allocator").
"""

import ctypes
import os

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1  # bytes free at the heap's end, above which they would be returned


def keep_freed_memory() -> bool:
    """From now on this process keeps memory once it has had it; whether that could be said.

    Its resident memory stays at the highest that it was. Nothing is done where the C library is not glibc,
    and where the user has tuned it (an environment variable MALLOC_*, GLIBC_TUNABLES).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
