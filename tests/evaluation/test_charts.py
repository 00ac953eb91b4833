"""Charts are well-formed, say the true numbers, and never break on the edge of their range."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tfbig.evaluation import charts


def texts(svg):
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("text")]


@pytest.mark.parametrize("num_classes", [2, 10, 25])
def test_a_confusion_chart_shows_every_count(num_classes):
    matrix = np.arange(num_classes**2).reshape(num_classes, num_classes)
    shown = texts(charts.confusion_chart(matrix.tolist(), [f"name {c}" for c in range(num_classes)]))
    for count in matrix.ravel()[1:]:
        assert str(count) in shown
    assert "name 1" in shown


@pytest.mark.parametrize("num_classes", [26, 100, 1000])
def test_many_classes_become_pixels(num_classes):
    matrix = np.eye(num_classes, dtype=int)
    svg = charts.confusion_chart(matrix.tolist(), [str(c) for c in range(num_classes)])
    assert svg.count("<image") == 1 and len(texts(svg)) < 110 and len(svg) < 100_000
    ElementTree.fromstring(svg)


def test_names_are_escaped_in_charts():
    svg = charts.confusion_chart([[1, 2], [3, 4]], ["<script>x</script>", 'a"b&'])
    assert "<script" not in svg
    ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    "points", [[(1.0, 0.5)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, 1e-9), (500.0, 1e9)], [(3.0, -2.0), (4.0, 5.0)]]
)
def test_a_line_chart_stays_within_its_frame(points):
    svg = charts.line_chart({"training": points, "validation": []}, label="loss", mark=points[0][0])
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    circles = list(root.iter("circle"))
    assert len(circles) == len(points)
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= width and 0 <= float(circle.attrib["cy"]) <= height


def test_a_line_chart_of_nothing_is_empty():
    assert charts.line_chart({"training": []}, label="loss") == ""


def test_axis_ticks_are_round_and_span_the_values():
    svg = charts.line_chart({"a": [(1.0, 0.12), (20.0, 0.97)]}, label="accuracy")
    assert {"0", "0.2", "1", "5", "20"} <= set(texts(svg))


def test_calibration_bars_reach_the_accuracy():
    bins = [{"low": 0.4, "high": 0.6, "count": 8, "confidence": 0.5, "accuracy": 0.25},
            {"low": 0.6, "high": 0.8, "count": 4, "confidence": 0.7, "accuracy": 0.9},
            {"low": 0.8, "high": 1.0, "count": 0, "confidence": None, "accuracy": None}]
    svg = charts.calibration_chart(bins)
    root = ElementTree.fromstring(svg)
    heights = {kind: [float(r.attrib["height"]) for r in root.iter("rect") if r.attrib["class"] == kind]
               for kind in ("hit", "gap", "beyond", "bar")}
    side = heights["hit"][0] / 0.25
    assert heights["gap"] == pytest.approx([0.25 * side], abs=0.2)
    assert heights["hit"][1] + heights["beyond"][0] == pytest.approx(0.9 * side, abs=0.2)
    assert heights["bar"][0] == pytest.approx(2 * heights["bar"][1], abs=0.2)
    assert "said 0.500, was right 0.250, 8 decisions" in re.sub("<[^>]*>", "|", svg)


@pytest.mark.parametrize("names", [["a", "b"], ["正常", "肺炎"], ["$x_", "^y$"]])
def test_the_png_is_a_picture_whose_diagonal_is_dark(names):
    png = charts.confusion_matrix_png([[90, 0], [0, 90]], names)
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert picture.shape == (800, 800)
    upper_left, upper_right = picture[200:250, 200:250].mean(), picture[200:250, 600:650].mean()
    assert upper_left + 100 < upper_right


def test_the_png_takes_a_hundred_classes():
    assert charts.confusion_matrix_png(np.eye(100, dtype=int).tolist(), [str(c) for c in range(100)])[:4] == b"\x89PNG"
