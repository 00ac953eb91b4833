"""What is compiled: built where a compiler is, done without where none is, and said which of both."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfbig import doctor
from tfbig.networks import compiled_batch_norm
from tfbig.training import environment

_SOURCES = ("setup.py", "setup.cfg", "MANIFEST.in", "README.md", "LICENSE", "tfbig/__init__.py")


@pytest.fixture
def checkout(project_root: Path, tmp_path: Path) -> Path:
    """What building needs."""
    sources = (path.relative_to(project_root) for path in (project_root / "tfbig").glob("*/_*.[ch]"))
    for name in [*_SOURCES, *sources]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project_root / name, tmp_path / name)
    return tmp_path


def _build(checkout: Path, **variables: str) -> list[Path]:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environ = os.environ | variables
    done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return sorted((checkout / "tfbig").glob("*/*.so"))


def test_both_are_built_where_a_compiler_and_the_header_are(checkout: Path) -> None:
    compiler = shutil.which("gcc")
    program = "#include <stdio.h>\n#include <jpeglib.h>\nint main(void) { return 0; }"
    check = [compiler or "", "-x", "c", "-fsyntax-only", "-"]
    if compiler is None or subprocess.run(check, input=program, text=True, capture_output=True).returncode:
        pytest.skip("no gcc or no jpeglib.h here (gcc, libjpeg-dev)")
    built, library = _build(checkout)
    # For every version of Python that tfbig takes.
    assert (built.name, library.name) == ("_jpeg.abi3.so", "_batch_norm.abi3.so")
    script = f"import tensorflow as tf; print(callable(tf.load_op_library({str(library)!r}).tfbig_normalise))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
    script = f"import sys; sys.path.insert(0, {str(built.parent)!r}); import _jpeg; print(_jpeg.decode_parts.__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "decode_parts", done.stderr


def test_a_source_distribution_holds_all_that_is_compiled(checkout: Path) -> None:
    # It names packages that are not in the checkout.
    (checkout / "setup.cfg").unlink()
    command = [sys.executable, "setup.py", "--quiet", "sdist"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    assert {str(path.relative_to(checkout)) for path in (checkout / "tfbig").glob("*/_*.[ch]")} <= held


def test_both_are_done_without_where_no_compiler_is(checkout: Path) -> None:
    assert _build(checkout, CC="no-such-compiler") == []


def test_a_run_says_whether_the_operations_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = compiled_batch_norm.is_compiled()
    assert environment.describe(devices=[], num_replicas=1)["compiled_batch_norm"] is there
    assert doctor._batch_norm().state == ("ok" if there else "note")
    monkeypatch.setattr(compiled_batch_norm, "_library", lambda: None)
    assert environment.describe(devices=[], num_replicas=1)["compiled_batch_norm"] is False
    assert doctor._batch_norm().state == "note"


def test_a_network_is_trained_without_the_operations() -> None:
    script = """
import sys
sys.modules["tfbig.networks._batch_norm"] = None
import keras
from tfbig.networks import compiled_batch_norm
from tfbig.networks.fused import fused
assert not compiled_batch_norm.is_compiled()
network = fused(keras.Sequential([keras.Input((4, 4, 8)), keras.layers.BatchNormalization(), keras.layers.ReLU()]))
assert [type(layer).__name__ for layer in network.layers] == ["FusedBatchNormalization", "ReLU"]
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_library_that_cannot_be_loaded_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "_batch_norm.abi3.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(compiled_batch_norm.importlib.util, "find_spec", lambda _: SimpleNamespace(origin=str(broken)))
    assert compiled_batch_norm._library.__wrapped__() is None


def test_a_library_without_the_operations_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_batch_norm.importlib.util, "find_spec", lambda _: SimpleNamespace(origin="old.so"))
    monkeypatch.setattr(compiled_batch_norm.tf, "load_op_library", lambda _: SimpleNamespace(tfbig_moments=print))
    assert compiled_batch_norm._library.__wrapped__() is None


def test_a_run_says_whether_the_module_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
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
