"""What Linux tells of a processor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tfbig.hardware import cpu_flags


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/cpuinfo")
def test_a_processor_is_known_by_its_flags(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 sse\nbugs\t: amx_bf16\n\nprocessor\t: 1\n")
    assert cpu_flags(told) == {"fpu", "avx512_bf16", "sse"}
    told.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert "bf16" in cpu_flags(told)
    assert cpu_flags(tmp_path / "none") == frozenset()
