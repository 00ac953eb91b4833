"""The C heap of this process, set so that a training step reuses the memory of the step before it.

A step allocates and frees hundreds of megabytes. glibc gives large blocks back to the kernel at once and gets them
again as single pages of 4 KiB, each of which is cleared and mapped anew: 240 MB of faults a step of ResNet-50, and a
look-up table that no cache holds. Here freed memory is kept, one arena serves all threads, and the kernel is asked for
pages of 2 MiB. Measured in docs/performance.md. Used by `runtime`; imports nothing heavy.
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
_HUGE_PAGE_BYTES = 2 * 2**20
_MADV_HUGEPAGE = 14


@functools.cache
def keep_heap() -> bool:
    """Sets the heap up once a process; before the threads that are to share it begin.

    Returns:
        Whether it is set: under Linux with glibc, unless the user chose settings or another allocator
        (GLIBC_TUNABLES with glibc.malloc, MALLOC_ARENA_MAX and its like, LD_PRELOAD).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or _is_chosen(os.environ):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: _STEP_BYTES}
    is_set = all([libc.mallopt(name, value) == 1 for name, value in settings.items()])
    _advise_huge_pages(libc)
    return is_set


def _is_chosen(variables: Mapping[str, str]) -> bool:
    tuned = "glibc.malloc" in variables.get("GLIBC_TUNABLES", "")
    return tuned or any(name.startswith("MALLOC_") or name == "LD_PRELOAD" for name in variables)


def _advise_huge_pages(libc: ctypes.CDLL) -> None:
    """Marks where the heap will grow: as much as half of the machine's memory, of which nothing is touched here."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    block = libc.malloc(size)
    if block is None:
        return
    first = -(-block // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    # Advice: where the kernel has no such pages, or never gives them, nothing is lost.
    libc.madvise(first, (block + size - first) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES, _MADV_HUGEPAGE)
    libc.free(block)
