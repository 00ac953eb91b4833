"""The heap of a process keeps what it frees, unless the user chose otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# How many pages are mapped anew when 64 MB are taken, written and freed again, in another thread.
FAULTS = """
import resource, sys, threading
import numpy as np
from tfbig.heap import keep_heap
is_set = keep_heap()
faults = []
def write():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(16 * 2**20, np.float32)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=write)
thread.start()
thread.join()
print(is_set, faults[-1])
"""


def _faults(**variables: str) -> tuple[str, int]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env={**kept, **variables}, capture_output=True, text=True, check=True
    )
    is_set, num_faults = done.stdout.split()
    return is_set, int(num_faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
def test_memory_that_is_freed_is_taken_again_without_faults() -> None:
    is_set, num_faults = _faults()
    assert is_set == "True"
    assert num_faults < 100
    # NumPy itself asks for pages of 2 MiB, so this is fewer than 64 MB of small ones.
    assert _faults(MALLOC_ARENA_MAX="4")[1] >= 10


@pytest.mark.parametrize(
    "variables", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}], ids=["name", "tunable"]
)
def test_a_users_own_settings_stay(variables: dict[str, str]) -> None:
    assert _faults(**variables)[0] == "False"
