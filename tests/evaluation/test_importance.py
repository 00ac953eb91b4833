"""The importance of a search's settings: found where it is, and not where there is none."""

import numpy as np
import pytest

from tfbig.evaluation.importance import importance
from tfbig.evaluation.search_report import search_section


def test_a_setting_that_decides_everything_explains_everything() -> None:
    values = np.random.default_rng(0).uniform(size=20).tolist()
    found = importance(values, [np.exp(5 * value) for value in values], is_range=True)
    assert found.share == pytest.approx(1.0)
    assert found.is_above_chance
    assert 0.2 < found.chance < 0.4


def test_a_best_value_in_the_middle_is_seen() -> None:
    values = np.random.default_rng(1).uniform(size=30).tolist()
    assert importance(values, [(value - 0.5) ** 2 for value in values], is_range=True).share > 0.7


def test_a_choice_is_judged_by_its_means() -> None:
    values = ["a", "b", None] * 6
    scores = [{"a": 1.0, "b": 3.0, None: 2.0}[value] + 0.01 * i for i, value in enumerate(values)]
    assert importance(values, scores, is_range=False).share > 0.85


def test_noise_is_above_chance_in_one_search_of_twenty() -> None:
    random = np.random.default_rng(2)
    above = [
        importance(random.uniform(size=20).tolist(), random.uniform(size=20).tolist(), is_range=True).is_above_chance
        for _ in range(200)
    ]
    assert 2 <= sum(above) <= 20


def test_nothing_is_said_where_there_is_too_little() -> None:
    assert importance([1.0, 2.0], [1.0, 2.0], is_range=True).share is None
    assert importance([1.0] * 9, list(range(9)), is_range=True).share is None
    assert not importance([1.0] * 9, list(range(9)), is_range=True).is_above_chance


def test_the_section_shows_every_trial_also_those_that_failed() -> None:
    trials = [
        {"number": i, "values": {"train.learning_rate": 10.0**-i, "model.hidden_units": None if i % 2 else 64},
         "score": None if i == 3 else 0.1 * (i + 1), "reason": "<diverged>" if i == 3 else "", "seconds": 1.5,
         "facts": {"validation_accuracy": 0.9}}
        for i in range(6)
    ]  # fmt: skip
    search = {
        "tuner": "random", "best": 0, "trials": trials, "importance": [{"name": "train.learning_rate", "share": 0.5,
        "chance": 0.6}],
        "parameters": [
            {"name": "train.learning_rate", "kind": "log", "values": [1e-5, 1.0]},
            {"name": "model.hidden_units", "kind": "choice", "values": [None, 64]},
        ],
    }  # fmt: skip
    html = search_section(search)
    assert html.count("<title>trial ") == 6
    assert "trial 3 failed: &lt;diverged&gt;" in html
    assert "<diverged>" not in html
    assert "not more than chance gives" in html
    assert "6 trials by random search, 1 of them failed" in html
    assert search_section({}) == ""
