"""A trained network on a held-out split: probabilities, figures and predictions.csv.

The batches come from the index plan in stored order; rows that only fill up the last batch are dropped
before anything is counted. Letters in shapes: N examples, B a batch, C classes. Used by fit.py's callers,
report.py and charts.py's figure for TensorBoard.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.splits import DataSpec, Features, Split
from tfbig.errors import DivergedError
from tfbig.evaluation.metrics import THRESHOLD, classification_metrics, example_losses
from tfbig.training.run_directory import RunDirectory

# A spreadsheet with more columns than this is not read by people.
_MAX_PROBABILITY_COLUMNS = 50
# A cell that begins so is run as a formula by spreadsheets (OWASP, CSV injection).
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Evaluation:
    """What a network said about a split, and how good that is.

    Args:
        labels: (N,) integers, or (N, C) zeros and ones for multi-label data.
        probabilities: (N, C) float32.
        names: N names of the examples.
        report: The content of evaluation.json, see `metrics.classification_metrics`.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    names: Sequence[str]
    report: dict[str, object]

    @property
    def multi_label(self) -> bool:
        """True where an example may have several classes, or none."""
        return self.labels.ndim == 2

    @property
    def losses(self) -> np.ndarray:
        """(N,) loss of each example."""
        return example_losses(self.labels, self.probabilities)

    @property
    def targets(self) -> np.ndarray:
        """(N, C) booleans: the true classes."""
        if self.multi_label:
            return self.labels > 0
        return self.labels[:, None] == np.arange(self.probabilities.shape[1])

    @property
    def decisions(self) -> np.ndarray:
        """(N, C) booleans: the predicted classes."""
        if self.multi_label:
            return self.probabilities > THRESHOLD
        return self.probabilities.argmax(axis=1)[:, None] == np.arange(self.probabilities.shape[1])


def predict(network: keras.Model, split: Split, *, batch_size: int, spec: DataSpec) -> np.ndarray:
    """The probabilities that a network gives each example, in the split's order.

    Args:
        network: Gives (B, C) logits in inference mode.
        split: N examples, at least one.
        batch_size: B; has no influence on the result.
        spec: Says how many classes there are, and whether they exclude each other.

    Returns:
        (N, C) float32: softmax of the logits, or their sigmoid for multi-label data.

    Raises:
        ValueError: The network's output is not (B, C).
        DivergedError: It gives values that are not finite.
    """
    to_probabilities = tf.sigmoid if spec.multi_label else tf.nn.softmax

    @tf.function(reduce_retracing=True)
    def forward(x: Features) -> tf.Tensor:
        # bfloat16 logits would round probabilities to two digits.
        return to_probabilities(tf.cast(network(x, training=False), tf.float32))

    plan = IndexPlan(len(split), batch_size, shuffle=False)
    rows = []
    for x, _, weight in batches(split, plan):
        probabilities = forward(x).numpy()  # (B, C)
        if probabilities.shape != (batch_size, len(spec.class_names)):
            raise ValueError(
                f"Expected logits of shape {(batch_size, len(spec.class_names))}, one column a class, got "
                f"{probabilities.shape}."
            )
        rows.append(probabilities[weight.numpy() > 0])
    result = np.concatenate(rows)  # (N, C)
    _require_finite(result, split.names)
    return result


def evaluate(
    network: keras.Model, split: Split, spec: DataSpec, *, batch_size: int, seed: int = 0
) -> Evaluation:
    """Judges a network on a split.

    Args:
        network: Gives (B, C) logits in inference mode.
        split: N examples, at least one.
        spec: The data's classes.
        batch_size: B; has no influence on the result.
        seed: Draws the bootstrap resamples of the intervals.

    Returns:
        Predictions and figures.

    Raises:
        DivergedError: The network gives values that are not finite.
    """
    probabilities = predict(network, split, batch_size=batch_size, spec=spec)
    report = classification_metrics(
        split.labels, probabilities, class_names=spec.class_names, multi_label=spec.multi_label, seed=seed
    )
    return Evaluation(split.labels, probabilities, split.names, report)


def write_predictions(path: Path, evaluation: Evaluation, class_names: Sequence[str]) -> None:
    """Writes one row an example: name, label, predicted, probability, correct (1 or 0), loss.

    Up to 50 classes have a column of probabilities each, `p_CLASS`. Several labels in a cell are joined by
    `|`; `probability` is that of the most probable class. A text that a spreadsheet would run as a formula gets
    an apostrophe before it.

    Args:
        path: The file, UTF-8; written whole or not at all.
        evaluation: N examples.
        class_names: C names.

    Raises:
        EnvironmentFault: The folder cannot be written.
    """
    probabilities, targets, decisions = evaluation.probabilities, evaluation.targets, evaluation.decisions
    columns = class_names if len(class_names) <= _MAX_PROBABILITY_COLUMNS else ()
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["name", "label", "predicted", "probability", "correct", "loss", *(f"p_{name}" for name in columns)]
    )
    for i, (name, loss) in enumerate(zip(evaluation.names, evaluation.losses, strict=True)):
        table.writerow([
            _harmless(str(name)),
            _harmless(joined(targets[i], class_names)),
            _harmless(joined(decisions[i], class_names)),
            f"{probabilities[i].max():.6f}",
            int((targets[i] == decisions[i]).all()),
            f"{loss:.6f}",
            *(f"{p:.6f}" for p in probabilities[i, : len(columns)]),
        ])
    RunDirectory(path.parent).write_text(path.name, encodable(text.getvalue()))


def joined(chosen: np.ndarray, class_names: Sequence[str], *, between: str = "|") -> str:
    """The names of the classes that are chosen, (C,) booleans, in one text."""
    return between.join(str(class_names[c]) for c in np.flatnonzero(chosen).tolist())


def encodable(text: str) -> str:
    """The text with bytes of file names that are no UTF-8 (Python's lone surrogates) spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _harmless(text: str) -> str:
    if not text.startswith(_FORMULA_STARTS) or _is_number(text):
        return text
    return f"'{text}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _require_finite(probabilities: np.ndarray, names: Sequence[str]) -> None:
    bad = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(bad):
        raise DivergedError(
            f"The network must give finite values, but gave NaN or infinity for {len(bad)} of {len(probabilities)} "
            f"examples, first for {names[int(bad[0])]}; train again with a lower --train.learning_rate."
        )
