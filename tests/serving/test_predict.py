"""`python -m tfbig predict`: every readable file is answered, every other one is named."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfbig.__main__ import main
from tfbig.data.images import decode_and_resize

FORMATS = ("jpg", "png", "gif", "bmp")


@pytest.fixture(scope="module")
def brightness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in the form image_signatures gives, that answers with the picture's brightness."""
    module = tf.Module()

    def answer(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        image = tf.map_fn(lambda f: decode_and_resize(f, 8), image_bytes, fn_output_signature=tf.float32)
        light = tf.reduce_mean(image, axis=(1, 2, 3))
        return {
            "label": tf.where(light > 0.5, "白", "black"),
            "probability": tf.maximum(light, 1 - light),
            "probabilities": tf.stack([light, 1 - light], axis=-1),
        }

    spec = tf.TensorSpec([None], tf.string, name="image_bytes")
    served = tf.function(answer, [spec])
    embed = tf.function(lambda image_bytes: {"embedding": answer(image_bytes)["probabilities"]}, [spec])
    folder = tmp_path_factory.mktemp("brightness")
    for version, signatures in (("2", {"other": embed}), ("10", {"serving_default": served, "embed": embed})):
        tf.saved_model.save(module, str(folder / version), signatures)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, form in enumerate(FORMATS):
        Image.new("RGB", (10 + i, 9), ("white", "black")[i % 2]).save(folder / f"{i}.{form}")
    (folder / "README").write_text("not a picture, and not named as one")
    return folder


def test_a_folder_of_all_formats_as_csv(brightness: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(brightness), str(pictures), "--batch_size", "3"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [Path(row["file"]).name for row in rows] == [f"{i}.{form}" for i, form in enumerate(FORMATS)]
    assert [row["label"] for row in rows] == ["白", "black", "白", "black"]
    assert all(float(row["probability"]) > 0.99 for row in rows)
    assert set(rows[0]) == {"file", "label", "probability"}


def test_bad_files_are_named_and_the_others_answered(
    brightness: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "0a.jpg").write_text("a text")
    (pictures / "2a.png").write_bytes((pictures / "1.png").read_bytes()[:40])
    (pictures / "9.gif").write_bytes(b"")
    arguments = ["predict", str(brightness), str(pictures), str(pictures / "gone.png"), "--format", "jsonl"]
    assert main(arguments) == 3
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [Path(answer["file"]).name for answer in answers] == [f"{i}.{form}" for i, form in enumerate(FORMATS)]
    assert answers[0]["label"] == "白"
    assert list(answers[0]) == ["file", "label", "probability", "probabilities"]
    np.testing.assert_allclose(sum(answers[0]["probabilities"]), 1, atol=1e-6)
    for name in ("0a.jpg", "2a.png", "9.gif", "gone.png"):
        assert f"{name}: " in err
    # Why, in TensorFlow's words without its nodes.
    assert "0a.jpg: the export refuses it: Unknown image file format" in err
    assert "Graph execution error" not in err and "{{" not in err and "[Op:" not in err
    assert "4 of 8 examples" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_table_and_vectors(brightness: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(brightness), str(pictures / "[0-1].*"), "--format", "table"]) == 0
    table = capsys.readouterr().out
    assert "probability" in table and "白" in table and "black" in table
    assert main(["predict", str(brightness), str(pictures / "0.jpg"), "--signature", "embed"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header == "file,embedding_0,embedding_1"
    assert float(row.split(",")[1]) > 0.99


def test_rows_of_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = tf.Module()
    spec = tf.TensorSpec([None, 3], tf.float32, name="features")
    module.served = tf.function(lambda features: {"total": tf.reduce_sum(features, -1)}, [spec])
    tf.saved_model.save(module, str(tmp_path / "export" / "1"), {"serving_default": module.served})
    table = tmp_path / "rows.csv"
    table.write_text("a,b,c\n1,2,3\n4,5\n6,x,7\n\n8,9,10\n")
    assert main(["predict", str(tmp_path / "export"), str(table)]) == 3
    out, err = capsys.readouterr()
    assert out.splitlines() == ["file,total", f"{table}:2,6.0", f"{table}:6,27.0"]
    assert f"{table}:3: features takes 3 columns, got 2 columns" in err
    assert f"{table}:4: features takes numbers, got 'x'" in err


def test_columns_by_the_names_of_several_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = tf.Module()
    specs = [tf.TensorSpec([None], tf.string, name="text"), tf.TensorSpec([None], tf.int64, name="times")]
    module.served = tf.function(lambda text, times: {"label": tf.strings.join([text, tf.as_string(times)])}, specs)
    tf.saved_model.save(module, str(tmp_path / "export" / "1"), {"serving_default": module.served})
    (tmp_path / "rows.csv").write_text("﻿id,times,text\nx,3,酒店\n", encoding="utf-8")
    assert main(["predict", str(tmp_path / "export"), str(tmp_path / "rows.csv"), "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "酒店3"


@pytest.mark.parametrize("batch_size", ["0", "-2"])
def test_batch_size_is_checked(brightness: Path, batch_size: str) -> None:
    assert main(["predict", str(brightness), "x.png", "--batch_size", batch_size]) == 2


def test_what_is_no_export_is_exit_4_and_a_sentence(
    brightness: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"nonsense")
    for export in (tmp_path / "none", tmp_path, broken, brightness / "2"):
        assert main(["predict", str(export), "x.png"]) == 4
        err = capsys.readouterr().err
        assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert main(["predict", str(brightness), "x.png", "--signature", "nope"]) == 2
    assert "embed, serving_default" in capsys.readouterr().err
