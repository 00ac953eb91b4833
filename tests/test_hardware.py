"""What Linux tells of a processor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tensorflow as tf

from tfbig.hardware import computes_bfloat16, cpu_flags


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/cpuinfo")
def test_a_processor_is_known_by_its_flags(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 sse\nbugs\t: amx_bf16\n\nprocessor\t: 1\n")
    assert cpu_flags(told) == {"fpu", "avx512_bf16", "sse"}
    told.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert "bf16" in cpu_flags(told)
    assert cpu_flags(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(("found", "capability", "expected"), [
    ({"TPU"}, (), True),
    ({"GPU"}, (8, 0), True),
    ({"GPU"}, (7, 5), False),
    ({"TPU", "GPU"}, (7, 5), True),
])  # fmt: skip
def test_accelerators_answer_in_place_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, found: set[str], capability: tuple[int, ...], expected: bool
) -> None:
    # What a machine with them would list; tests have none.
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind] if kind in found else [])
    details = {"compute_capability": capability}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    assert computes_bfloat16() is expected
