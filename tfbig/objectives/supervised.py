"""Classification objectives: cross-entropy and focal loss, for one class or several a example.

An objective gives one loss per example (B examples, C classes); how they become gradients is the
gradient rule's business. Focal loss: Lin et al. 2017, arXiv 1708.02002.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from tfbig.data.splits import Batch


@dataclass(frozen=True)
class Objective:
    """What a run minimises and what it shows meanwhile.

    Args:
        losses: (network, batch, *, training) -> ((B,) float32 losses, outputs).
        metrics: Makes fresh Keras metrics of (targets, outputs).
        monitor: The validation figure that picks the best epoch, such as "loss" or "accuracy".
        mode: Whether a smaller ("min") or larger ("max") monitor is better.
        separable: True where example i's loss depends on example i alone; private training needs it.
    """

    losses: Callable[..., tuple[tf.Tensor, tf.Tensor]]
    metrics: Callable[[], list[keras.metrics.Metric]]
    monitor: str = "loss"
    mode: Literal["min", "max"] = "min"
    separable: bool = True


def classification(
    num_classes: int,
    *,
    multi_label: bool = False,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    class_weights: np.ndarray | None = None,
) -> Objective:
    """Softmax cross-entropy for one class an example, sigmoid cross-entropy for several.

    Args:
        num_classes: C, at least 2; multi-label data may have 1.
        multi_label: Targets are (B, C) zeros and ones.
        label_smoothing: Share of each target spread over all classes, 0 to below 1.
        focal_gamma: Above 0, examples are weighed by (1 - p of the target)^gamma; 2 is usual.
        class_weights: (C,) weight of each class's examples; for multi-label data, of its positives.

    Returns:
        An objective over integer labels (B,) or target distributions (B, C), and logits (B, C).
    """
    weights = None if class_weights is None else tf.constant(class_weights, tf.float32)

    def losses(network: keras.Model, batch: Batch, *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        logits = tf.cast(network(batch.x, training=training), tf.float32)  # (B, C)
        targets = _distribution(batch.y, num_classes)  # (B, C)
        per_class = _binary_terms if multi_label else _categorical_terms
        terms = per_class(logits, targets, label_smoothing, focal_gamma)  # (B, C)
        if weights is not None:
            terms *= 1.0 + targets * (weights - 1.0) if multi_label else weights
        return (tf.reduce_mean if multi_label else tf.reduce_sum)(terms, axis=-1), logits

    return Objective(losses=losses, metrics=_multi_label_metrics if multi_label else _metrics)


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Class weights that give rare classes their say; 0 for a class without any example.

    Args:
        labels: (N,) integer classes, or (N, C) zeros and ones.
        num_classes: C.

    Returns:
        (C,) float32: in inverse proportion to frequency, 1 on average over the examples; for multi-label data
        negatives / positives of each class.
    """
    if labels.ndim == 2:
        counts = labels.sum(axis=0)
        weights = (len(labels) - counts) / np.maximum(counts, 1)
    else:
        counts = np.bincount(labels, minlength=num_classes)
        weights = len(labels) / (num_classes * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0.0).astype(np.float32)


def _distribution(y: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Integer labels (B,) or distributions (B, C) as float32 (B, C)."""
    return tf.cast(y, tf.float32) if y.shape.rank == 2 else tf.one_hot(y, num_classes)


def _categorical_terms(logits: tf.Tensor, targets: tf.Tensor, smoothing: float, gamma: float) -> tf.Tensor:
    log_p = tf.nn.log_softmax(logits)
    num_classes = targets.shape[-1]
    smooth = targets * (1.0 - smoothing) + smoothing / num_classes
    modulation = (1.0 - tf.exp(log_p)) ** gamma if gamma else 1.0
    return -smooth * modulation * log_p


def _binary_terms(logits: tf.Tensor, targets: tf.Tensor, smoothing: float, gamma: float) -> tf.Tensor:
    smooth = targets * (1.0 - smoothing) + 0.5 * smoothing
    terms = tf.nn.sigmoid_cross_entropy_with_logits(labels=smooth, logits=logits)
    if not gamma:
        return terms
    p = tf.sigmoid(logits)
    return terms * (targets * (1.0 - p) + (1.0 - targets) * p) ** gamma


class _ArgmaxAccuracy(keras.metrics.MeanMetricWrapper):
    """Share of examples whose largest logit is the (largest) target class."""

    def __init__(self, name: str = "accuracy", **kwargs: object) -> None:
        super().__init__(_argmax_matches, name=name, **kwargs)


def _argmax_matches(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    label = tf.argmax(targets, -1) if targets.shape.rank == 2 else tf.cast(targets, tf.int64)
    return tf.cast(label == tf.argmax(logits, -1), tf.float32)


def _metrics() -> list[keras.metrics.Metric]:
    return [_ArgmaxAccuracy()]


def _multi_label_metrics() -> list[keras.metrics.Metric]:
    return [keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)]
