"""What the hardware has, and computes by itself, not in software. Beside `runtime`; imports TensorFlow when asked."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Of x86 and of ARM, as Linux names them."""
_LEAST_COMPUTE_CAPABILITY = (8, 0)


def num_cores() -> int:
    """Of the processor, as many as this process may use."""
    # A container's share, where the system tells it.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def computes_bfloat16() -> bool:
    """Whether products of bfloat16 are instructions here: of every GPU, or of the processor where there is none.

    Returns:
        True for TPUs, for GPUs of compute capability 8.0 and above, and for processors with AVX512_BF16, AMX or
        ARM's BF16 where the system tells (Linux).
    """
    import tensorflow as tf

    # A TPU's products are of bfloat16, whatever its host's processor has.
    if tf.config.list_physical_devices("TPU"):
        return True
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return all(detail.get("compute_capability", (0, 0)) >= _LEAST_COMPUTE_CAPABILITY for detail in details)
    return bool(_CPU_FLAGS & cpu_flags())


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instructions beyond the base set that Linux says the processor has; none elsewhere.

    Args:
        cpuinfo: Where it says so.
    """
    if platform.system() != "Linux" or not cpuinfo.is_file():
        return frozenset()
    lines = (line.partition(":") for line in cpuinfo.read_text(errors="replace").splitlines())
    found = (value.split() for name, _, value in lines if name.strip() in ("flags", "Features"))
    return frozenset(next(found, ()))
