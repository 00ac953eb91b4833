"""The whole job on real files: data in, served model out, and a sentence with the right exit code for each mistake."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tfbig.__main__ import main as tfbig_main
from tfbig.pipelines._main import main
from tfbig.pipelines.image_finetune import TASK

QUICK = ["--train.epochs", "1", "--model.backbone", "bundled:glyphs"]
RUN_FILES = (
    "config.yaml", "environment.json", "status.json", "metrics.jsonl", "data_manifest.json", "evaluation.json",
    "predictions.csv", "report.html", "MODEL_CARD.md", "tensorboard", "checkpoints",
)  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixty real digits as PNG files, two classes, splits to be drawn."""
    digits = load_digits()
    for label, name in ((3, "three"), (8, "eight")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for index in np.flatnonzero(digits.target == label)[:30]:
            Image.fromarray((digits.images[index] * 15).astype("u1")).resize((20, 24)).save(folder / f"{index}.png")
    return tmp_path / "photos"


def _run(arguments: list[str], capsys: pytest.CaptureFixture) -> tuple[int, dict, str]:
    code = main(TASK, arguments)
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out.strip() else {}, err


def test_from_a_folder_of_pictures_to_answers(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*QUICK, "--train.epochs", "4", "--data.source", "folder:photos", "--export.dir", "served",
                 "--data.class_weights", "balanced", "--run_dir", "runs/one"]  # fmt: skip
    code, result, err = _run(arguments, capsys)
    assert code == 0, err
    assert set(result) == {"run_dir", "export", "metrics", "epsilon"}
    assert (result["run_dir"], result["export"], result["epsilon"]) == ("runs/one", "served/1", None)
    assert result["metrics"]["test_accuracy"] >= 0.8
    run = tmp_path / "runs" / "one"
    for name in RUN_FILES:
        assert (run / name).exists(), name

    # What is served is what was judged: the export, given the test files, gives predictions.csv again.
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    files = [str(next(photos.rglob(Path(row["name"]).name))) for row in rows]
    assert tfbig_main(["predict", "served", *files, "--format", "jsonl"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["label"] for answer in answers] == [row["predicted"] for row in rows]
    for answer, row in zip(answers, rows, strict=True):
        assert answer["probability"] == pytest.approx(float(row["probability"]), abs=1e-4)

    # The same command again is answered from the finished run; --export.dir alone exports it again.
    assert _run(arguments, capsys)[1] == result
    code, again, _ = _run([*arguments, "--export.dir", "served2"], capsys)
    assert (code, again["export"], again["metrics"]) == (0, "served2/1", result["metrics"])

    # With other data it is another run.
    shutil.copy(files[0], photos / "three" / "new.png")
    code, _, err = _run([*arguments, "--export.dir", "served3"], capsys)
    assert code == 2 and "data has changed" in err


def test_a_dry_run_leaves_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, result, err = _run([*QUICK, "--data.source", f"folder:{photos}", "--dry_run",
                              "--run_dir", str(tmp_path / "run")], capsys)  # fmt: skip
    assert code == 0, err
    assert result["dry_run"]["trainable_parameters"] > 1000
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_diverges_stops_and_names_the_step(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    code, _, err = _run(["--model.backbone", "scratch:small_cnn", "--train.optimizer", "sgd", "--data.limit", "200",
                         "--train.learning_rate", "900", "--run_dir", str(run)], capsys)  # fmt: skip
    assert code == 5
    assert "step" in err and "learning_rate" in err and "Traceback" not in err
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


def _empty(photos: Path) -> None:
    shutil.rmtree(photos)
    photos.mkdir()


def _one_class(photos: Path) -> None:
    shutil.rmtree(photos / "eight")


def _truncated(photos: Path) -> None:
    picture = Image.fromarray(np.arange(4096, dtype="u1").reshape(64, 64))
    picture.save(photos / "three" / "cut.jpg")
    whole = (photos / "three" / "cut.jpg").read_bytes()
    (photos / "three" / "cut.jpg").write_bytes(whole[: len(whole) // 2])


def _text(photos: Path) -> None:
    (photos / "three" / "letter.jpg").write_text("Dear reader")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_empty, "photos"),
        (_one_class, "class"),
        (_truncated, "cut.jpg"),
        (_text, "letter.jpg"),
        (shutil.rmtree, "photos"),
    ],
)
def test_bad_data_is_one_sentence_and_exit_3(
    change: object, words: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    change(photos)
    run = tmp_path / "run"
    code, _, err = _run([*QUICK, "--data.source", f"folder:{photos}", "--run_dir", str(run)], capsys)
    assert code == 3, err
    assert words in err and "Traceback" not in err
    assert not run.exists()


def test_bad_files_can_be_skipped_and_are_counted(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _truncated(photos)
    _text(photos)
    run = tmp_path / "run"
    code, _, err = _run([*QUICK, "--data.source", f"folder:{photos}", "--data.on_bad", "skip",
                         "--run_dir", str(run)], capsys)  # fmt: skip
    assert code == 0, err
    manifest = (run / "data_manifest.json").read_text()
    assert "cut.jpg" in manifest and "letter.jpg" in manifest


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--data.source", "floder:x"], 2, "folder"),
        (["--data.source", "csv:{tmp}/no.csv"], 3, "no.csv"),
        (["--model.backbone", "tfhub:{tmp}"], 4, "saved_model.pb"),
        (["--model.backbone", "bundled:glyph"], 2, "glyphs"),
        (["--model.backbone", "apps:ResNet5"], 2, "ResNet50"),
        (["--export.dir", "{tmp}/file/served"], 4, "served"),
        (["--run_dir", "{tmp}/file/run"], 4, "run"),
        (["--adapt.mode", "lora"], 2, "lora"),
        (["--adapt.mode", "full", "--adapt.unfreeze_last", "99"], 2, "unfreeze_last"),
        (["--options.augment", "flipp"], 2, "flip"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], exit_code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = _run([*QUICK, *(word.format(tmp=tmp_path) for word in arguments)], capsys)
    assert code == exit_code, err
    assert words in err and "Traceback" not in err
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "runs") == before
