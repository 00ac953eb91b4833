"""Laws of the benchmark: what an arm is shown, what it is judged on, and that it runs on today's frame."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tfbig.config import RunConfig

BENCH = Path(__file__).parents[1] / "tools" / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module("label_efficiency")


def test_a_draw_shows_as_many_of_each_class_and_keeps_the_others(bench):
    labels = np.random.default_rng(0).integers(0, 10, 500)
    shown, rest = bench.drawn(labels, 5, 0)
    assert np.bincount(labels[shown]).tolist() == [5] * 10
    assert sorted([*shown, *rest]) == list(range(500))
    assert set(shown) != set(bench.drawn(labels, 5, 1)[0])
    assert set(shown) == set(bench.drawn(labels, 5, 0)[0])
    everything, nothing = bench.drawn(labels, None, 0)
    assert sorted(everything) == list(range(500)) and not len(nothing)


def test_every_arm_has_settings_for_every_number_of_labels(bench):
    assert set(bench.SETTINGS) == {(arm, labels) for arm in bench.ARMS for labels in bench.LABELS}


def test_shown_labels_are_learnt_and_judged_on_others(bench):
    splits = bench.TASK.load(RunConfig())
    shown, rest = bench.drawn(splits.train.labels, 2, 0)
    train, judged = splits.train.subset(shown), splits.train.subset(rest[:64])
    settings = bench.Settings(learning_rate=1e-3, num_steps=20, batch_size=20)
    learnt = bench.accuracy("finetuned", settings, train, judged, splits, 0)
    not_learnt = bench.accuracy("finetuned", bench.Settings(1e-9, 1), train, judged, splits, 0)
    assert learnt > 0.6 and learnt > not_learnt + 0.3
