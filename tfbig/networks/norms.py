"""Group normalisation in place of BatchNorm, for networks that have no weights yet.

BatchNorm mixes the examples of a batch, so no example's influence on it can be bounded; private training needs
another norm (De et al. 2022, arXiv 2204.13650). Group normalisation: Wu and He 2018, arXiv 1803.08494.
"""

from __future__ import annotations

import math

import keras

from tfbig.errors import UsageError

_MOST_GROUPS = 32


def with_group_norm(network: keras.Model) -> keras.Model:
    """A fresh network of the same layers, each BatchNorm replaced by group normalisation.

    Args:
        network: Functional or Sequential, built, other such models in it included; its weights are not kept.

    Returns:
        A network with new weights. A norm of C channels has the most groups, up to 32, that divide C evenly and
        hold two numbers or more (a group of one number would always give 0).

    Raises:
        UsageError: A layer of another kind holds a BatchNorm of its own, where it cannot be replaced.
    """
    # A Sequential model calls its layers itself, without a mask where there is none.
    called = {} if isinstance(network, keras.Sequential) else {"call_function": _called}
    return keras.models.clone_model(network, clone_function=_replaced, **called)


def _called(layer: keras.layers.Layer, *args: object, **kwargs: object) -> keras.KerasTensor:
    if isinstance(layer, keras.layers.GroupNormalization):
        # Images have no mask, but BatchNorm's calls name one.
        kwargs.pop("mask", None)
    return layer(*args, **kwargs)


def _replaced(layer: keras.layers.Layer) -> keras.layers.Layer:
    if isinstance(layer, keras.Model):
        return with_group_norm(layer)
    if not isinstance(layer, keras.layers.BatchNormalization):
        # An addition and its like is an operation of the graph and no layer.
        if isinstance(layer, keras.layers.Layer):
            _refuse_hidden(layer)
        return layer.__class__.from_config(layer.get_config())
    return keras.layers.GroupNormalization(
        groups=_num_groups(layer.input.shape, layer.axis),
        axis=layer.axis,
        epsilon=layer.epsilon,
        center=layer.center,
        scale=layer.scale,
        beta_regularizer=layer.beta_regularizer,
        gamma_regularizer=layer.gamma_regularizer,
        name=layer.name,
    )


def _num_groups(shape: tuple[int | None, ...], axis: int) -> int:
    num_channels = shape[axis]
    if num_channels is None:
        raise ValueError(f"Expected a known number of channels on axis {axis}, got {shape}; give the input its shape.")
    # An unknown extent, such as a length, counts as more than one.
    num_positions = math.prod(size or 2 for size in shape[1:]) // num_channels
    most = min(_MOST_GROUPS, num_channels if num_positions > 1 else max(1, num_channels // 2))
    return max(groups for groups in range(1, most + 1) if num_channels % groups == 0)


def _refuse_hidden(layer: keras.layers.Layer) -> None:
    """A layer such as TimeDistributed calls what it holds itself, so that a BatchNorm in it would stay."""
    for inner in layer._flatten_layers(include_self=False, recursive=True):
        if isinstance(inner, keras.layers.BatchNormalization):
            raise UsageError(
                f"{layer.name} ({type(layer).__name__}) holds the BatchNormalization {inner.name}, which --model.norm "
                "group can replace in models alone, not in other layers; build the network with another norm there."
            )
