"""Group normalisation in place of BatchNorm, for networks that have no weights yet.

BatchNorm mixes the examples of a batch, so no example's influence on it can be bounded; private training needs
another norm (De et al. 2022, arXiv 2204.13650). Group normalisation: Wu and He 2018, arXiv 1803.08494.
"""

from __future__ import annotations

import math

import keras

_MOST_GROUPS = 32


def with_group_norm(network: keras.Model) -> keras.Model:
    """A fresh network of the same layers, each BatchNorm replaced by group normalisation.

    Args:
        network: Functional or Sequential, built, other such models in it included; its weights are not kept.

    Returns:
        A network with new weights. A norm of C channels has the most groups, up to 32, that divide C evenly.
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
        return layer.__class__.from_config(layer.get_config())
    return keras.layers.GroupNormalization(
        groups=math.gcd(layer.input.shape[layer.axis], _MOST_GROUPS),
        axis=layer.axis,
        epsilon=layer.epsilon,
        center=layer.center,
        scale=layer.scale,
        beta_regularizer=layer.beta_regularizer,
        gamma_regularizer=layer.gamma_regularizer,
        name=layer.name,
    )
