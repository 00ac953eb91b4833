"""The attack's figures are those of the libraries, and its curve and page show what was measured."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from tfbig.evaluation import charts
from tfbig.evaluation.audit_report import write_audit_report
from tfbig.evaluation.membership import membership_figures, roc_points


def value(figures: dict, name: str) -> float:
    return figures[name]["value"]


@pytest.mark.parametrize("digits", [8, 1])
def test_figures_agree_with_the_libraries(digits: int) -> None:
    """Also where most losses are tied, as those of a saturated network are."""
    rng = np.random.default_rng(0)
    members, others = rng.exponential(1.0, 700).round(digits), rng.exponential(1.5, 400).round(digits)
    figures = membership_figures(members, others, num_bootstrap=50)
    is_member, scores = np.arange(1100) < 700, -np.concatenate([members, others])
    false, true, _ = roc_curve(is_member, scores, drop_intermediate=False)
    assert value(figures, "auc") == pytest.approx(roc_auc_score(is_member, scores))
    distance = stats.ks_2samp(members, others, alternative="greater", method="asymp").statistic
    assert value(figures, "advantage") == pytest.approx(distance)
    assert value(figures, "tpr_at_1_fpr") == pytest.approx(true[false <= 0.01].max())
    assert (figures["num_members"], figures["num_others"]) == (700, 400)


def test_intervals_hold_the_value_and_narrow_with_more_examples() -> None:
    rng, widths = np.random.default_rng(1), []
    for count in (100, 10_000):
        figures = membership_figures(rng.normal(0, 1, count), rng.normal(1, 1, count), num_bootstrap=200, seed=1)
        auc = figures["auc"]
        assert auc["low"] <= auc["value"] <= auc["high"]
        widths.append(auc["high"] - auc["low"])
        # Two normal distributions one standard deviation apart.
        assert auc["low"] - 0.02 < stats.norm.cdf(0.5**0.5) < auc["high"] + 0.02
    assert widths[1] < widths[0] / 5


def test_a_network_that_remembers_nothing_is_within_chance() -> None:
    rng, num_above = np.random.default_rng(2), 0
    for _ in range(200):
        figures = membership_figures(rng.normal(size=150), rng.normal(size=90), num_bootstrap=1)
        num_above += value(figures, "advantage") > figures["advantage_by_chance"]
    assert num_above / 200 <= 0.06


def test_extremes() -> None:
    low, high = np.zeros(30), np.ones(40)
    sides = ((low, high), (high, low), (low, low))
    known, unknown, same = (membership_figures(a, b, num_bootstrap=20) for a, b in sides)
    assert [value(known, name) for name in ("auc", "advantage", "tpr_at_1_fpr")] == [1, 1, 1]
    assert [value(unknown, name) for name in ("auc", "advantage", "tpr_at_1_fpr")] == [0, 0, 0]
    assert [value(same, name) for name in ("auc", "advantage", "tpr_at_1_fpr")] == [0.5, 0, 0]
    for members, others in ((np.array([]), low), (low, np.array([])), (np.array([np.nan]), low)):
        with pytest.raises(ValueError, match="finite losses"):
            membership_figures(members, others)


@pytest.mark.parametrize("count", [1, 3, 5000])
def test_the_curve_runs_from_corner_to_corner_within_its_frame(count: int) -> None:
    rng = np.random.default_rng(3)
    points = roc_points(rng.normal(size=count), rng.normal(1, 1, count))
    assert points[0] == (0.0, 0.0) and points[-1] == (1.0, 1.0) and len(points) <= 200
    assert points == sorted(points)
    root = ElementTree.fromstring(charts.roc_chart(points, label="a <b>"))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    (line,) = (element for element in root.iter() if element.attrib.get("class") == "line accent")
    placed = np.array(re.findall(r"[\d.]+", line[0].attrib["d"]), float).reshape(-1, 2)
    assert len(placed) == len(points) and placed.min() >= 0
    assert placed[:, 0].max() <= width and placed[:, 1].max() <= height
    # True positives upwards.
    assert placed[-1, 1] < placed[0, 1] and placed[-1, 0] > placed[0, 0]


def test_the_page_says_what_is_private_and_escapes_names(tmp_path: Path) -> None:
    run_dir = tmp_path / "<b>run"
    run_dir.mkdir()
    members, others = np.arange(50.0), np.arange(50.0) + 7
    check = {
        "canaries": "input", "num_canaries": 150, "steps": 12, "num_guesses": 60, "num_correct": 59,
        "epsilon_lower_bound": 2.345, "largest_provable": 2.5, "claimed_epsilon": "inf",
    }  # fmt: skip
    audit = {
        "claimed_epsilon": 7.5, "delta": 1e-5, "epsilon_lower_bound": 2.345, "verdict": "Consistent & <so>.",
        "canaries": {"num_canaries": 300, "steps": 12, "clipped_share": 1.0, "checks": [check]},
        "membership": membership_figures(members, others, num_bootstrap=20),
    }  # fmt: skip
    html = write_audit_report(run_dir, audit=audit, curve=roc_points(members, others)).read_text()
    assert "<b>run" not in html and "Consistent &amp; &lt;so&gt;." in html
    assert "59 of 60" in html and "2.345" in html and "7.500" in html
    assert "computed on the private training examples" in html
    public = {**audit, "claimed_epsilon": None, "delta": None, "epsilon_lower_bound": None, "canaries": {}}
    html = write_audit_report(run_dir, audit=public, curve=roc_points(members, others)).read_text()
    assert "Claimed epsilon" not in html and "Right guesses" not in html and "Membership AUC" in html
