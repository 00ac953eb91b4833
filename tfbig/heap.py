"""The C heap of this process, set so that a training step reuses the memory of the step before it.

A step allocates and frees hundreds of megabytes. glibc gives large blocks back to the kernel at once and gets them
again as single pages of 4 KiB, each of which is cleared and mapped anew: 240 MB of faults a step of ResNet-50. Here
freed memory is kept, and one arena serves all threads. Measured in docs/performance.md. Used by `runtime`; imports
nothing heavy.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Mapping

# Parameters of mallopt, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_STEP_BYTES = 256 * 2**20


@functools.cache
def keep_heap() -> bool:
    """Sets the heap up once a process; before the threads that are to share it begin.

    Returns:
        Whether it is set: under Linux with glibc, unless the user chose settings or another allocator
        (GLIBC_TUNABLES with glibc.malloc, MALLOC_ARENA_MAX and its like, LD_PRELOAD).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or _is_chosen(os.environ):
        return False
    libc = ctypes.CDLL(None)
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: _STEP_BYTES}
    return all([libc.mallopt(name, value) == 1 for name, value in settings.items()])


def _is_chosen(variables: Mapping[str, str]) -> bool:
    tuned = "glibc.malloc" in variables.get("GLIBC_TUNABLES", "")
    return tuned or any(name.startswith("MALLOC_") or name == "LD_PRELOAD" for name in variables)
