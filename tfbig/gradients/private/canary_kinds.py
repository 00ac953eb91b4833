"""The two kinds of canaries, and how to find them in a sum of gradients; what they are for is said in canaries.py.

Letters in shapes: M canaries of one kind, D coordinates of the gradient, W of them that input canaries are looked
for in, the last ones, since those of the head come last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfbig.data.sampling import padded_length
from tfbig.data.splits import Batch, Features
from tfbig.gradients.private.clipping import Losses

# Of (M, W) float32: 64 MB.
_MAX_ELEMENTS = 2**24
_SCALES = (1.0, 10.0, 100.0, 1000.0)
_NUM_TRIED = 8
# Of the square of a canary's norm: keeps canaries that nearly coincide from being told apart by noise alone.
_RIDGE = 0.1
# Where input canaries are only taken away from directions, a smaller one leaves less of them.
_LEAST_RIDGE = 1e-3


class InputCanaries:
    """Made-up inputs with the labels that the network finds least likely, and how to find them in a gradient.

    Canaries of both kinds are found by regularised least squares, so that those that overlap are not taken for each
    other; the directions are orthogonal, which leaves a system of the size of the input canaries.

    Args:
        losses: An Objective's.
        network: As it is.
        labels: Of which only shape and type are used.
        num_canaries: M.
        clip_norm: The bound that the gradients should reach.
        rng: Draws the inputs.
    """

    def __init__(
        self,
        losses: Losses,
        network: keras.Model,
        labels: np.ndarray,
        *,
        num_canaries: int,
        clip_norm: float,
        rng: np.random.Generator,
    ) -> None:
        gradient_of = _gradient_function(losses, network, labels)
        drawn = {spec.name: _draw(spec, num_canaries, rng) for spec in network.inputs}

        def examples(scale: float) -> Features:
            scaled = {
                name: values if np.issubdtype(values.dtype, np.integer) else (values * scale).astype(values.dtype)
                for name, values in drawn.items()
            }
            return next(iter(scaled.values())) if len(scaled) == 1 else scaled

        def share(scale: float) -> float:
            few = [gradient_of(_example(examples(scale), i))[0] for i in range(min(_NUM_TRIED, num_canaries))]
            return float(np.mean([np.linalg.norm(gradient) >= clip_norm for gradient in few]))

        # The smallest scale at which all gradients that are tried exceed the bound, or as many as can be.
        self._x = examples(max(_SCALES, key=share))
        self._y = np.zeros((num_canaries, *labels.shape[1:]), labels.dtype)
        self.spec = [tf.nest.map_structure(_batch_spec, self._x), _batch_spec(self._y), _batch_spec(np.zeros(1, "f4"))]
        rows, norms = np.zeros((0, 0), np.float32), np.zeros(num_canaries)
        for i in range(num_canaries):
            gradient, self._y[i] = gradient_of(_example(self._x, i))
            if not i:
                rows = np.empty((num_canaries, min(len(gradient), _MAX_ELEMENTS // num_canaries)), np.float32)
            norms[i] = np.linalg.norm(gradient)
            rows[i] = gradient[-rows.shape[1] :] / max(norms[i], clip_norm)
        self._rows = tf.constant(rows)
        self.clipped_share = float(np.mean(norms >= clip_norm))

    def separated_from(self, directions: DirectionCanaries) -> None:
        """Prepares `found`: how much the canaries overlap with each other and with those of the other kind."""
        rows = self._rows.numpy()
        across = np.stack([directions.scores_of_last(row) for row in rows])  # (M, M of the other kind)
        overlap = rows @ rows.T - across @ across.T  # (M, M), what the other kind does not explain
        size = max(np.trace(rows @ rows.T) / len(rows), 1e-12)

        def inverse(ridge: float) -> tf.Tensor:
            regular = overlap.astype(np.float64) + ridge * size * np.eye(len(rows))
            return tf.constant(np.linalg.inv(regular), tf.float32)

        self._across, self._finder, self._remover = tf.constant(across), inverse(_RIDGE), inverse(_LEAST_RIDGE)

    def found(self, gradient: tf.Tensor, directions: DirectionCanaries) -> list[tf.Tensor]:
        """How often each canary of both kinds is in a sum (D,) of clipped gradients over the bound."""
        along = directions.scores(gradient)
        own = tf.linalg.matvec(self._rows, gradient[-self._rows.shape[1] :])
        rest = own - tf.linalg.matvec(self._across, along)
        removed = tf.linalg.matvec(self._across, tf.linalg.matvec(self._remover, rest), transpose_a=True)
        return [tf.linalg.matvec(self._finder, rest), along - removed]

    def batch(self, drawn: np.ndarray, multiple: int) -> tuple[Features, np.ndarray, np.ndarray]:
        """The canaries that are drawn with weight 1, filled up to at least one `multiple` with weight 0."""
        chosen = np.repeat(np.arange(len(drawn)), drawn.astype(np.int64))
        length = padded_length(max(len(chosen), 1), multiple)
        rows, weight = np.zeros(length, np.int64), np.zeros(length, np.float32)
        rows[: len(chosen)], weight[: len(chosen)] = chosen, 1.0
        return tf.nest.map_structure(lambda values: values[rows], self._x), self._y[rows], weight


class DirectionCanaries:
    """Unit vectors of random signs, each on its own share of the coordinates, and so orthogonal.

    Args:
        num_canaries: M, at most D.
        num_coordinates: D.
        rng: Draws the signs.
    """

    def __init__(self, num_canaries: int, num_coordinates: int, rng: np.random.Generator) -> None:
        num_rows = -(-num_coordinates // num_canaries)
        signs = np.zeros(num_rows * num_canaries, np.float32)
        signs[:num_coordinates] = rng.integers(0, 2, num_coordinates) * 2 - 1
        columns = signs.reshape(num_rows, num_canaries)
        self._vectors = tf.constant(columns / np.sqrt(np.abs(columns).sum(axis=0)))  # (D / M, M), a canary a column
        self._num_coordinates = num_coordinates

    def sum(self, drawn: tf.Tensor) -> tf.Tensor:
        """(D,) sum of the canaries that are drawn, (M,) numbers of times."""
        return tf.reshape(self._vectors * drawn, [-1])[: self._num_coordinates]

    def scores(self, gradient: tf.Tensor) -> tf.Tensor:
        """(M,) how often each is in a sum, (D,)."""
        num_missing = int(np.prod(self._vectors.shape)) - self._num_coordinates
        padded = tf.pad(gradient, [[0, num_missing]])
        return tf.reduce_sum(tf.reshape(padded, self._vectors.shape) * self._vectors, 0)

    def scores_of_last(self, last: np.ndarray) -> np.ndarray:
        """(M,) how much of each is in a vector of the last W coordinates."""
        return self.scores(tf.pad(last, [[self._num_coordinates - len(last), 0]])).numpy()


def _gradient_function(
    losses: Losses, network: keras.Model, labels: np.ndarray
) -> Callable[[Features], tuple[np.ndarray, np.ndarray]]:
    """One example's input -> its whole gradient (D,) for the least likely label, and that label."""
    no_label = np.zeros((1, *labels.shape[1:]), labels.dtype)
    weight = tf.ones(1)

    @tf.function
    def answer(x: Features) -> tf.Tensor:
        return losses(network, Batch(x, tf.constant(no_label), weight), training=False)[1]

    @tf.function
    def gradient(x: Features, y: tf.Tensor) -> tf.Tensor:
        values = [variable.value for variable in network.trainable_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            per_example, _ = losses(network, Batch(x, y, weight), training=False)
            loss = tf.reduce_sum(per_example)
        return flat(tape.gradient(loss, values, unconnected_gradients="zero"), network)

    def both(x: Features) -> tuple[np.ndarray, np.ndarray]:
        x = tf.nest.map_structure(tf.constant, x)
        y = _least_likely(answer(x), no_label)
        return gradient(x, tf.constant(y)).numpy(), y[0]

    return both


def _least_likely(outputs: tf.Tensor, no_label: np.ndarray) -> np.ndarray:
    """The class with the lowest logit, or for labels of zeros and ones the opposite of each decision."""
    if isinstance(outputs, tf.Tensor) and outputs.shape.rank == 2:
        if no_label.ndim == 1 and np.issubdtype(no_label.dtype, np.integer):
            return np.argmin(outputs, axis=1).astype(no_label.dtype)
        if no_label.shape == tuple(outputs.shape):
            return (np.asarray(outputs, np.float32) < 0).astype(no_label.dtype)
    return no_label


def _draw(spec: keras.KerasTensor, num_canaries: int, rng: np.random.Generator) -> np.ndarray:
    shape = [num_canaries, *(size or 8 for size in spec.shape[1:])]
    dtype = tf.as_dtype(spec.dtype)
    drawn = rng.standard_normal(shape) if dtype.is_floating else rng.integers(0, 2, shape)
    return drawn.astype(dtype.as_numpy_dtype)


def _example(x: Features, index: int) -> Features:
    return tf.nest.map_structure(lambda values: values[index : index + 1], x)


def _batch_spec(values: np.ndarray) -> tf.TensorSpec:
    return tf.TensorSpec([None, *values.shape[1:]], tf.as_dtype(values.dtype))


def flat(gradients: Sequence[tf.Tensor | None], network: keras.Model) -> tf.Tensor:
    """(D,) float32, all variables one after the other."""
    pairs = zip(gradients, network.trainable_variables, strict=True)
    found = [tf.zeros(variable.shape) if gradient is None else gradient for gradient, variable in pairs]
    return tf.concat([tf.reshape(tf.cast(tf.convert_to_tensor(part), tf.float32), [-1]) for part in found], 0)
