"""`python -m tfbig`: list and doctor, what answers at once, and exit codes."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import tfbig
from tfbig import doctor, resources
from tfbig.__main__ import main
from tfbig.doctor import Finding


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["predict", "--help"], ["nope"], []])
def test_answers_without_tensorflow(arguments: list[str]) -> None:
    script = f"""
import sys
from tfbig.__main__ import main
try:
    main({arguments!r})
except SystemExit:
    pass
heavy = {{"tensorflow", "keras", "numpy", "rich", "jsonargparse"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_usage_errors_are_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    many = ["launch", "--workers", "100000", "no_job"]
    for arguments in (["nope"], ["predict", "somewhere"], ["predict", "x", "y", "--batch_size", "many"], [], many):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"tfbig {tfbig.__version__}\n"


def test_list_names_every_pipeline_recipe_and_bundled_backbone(
    capsys: pytest.CaptureFixture[str], project_root: Path
) -> None:
    assert main(["list"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    modules = {path.stem for path in (project_root / "tfbig" / "pipelines").glob("[!_]*.py")}
    runnable = {name for name in modules if "__main__" in (project_root / f"tfbig/pipelines/{name}.py").read_text()}
    assert "image_finetune" in listed
    assert runnable | set(resources.recipe_paths()) <= listed
    assert {f"bundled:{name}" for name in resources.bundled_backbones()} <= listed
    assert not (modules - runnable) & listed


def test_list_of_backbones_names_every_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "backbones"]) == 0
    listed = capsys.readouterr().out
    assert "apps:MobileNetV2" in listed and "scratch:small_cnn" in listed
    assert "Recipes" not in listed


def test_a_reader_that_stops_early_is_no_error(project_root: Path) -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m tfbig list | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", cwd=project_root, capture_output=True, text=True, check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_doctor_knows_every_dependency_and_finds_this_environment_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    found = capsys.readouterr().out
    for name in ("tensorflow", "keras", "tensorflow-hub", "setuptools", "pillow", "pkg_resources", "extra models"):
        assert f" {name} " in found
    assert metadata.version("tensorflow") in found
    assert "fault" not in found


def test_doctor_says_what_is_missing_or_of_another_version() -> None:
    from packaging.specifiers import SpecifierSet

    keras = metadata.version("keras")
    wrong = doctor._package("keras", SpecifierSet("<3"), "<3", needed=True)
    assert wrong == Finding("fault", "keras", f"{keras}, <3 is expected", "pip install 'keras<3'")
    missing = doctor._package("no-such-package", SpecifierSet(">=1"), ">=1", needed=True)
    assert (missing.state, missing.remedy) == ("fault", "pip install 'no-such-package>=1'")
    assert doctor._package("no-such-package", SpecifierSet(">=1"), ">=1", needed=False).state == "note"


def test_doctor_sees_the_keras_backend_trap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both places that Keras reads, in its order."""
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert doctor._keras_backend().state == "ok"
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    assert doctor._keras_backend().state == "fault"
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert doctor._keras_backend().state == "ok"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert doctor._keras_backend().remedy == "unset KERAS_BACKEND"


def test_doctor_fails_with_exit_4_where_something_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    assert main(["doctor"]) == 4
