"""The compiled module: built where a compiler is, done without where none is, and said which of both."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tfbig import doctor
from tfbig.training import environment

_SOURCES = ("setup.py", "setup.cfg", "README.md", "LICENSE", "tfbig/__init__.py", "tfbig/data/_jpeg.c")


@pytest.fixture
def checkout(project_root: Path, tmp_path: Path) -> Path:
    """What building the module needs."""
    for name in _SOURCES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project_root / name, tmp_path / name)
    return tmp_path


def _build(checkout: Path, **variables: str) -> list[Path]:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environ = os.environ | variables
    done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return list((checkout / "tfbig" / "data").glob("*.so"))


def test_it_is_built_where_a_compiler_and_the_header_are(checkout: Path) -> None:
    compiler = shutil.which("gcc")
    program = "#include <stdio.h>\n#include <jpeglib.h>\nint main(void) { return 0; }"
    check = [compiler or "", "-x", "c", "-fsyntax-only", "-"]
    if compiler is None or subprocess.run(check, input=program, text=True, capture_output=True).returncode:
        pytest.skip("no gcc or no jpeglib.h here (gcc, libjpeg-dev)")
    (built,) = _build(checkout)
    # For every version of Python that tfbig takes.
    assert built.name == "_jpeg.abi3.so"
    script = f"import sys; sys.path.insert(0, {str(built.parent)!r}); import _jpeg; print(_jpeg.decode_parts.__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "decode_parts", done.stderr


def test_it_is_done_without_where_no_compiler_is(checkout: Path) -> None:
    assert _build(checkout, CC="no-such-compiler") == []


def test_a_run_says_whether_it_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = environment.is_compiled("tfbig.data._jpeg")
    assert environment.describe(devices=[], num_replicas=1)["compiled_jpeg"] is there
    assert doctor._decoder().state == ("ok" if there else "note")
    monkeypatch.setitem(sys.modules, "tfbig.data._jpeg", None)
    assert environment.describe(devices=[], num_replicas=1)["compiled_jpeg"] is False
    assert doctor._decoder().state == "note"


def test_pictures_are_decoded_without_it() -> None:
    script = """
import sys
sys.modules["tfbig.data._jpeg"] = None
import numpy as np
import tensorflow as tf
from tfbig.data import image_parts
from tfbig.data.sized import sized
from tfbig.data.splits import Split
assert not image_parts.decodes_together()
grey = tf.io.encode_jpeg(tf.fill([20, 30, 3], tf.constant(51, tf.uint8)))
split = sized(Split(lambda i: grey, np.zeros(2, int), ["a", "b"]), 8)
parts = split.fetch_parts(tf.constant([0, 1], tf.int64), tf.constant([[0.5, 0.5, 0.0, 0.0, 0.0]] * 2))
assert parts.shape == (2, 8, 8, 3) and np.allclose(parts, 0.2)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
