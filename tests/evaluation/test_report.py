"""The page is self-contained, escapes what users named, and shows the numbers of evaluation.json."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from tfbig.errors import DataError, EnvironmentFault
from tfbig.evaluation.evaluate import Evaluation
from tfbig.evaluation.metrics import classification_metrics
from tfbig.evaluation.page import thumbnail
from tfbig.evaluation.report import write_report

EVIL = '<script>alert(1)</script>" onload="x'
HISTORY = [
    {"epoch": 1, "step": 20, "seconds": 1.0, "learning_rate": 0.1, "loss": 2.0, "accuracy": 0.4, "val_loss": 1.5,
     "val_accuracy": 0.5},
    {"epoch": 2, "step": 40, "seconds": 2.0, "learning_rate": 0.1, "loss": 1.0, "accuracy": 0.8,
     "val_loss": float("nan"), "val_accuracy": 0.7},
]


class Elements(HTMLParser):
    """Every element of a page with its attributes, and every word of its text."""

    def __init__(self, html):
        super().__init__()
        self.found, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def png(size=(8, 8), mode="L"):
    encoded = io.BytesIO()
    Image.new(mode, size, 1 if mode == "1" else None).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=500, C=1e-4).fit(x[:300], y[:300])
    return y[1200:], model.predict_proba(x[1200:]).astype(np.float32)


def evaluation_of(labels, probabilities, class_names, names=None):
    report = classification_metrics(
        labels, probabilities, class_names=class_names, multi_label=labels.ndim == 2, num_bootstrap=20
    )
    return Evaluation(labels, probabilities, names or [f"file {i}.png" for i in range(len(labels))], report)


def written(run_dir, evaluation, pictures=None, history=HISTORY):
    return write_report(run_dir, evaluation=evaluation, pictures=pictures, history=history).read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_runs_nothing(tmp_path, digits):
    html = written(tmp_path, evaluation_of(*digits, list("0123456789")), pictures=lambda i: png())
    assert not re.search(r"(https?:)?//\w", html)
    elements = Elements(html).found
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert len(html) < 1_000_000


def test_names_from_users_are_shown_and_never_become_elements(tmp_path):
    labels, probabilities = np.array([0, 1, 1]), np.array([[0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"source": EVIL}}), encoding="utf-8")
    (tmp_path / "environment.json").write_text(json.dumps({"platform": EVIL}), encoding="utf-8")
    (tmp_path / "data_manifest.json").write_text(json.dumps({
        "splits": {EVIL: {"origin": EVIL, "examples": 1, "per_class": {EVIL: 1}}},
        "unreadable": {"count": 1, "reasons": {EVIL: EVIL}},
    }), encoding="utf-8")
    evaluation = evaluation_of(labels, probabilities, [EVIL, "肺炎"], names=[EVIL, "b", "c\udce9"])
    for pictures in (None, lambda i: png()):
        html = written(tmp_path, evaluation, pictures)
        page = Elements(html)
        assert not [tag for tag, attributes in page.found if tag == "script" or "onload" in attributes]
        text = "".join(page.words)
        assert text.count(EVIL) > 8 and "肺炎" in text and "c\\udce9" in text


def test_the_page_shows_the_figures_and_their_intervals(tmp_path, digits):
    evaluation = evaluation_of(*digits, list("0123456789"))
    text = "".join(Elements(written(tmp_path, evaluation)).words)
    metrics = evaluation.report["metrics"]
    assert f"{100 * metrics['accuracy']['value']:.1f} %" in text
    auroc = metrics["auroc"]
    assert f"{auroc['low']:.3f} to {auroc['high']:.3f}" in text
    assert "epoch 1, with the lowest validation loss, 1.5" in text


def test_the_worst_mistakes_come_first(tmp_path, digits):
    evaluation = evaluation_of(*digits, list("0123456789"))
    worst = np.argsort(-evaluation.losses)[:16]
    asked = []

    def pictures(index):
        asked.append(index)
        return png()

    text = "".join(Elements(written(tmp_path, evaluation, pictures)).words)
    assert asked == list(worst)
    assert [int(i) for i in re.findall(r"file (\d+)\.png", text)] == list(worst)


@pytest.mark.parametrize("num_classes", [2, 40, 150])
def test_any_number_of_classes_makes_a_page(tmp_path, num_classes):
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(num_classes), size=300)
    names = [f"class {c}" for c in range(num_classes)]
    html = written(tmp_path, evaluation_of(random.integers(num_classes, size=300), probabilities, names))
    assert "Confusion matrix" in html and len(html) < 1_000_000


def test_multi_label_data_and_an_empty_run_make_a_page(tmp_path):
    labels = np.array([[1, 0, 1], [0, 0, 0]], np.float32)
    html = written(tmp_path, evaluation_of(labels, np.full((2, 3), 0.2), ["a", "b", "c"]), history=[])
    assert "Confusion matrix" not in html and "Learning curves" not in html
    text = "".join(Elements(html).words)
    assert "Exact match" in text and "a, c" in text and "no class" in text


def test_what_is_undefined_says_why(tmp_path):
    evaluation = evaluation_of(np.zeros(4, int), np.tile([0.9, 0.1], (4, 1)), ["a", "b"])
    text = "".join(Elements(written(tmp_path, evaluation)).words)
    assert "AUROC: no class is in some examples only." in text and "nan" not in text


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(8, 8), (900, 300)])
def test_every_kind_of_picture_becomes_a_small_one(mode, size):
    html = thumbnail(lambda i: png(size, mode), 0)
    data = base64.b64decode(re.search("base64,([^\"]*)", html)[1])
    picture = Image.open(io.BytesIO(data))
    assert max(picture.size) == min(max(size), 288)
    assert len(data) < 50_000


@pytest.mark.parametrize("content", [b"", b"no picture", png()[:40]])
def test_a_broken_picture_says_so(content):
    assert "cannot be shown" in thumbnail(lambda i: content, 0)


def test_a_broken_file_of_the_run_is_one_sentence(tmp_path):
    (tmp_path / "environment.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="environment.json cannot be read"):
        written(tmp_path, evaluation_of(np.array([0]), np.array([[0.9, 0.1]]), ["a", "b"]))


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        written(tmp_path / "none", evaluation_of(np.array([0]), np.array([[0.9, 0.1]]), ["a", "b"]))


def test_a_page_of_thousands_of_classes_stays_small_and_names_the_most_confused(tmp_path):
    num_classes = 3000
    labels = np.arange(num_classes)
    probabilities = np.zeros((num_classes, num_classes), np.float32)
    probabilities[labels, labels] = 1.0
    probabilities[7] = np.roll(probabilities[7], 5)
    evaluation = evaluation_of(labels, probabilities, [f"kind {c}" for c in range(num_classes)])
    html = written(tmp_path, evaluation)
    assert len(html) < 500_000
    words = Elements(html).words
    assert words[words.index("Most confused") :][5:9] == ["kind 7", "kind 12", "1", "100.0 %"]
    assert any("of 3,000; evaluation.json has them all" in word for word in words)
