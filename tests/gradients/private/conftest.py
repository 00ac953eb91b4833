"""The reference that private training is held against: one example after the other, added up in float64."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.data.splits import Batch
from tfbig.gradients.private.checks import checked_engine
from tfbig.gradients.private.clipping import Clipped, Engine, Losses, OutputSpec
from tfbig.objectives.supervised import classification

NUM_CLASSES = 5


@dataclass(frozen=True)
class Private:
    """A network that passed every check, with the engine that was chosen for it."""

    network: keras.Model
    losses: Losses
    engine: Engine
    output_spec: OutputSpec

    def clipped(self, batch: Batch, clip_norm: float, *, jit: bool = False) -> Clipped:
        """What the engine gives, traced once."""
        return self._with_xla(batch, tf.constant(clip_norm)) if jit else self._traced(batch, tf.constant(clip_norm))

    @functools.cached_property
    def _traced(self) -> Callable[[Batch, tf.Tensor], Clipped]:
        return tf.function(self._run)

    @functools.cached_property
    def _with_xla(self) -> Callable[[Batch, tf.Tensor], Clipped]:
        return tf.function(self._run, jit_compile=True)

    def _run(self, batch: Batch, clip_norm: tf.Tensor) -> Clipped:
        return self.engine(self.losses, self.network, batch, clip_norm, training=True)


def prepare(network: keras.Model, losses: Losses | None = None) -> Private:
    """As tfbig.gradients.private.rule.private does it."""
    losses = classification(NUM_CLASSES).losses if losses is None else losses
    return Private(network, losses, *checked_engine(losses, network, np.zeros(1, "int32")))


def example_gradients(losses: Losses, network: keras.Model, batch: Batch) -> list[np.ndarray]:
    """Each example's whole gradient as one float64 vector, by itself and without anything of tfbig.gradients."""
    variables = [variable.value for variable in network.trainable_variables]

    @tf.function
    def gradient(single: Batch) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(losses(network, single, training=True)[0])
        found = tape.gradient(loss, variables, unconnected_gradients="zero")
        return tf.concat([tf.reshape(tf.cast(tf.convert_to_tensor(g), tf.float32), [-1]) for g in found], 0)

    sizes = range(batch.weight.shape[0])
    return [np.asarray(gradient(tf.nest.map_structure(lambda t, i=i: t[i : i + 1], batch)), np.float64) for i in sizes]


def clipped_sum(gradients: Sequence[np.ndarray], weights: np.ndarray, clip_norm: float) -> np.ndarray:
    """Abadi et al. 2016, algorithm 1, lines 5 and 6, in float64."""
    total = np.zeros_like(gradients[0])
    for gradient, weight in zip(gradients, weights, strict=True):
        total += weight * gradient / max(1.0, np.linalg.norm(gradient) / clip_norm)
    return total


def as_vector(sums: Sequence[tf.Tensor]) -> np.ndarray:
    """One float64 vector."""
    return np.concatenate([np.asarray(total, np.float64).ravel() for total in sums])


def make_batch(x: np.ndarray | dict[str, np.ndarray], *, padded: int = 1, seed: int = 0) -> Batch:
    """A batch whose last examples only fill it up."""
    size = len(next(iter(x.values())) if isinstance(x, dict) else x)
    weight = np.ones(size, "f4")
    weight[size - padded :] = 0
    y = np.random.default_rng(seed).integers(0, NUM_CLASSES, size).astype("int32")
    return Batch(tf.nest.map_structure(tf.constant, x), tf.constant(y), tf.constant(weight))


def perturb(network: keras.Model, *, seed: int = 0) -> keras.Model:
    """No weight keeps an initial value, such as 0 or 1, that would hide a wrong gradient."""
    rng = np.random.default_rng(seed)
    for variable in network.trainable_variables:
        variable.assign_add(rng.normal(0, 0.1, variable.shape).astype("f4"))
    return network


def check_against_loop(
    network: keras.Model,
    x: np.ndarray | dict[str, np.ndarray],
    *,
    engine: str = "tapped",
    jit: bool = False,
    losses: Losses | None = None,
    tolerance: float = 1e-5,
) -> None:
    """The law: the expected engine is chosen, and gives the loop's norms and its clipped sum."""
    private = prepare(perturb(network), losses)
    assert private.engine.name == engine
    batch = make_batch(x)
    gradients = example_gradients(private.losses, network, batch)
    norms = np.array([np.linalg.norm(gradient) for gradient in gradients])
    # Half of the examples are clipped.
    clip_norm = float(np.median(norms))
    came = private.clipped(batch, clip_norm, jit=jit)
    # What is far below the clip is an example with next to no loss, whose gradient is rounding itself.
    np.testing.assert_allclose(came.norms, norms, rtol=tolerance, atol=tolerance * clip_norm)
    expected = clipped_sum(gradients, np.asarray(batch.weight), clip_norm)
    assert np.linalg.norm(as_vector(came.sums) - expected) <= tolerance * np.linalg.norm(expected)


@dataclass(frozen=True)
class Reference:
    """The functions above, for tests."""

    prepare: Callable[..., Private] = staticmethod(prepare)
    example_gradients: Callable[..., list[np.ndarray]] = staticmethod(example_gradients)
    clipped_sum: Callable[..., np.ndarray] = staticmethod(clipped_sum)
    as_vector: Callable[..., np.ndarray] = staticmethod(as_vector)
    make_batch: Callable[..., Batch] = staticmethod(make_batch)
    perturb: Callable[..., keras.Model] = staticmethod(perturb)
    check_against_loop: Callable[..., None] = staticmethod(check_against_loop)


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The per-example loop and what goes with it."""
    return Reference()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same initial weights whichever tests run."""
    keras.utils.set_random_seed(0)
