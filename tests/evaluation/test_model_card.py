"""The card says what the run's files say, and "not measured" for the rest."""

import json
import re

import numpy as np
import pytest
import yaml

from tfbig.evaluation.metrics import classification_metrics
from tfbig.evaluation.model_card import write_model_card
from tfbig.gradients.private.mechanism import Mechanism
from tfbig.gradients.private.record import privacy_record


@pytest.fixture
def run_dir(tmp_path):
    report = classification_metrics(
        np.array([0, 1, 1, 0]), np.array([[0.8, 0.2], [0.4, 0.6], [0.9, 0.1], [0.7, 0.3]]), class_names=["猫", "a|b"]
    )
    files = {
        "environment.json": {"python": "3.11.9", "module": "tfbig.pipelines.image_finetune"},
        "status.json": {"state": "done", "started": "2026-01-01T00:00:00+00:00"},
        "evaluation.json": report,
        "data_manifest.json": {
            "fingerprint": "f1d0",
            "splits": {"test": {"origin": "given", "examples": 4, "per_class": {"猫": 2, "a|b": 2}}},
            "duplicates": {"within": {"test": 0}, "across": {"train/test": 7}},
        },
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    config = {"job": "image_finetune", "data": {"source": "digits"}, "runtime": {"seed": 3}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "step": 20, "seconds": 1.0}\n{"epoch": 2, "step": 40}\n')
    return tmp_path


def card(run_dir):
    return write_model_card(run_dir).read_text(encoding="utf-8")


def test_an_empty_run_measured_nothing(tmp_path):
    text = card(tmp_path)
    for claim in ("Accuracy: not measured", "Figures a class: not measured", "trained | not measured"):
        assert claim in text
    # No number but the heading's level may stand where nothing was measured.
    assert not re.search(r"\d\.\d", text)
    assert "Trained without differential privacy" in text


def test_the_card_says_what_the_files_say(run_dir):
    text = card(run_dir)
    assert "| Accuracy | 0.750 | " in text
    assert "| trained | 2 epochs, 40 steps |" in text
    assert "7 examples of test with the same content as one of train" in text
    assert "python -m tfbig.pipelines.image_finetune --config config.yaml" in text and "Seed: 3." in text
    assert "/somewhere" not in text


@pytest.mark.parametrize(
    ("file", "claim"),
    [
        ("evaluation.json", "Accuracy: not measured"),
        ("data_manifest.json", "duplicates and unreadable files: not measured"),
        ("metrics.jsonl", "| trained | not measured |"),
        ("environment.json", "Command: not stated"),
        ("config.yaml", "Source: not stated"),
        ("status.json", "| state of the run | not stated |"),
    ],
)
def test_each_missing_file_is_said_to_be_missing(run_dir, file, claim):
    assert claim not in card(run_dir)
    (run_dir / file).unlink()
    assert claim in card(run_dir)


def test_a_private_run_shows_its_budget(run_dir):
    (run_dir / "dp.json").write_text('{"epsilon": 2.9, "delta": 1e-05}')
    text = card(run_dir)
    assert "| epsilon | 2.9 |" in text and "without differential privacy" not in text


def _private_record(**changed):
    mechanism = Mechanism(**{"noise_multiplier": 1.1, "num_examples": 1000, "batch_size": 100, "sampling": "poisson",
                             **changed})  # fmt: skip
    return privacy_record(
        mechanism, num_steps=13, planned_steps=20, delta=1e-5, l2_norm_clip=0.7, accountant="rdp",
        trained_variables=["logits/kernel", "logits/bias"], engine="tapped", chosen_on_validation=["the best epoch"],
        public_parts=["the pretrained backbone"],
    )  # fmt: skip


def test_a_private_runs_card_says_what_dp_json_says(run_dir):
    record = _private_record()
    (run_dir / "dp.json").write_text(json.dumps(record))
    text = card(run_dir)
    shown = re.search(r"^\| epsilon \| ([\d.]+) \|$", text, re.MULTILINE)
    assert float(shown[1]) == pytest.approx(record["epsilon"], rel=1e-3)
    plain = text.replace("\\", "")
    for row in ("| steps | 13 |", "| noise_multiplier | 1.1 |", "| l2_norm_clip | 0.7 |", "| batch_size | 100 |"):
        assert row in plain, row
    assert record["statement"] in plain
    for gap in record["not_covered"]:
        assert f"- {gap}" in plain
    for file in record["not_private_files"]:
        assert file in plain
    assert "Covered: 2 variables" in plain


def test_a_private_runs_card_confirms_no_guess_at_an_example(run_dir):
    assert "Fingerprint: f1d0" in card(run_dir)
    (run_dir / "dp.json").write_text(json.dumps(_private_record()))
    assert "f1d0" not in card(run_dir) and "ingerprint" not in card(run_dir)


def test_a_card_credits_a_shuffled_run_no_amplification(run_dir):
    (run_dir / "dp.json").write_text(json.dumps(_private_record(sampling="shuffle")))
    text = card(run_dir).replace("\\", "")
    assert "no amplification by sampling is credited" in text and "Poisson sampling)" not in text


def test_a_card_does_not_make_a_promise_of_infinity(run_dir):
    (run_dir / "dp.json").write_text(json.dumps(_private_record(noise_multiplier=0.0)))
    text = card(run_dir).replace("\\", "")
    assert "| epsilon | inf |" in text and "No privacy is promised" in text
    assert "differentially private for" not in text and "- Anything: no noise was added." in text


def test_a_run_that_its_budget_ended_says_so(run_dir):
    (run_dir / "dp.json").write_text(json.dumps(_private_record()))
    (run_dir / "status.json").write_text('{"state": "stopped"}')
    assert "The run is stopped" in card(run_dir)


def test_names_cannot_break_a_table_or_become_html(run_dir):
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    evaluation["per_class"][1]["name"] = "x|y\n<script>`*_[a](b)"
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation))
    text = card(run_dir)
    row = next(line for line in text.splitlines() if line.startswith("| x"))
    assert len(re.split(r"(?<!\\)\|", row)) == 8
    assert not re.search(r"(?<!\\)[<`]script", text) and "猫" in text


def test_an_unfinished_run_says_so(run_dir):
    (run_dir / "status.json").write_text('{"state": "interrupted"}')
    assert "The run is interrupted" in card(run_dir)
