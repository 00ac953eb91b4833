"""Laws of the benchmark of the input: what its ratios mean, and that it makes nothing up."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

BENCH = Path(__file__).parents[1] / "tools" / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        for folder in (BENCH, BENCH / "harness", BENCH / "input"):
            patch.syspath_prepend(folder)
        yield importlib.import_module("input")


def test_ratios_are_above_one_where_tfbig_is_faster_and_take_the_faster_keras(bench):
    seconds = {"tfbig": [0.01, 9.0, 0.008], "hf": [0.03], "torch": [0.005], "keras_crop": [0.08], "keras_zoom": [0.04]}
    result = bench.summary(bench.Measured(seconds))
    assert (result["vs_hf"], result["vs_torch"], result["vs_keras"]) == (3.0, 0.5, 4.0)
    assert result["images_per_s"]["tfbig"] == bench.BATCH_SIZE / 0.01


def test_what_cannot_be_measured_is_null_and_said(bench):
    found = bench.Measured({"tfbig": [0.01], "hf": [0.02]}, absent={"hf": "it died", "torch": "no such library"})
    result = bench.summary(found)
    assert result["vs_hf"] is None and result["vs_torch"] is None and result["vs_keras"] is None
    assert "hf" not in result["images_per_s"]
    assert "it died" in bench.table(found) and "no such library" in bench.table(found)


def test_the_pictures_are_photographs_by_size_and_the_seed_decides_them(bench, tmp_path):
    pictures = importlib.import_module("pictures")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        size = pictures.write_pictures(tmp_path / name, num_pictures=10, quality=75, seed=seed)
        assert 20_000 < size < 120_000
    first, again, other = (sorted(tmp_path.glob(f"{name}/*/*.jpg")) for name in "abc")
    assert len(first) == 10 and len({file.parent for file in first}) == pictures.NUM_CLASSES
    assert first[3].read_bytes() == again[3].read_bytes() != other[3].read_bytes()
    pixels = np.asarray(Image.open(first[0]))
    assert pixels.shape == (pictures.HEIGHT, pictures.WIDTH, 3) and pixels.std() > 20


@pytest.mark.parametrize("arguments", [["--only", "jax"], ["--turns", "0"], ["--quality", "99"]])
def test_bad_flags_are_refused(arguments):
    command = [sys.executable, str(BENCH / "input.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and arguments[1] in done.stderr


@pytest.mark.slow
def test_our_input_is_seen():
    command = [sys.executable, str(BENCH / "input.py"), "--only", "tfbig", "--turns", "2", "--steps", "2"]
    done = subprocess.run([*command, "--pictures", "100"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "tfbig" in done.stdout, done.stderr
