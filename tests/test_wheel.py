"""A wheel, installed into an empty environment away from the checkout, runs the default job."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tfbig.networks import compiled_batch_norm
from tfbig.training.environment import is_compiled


@pytest.mark.slow
def test_the_wheel_runs_the_default_job(project_root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=project_root, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (project_root / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((project_root / name).read_bytes())
    _run([sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(source)], tmp_path)
    (wheel,) = (tmp_path / "dist").glob("tfbig-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    # What was compiled for this environment is compiled for the wheel.
    compiled = {"tfbig/data/_jpeg.abi3.so"} if is_compiled("tfbig.data._jpeg") else set()
    compiled |= {"tfbig/networks/_batch_norm.abi3.so"} if compiled_batch_norm.is_compiled() else set()
    assert {"tfbig/data/_jpeg.pyi", "tfbig/py.typed"} | compiled <= held

    empty = tmp_path / "empty"
    _run([sys.executable, "-m", "venv", str(empty)], tmp_path)
    python = str(empty / "bin" / "python")
    _run([python, "-m", "pip", "install", "--quiet", str(wheel)], tmp_path)

    job = [python, "-m", "tfbig.pipelines.image_finetune"]
    done = _run([*job, "--config", "digits", "--export.dir", "served"], tmp_path)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["metrics"]["test_accuracy"] >= 0.98
    assert (tmp_path / result["export"] / "saved_model.pb").is_file()
    where = _run([python, "-c", "import tfbig; print(tfbig.__file__)"], tmp_path).stdout
    assert str(empty) in where
    assert "bundled:glyphs" in _run([python, "-m", "tfbig", "list"], tmp_path).stdout
    assert _run([python, "-m", "tfbig", "doctor"], tmp_path).returncode == 0


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    return done
