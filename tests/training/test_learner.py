"""The learner's step as one graph is the step that Keras makes of it."""

import keras
import numpy as np
import pytest

from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.splits import array_split
from tfbig.gradients.rule import mean_gradient
from tfbig.objectives.supervised import classification
from tfbig.training.learner import Learner
from tfbig.training.optimizers import WarmupCosine, make_optimizer


def _trained() -> tuple[Learner, dict[str, list[float]]]:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    split = array_split(rng.normal(size=(50, 4)).astype("f4"), rng.integers(0, 3, 50))
    inputs = keras.Input((4,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8, activation="relu")(inputs))
    network = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dropout(0.2, seed=1)(hidden)))
    learner = Learner(network, classification(3), mean_gradient)
    schedule = WarmupCosine(0.05, num_steps=14, warmup_steps=2, falls=True)
    learner.compile(optimizer=make_optimizer("adamw", learning_rate=schedule), jit_compile=False)
    steps = batches(split, IndexPlan(50, 8, seed=1))
    validation = batches(split, IndexPlan(50, 8, shuffle=False))
    history = learner.fit(steps, validation_data=validation, epochs=2, shuffle=False, verbose=0).history
    return learner, history


def test_one_graph_gives_what_keras_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, history = _trained()
    assert ours._is_one_graph
    monkeypatch.setattr(Learner, "_is_one_graph", False)
    theirs, expected = _trained()
    assert history == expected
    for one, other in zip(ours.network.variables, theirs.network.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert len(history["loss"]) == len(history["val_loss"]) == 2
