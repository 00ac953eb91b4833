"""Files that are damaged or removed while a run trains: a sentence and an exit code, and the process ends."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

JOB = [sys.executable, "-m", "tfbig.pipelines.image_finetune", "--model.backbone", "scratch:small_cnn",
       "--data.image_size", "48", "--data.batch_size", "16", "--train.epochs", "2000"]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eighty JPEG files of noise, two classes."""
    rng = np.random.default_rng(0)
    for number in range(80):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (150, 200, 3), np.uint8)).save(file)
    return tmp_path / "photos"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--options.augment", "resized_crop,flip"]], ids=["whole", "parts"])
@pytest.mark.parametrize("is_removed", [True, False], ids=["removed", "damaged"])
def test_a_run_says_which_data_it_lost(photos: Path, tmp_path: Path, options: list[str], is_removed: bool) -> None:
    run, told = tmp_path / "run", tmp_path / "told.txt"
    command = [*JOB, *options, "--data.source", f"folder:{photos}", "--run_dir", str(run)]
    with told.open("w") as err:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
        try:
            rows = run / "metrics.jsonl"
            until = time.monotonic() + 120
            while not (rows.exists() and rows.read_text().count("\n") >= 2):
                assert process.poll() is None and time.monotonic() < until, told.read_text()[-2000:]
                time.sleep(0.05)
            for file in photos.rglob("*.jpg"):
                if is_removed:
                    file.unlink()
                else:
                    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    said = [line for line in told.read_text().splitlines() if line.startswith(("error:", "unexpected"))]
    assert (process.returncode, out) == (3, ""), said
    assert len(said) == 1 and said[0].startswith("error: An example cannot be read any more: ")
    assert "Traceback" not in told.read_text() and (str(photos) in said[0] or not is_removed)
