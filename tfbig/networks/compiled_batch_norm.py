"""Batch normalisation joined with the sum and the activation behind it, on processors: operations compiled with tfbig.

`_batch_norm.c` says what they compute. They are there if a C compiler was there when tfbig was installed, and used by
networks/joined.py. Letters in shapes: B images, H and W pixels, C channels.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from types import ModuleType

import tensorflow as tf

from tfbig.threads import num_threads_of_operation

TYPES = tf.float32, tf.bfloat16
_OPERATIONS = "tfbig_moments", "tfbig_normalise", "tfbig_normalise_gradient"


def is_compiled() -> bool:
    """Whether the operations are there."""
    return _library() is not None


@functools.cache
def _library() -> ModuleType | None:
    found = importlib.util.find_spec("tfbig.networks._batch_norm")
    if found is None or found.origin is None:
        return None
    try:
        library = tf.load_op_library(found.origin)
    except tf.errors.OpError:
        return None
    return library if all(hasattr(library, name) for name in _OPERATIONS) else None


def moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and biased variance of each channel, (C,) float32, of images (B, H, W, C); no gradient goes through them.

    They are no numbers where there are no images.
    """
    return _compiled().tfbig_moments(x=x, num_threads=num_threads_of_operation())


def normalised(
    x: tf.Tensor,
    residual: tf.Tensor | None,
    channels: Sequence[tf.Tensor],
    epsilon: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
) -> tf.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * scale + offset + residual, no less than `low` and no more than `high`.

    Its gradient is that for `channels` that hold the moments of x, and takes what comes through them with it.

    Args:
        x: (B, H, W, C), of one of TYPES.
        residual: As x; None for none.
        channels: Mean and variance, as `moments` gives them, scale and offset; (C,) float32 each.
        epsilon: Added to the variance.
        low: Where it cuts, no gradient comes through.
        high: Likewise.

    Returns:
        As x.
    """
    return _compiled().tfbig_normalise(
        x, [] if residual is None else [residual], *channels, epsilon=epsilon, low=low, high=high,
        num_threads=num_threads_of_operation(),
    )  # fmt: skip


def _compiled() -> ModuleType:
    library = _library()
    if library is None:
        raise RuntimeError("the operations were not compiled; ask is_compiled() first")
    return library


tf.no_gradient("TfbigMoments")


@tf.RegisterGradient("TfbigNormalise")
def _gradient(operation: tf.Operation, upstream: tf.Tensor) -> list[tf.Tensor | None]:
    num_residuals = operation.get_attr("R")
    x, channels = operation.inputs[0], operation.inputs[1 + num_residuals :]
    result = [operation.outputs[0]] * num_residuals
    of_x, of_scale, of_offset, of_residual = _compiled().tfbig_normalise_gradient(
        _summands(upstream), x, result, *channels,
        epsilon=operation.get_attr("epsilon"), low=operation.get_attr("low"), high=operation.get_attr("high"),
        num_threads=operation.get_attr("num_threads"),
    )  # fmt: skip
    return [of_x, *of_residual, None, None, of_scale, of_offset]


def _summands(upstream: tf.Tensor) -> list[tf.Tensor]:
    """The two tensors that a gradient was added up of, for which the operation needs no pass of its own."""
    if not tf.executing_eagerly() and upstream.op.type == "AddN" and len(upstream.op.inputs) == 2:
        return list(upstream.op.inputs)
    return [upstream]
