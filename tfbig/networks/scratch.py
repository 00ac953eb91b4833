"""Networks without weights: what `--model.backbone scratch:NAME` trains from nothing.

`convnet` is the network that `tools/make_glyph_backbone.py` pretrains, so `scratch:convnet` is
`bundled:glyphs` from scratch: residual 3x3 convolutions (He et al. 2016, arXiv 1603.05027) with group
normalisation (Wu and He 2018, arXiv 1803.08494), which has no moving averages: every batch size is
served alike, one example as well as 64. `small_cnn` is the two-convolution baseline of many CIFAR-10
tutorials; its last layer, Dense 10, is the head. Letters in shapes: B images, S pixels a side, D features.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import layers

NAMES: dict[str, int] = {"small_cnn": 32, "convnet": 16}
"""The networks that `build` knows, and the image size each is made for."""

_GROUPS = 8


def build(name: str, image_size: int) -> keras.Model:
    """A network with freshly initialised weights.

    Args:
        name: One of `NAMES`.
        image_size: S, height and width in pixels, at least 8.

    Returns:
        Images (B, S, S, 3), float32 RGB in [0, 1] -> features (B, D).

    Raises:
        ValueError: The name is unknown or the image too small.
    """
    builders: dict[str, Callable[[keras.KerasTensor], keras.KerasTensor]] = {
        "small_cnn": _small_cnn,
        "convnet": _convnet,
    }
    if name not in builders:
        raise ValueError(f"scratch:NAME must be one of {', '.join(NAMES)}, got {name!r}.")
    if image_size < 8:
        raise ValueError(f"image_size must be at least 8 pixels, got {image_size}.")
    images = keras.Input((image_size, image_size, 3), name="images")
    return keras.Model(images, builders[name](images), name=name)


def _small_cnn(x: keras.KerasTensor) -> keras.KerasTensor:
    # The tutorials feed it pixels in [-1, 1].
    x = layers.Rescaling(2.0, offset=-1.0)(x)
    for filters in (64, 128):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    return layers.Dense(256, activation="relu")(layers.Flatten()(x))  # (B, 256)


def _convnet(x: keras.KerasTensor) -> keras.KerasTensor:
    # Ink may be light on dark or dark on light: centred, neither is favoured.
    x = layers.Rescaling(2.0, offset=-1.0)(x)
    x = layers.Conv2D(32, 3, padding="same", use_bias=False)(x)  # (B, S, S, 32)
    x = _residual(x, 64, strides=2)  # (B, S/2, S/2, 64)
    x = _residual(x, 64)
    x = _residual(x, 128, strides=2)  # (B, S/4, S/4, 128)
    x = _normalised(x)
    x = layers.Conv2D(192, 3, padding="same", use_bias=False)(x)
    return layers.GlobalAveragePooling2D()(_normalised(x))  # (B, 192)


def _residual(x: keras.KerasTensor, filters: int, *, strides: int = 1) -> keras.KerasTensor:
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""
    y = _normalised(x)
    shortcut = x
    if strides > 1 or x.shape[-1] != filters:
        shortcut = layers.Conv2D(filters, 1, use_bias=False)(layers.AveragePooling2D(strides, padding="same")(y))
    y = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(y)
    y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(_normalised(y))
    return layers.Add()([shortcut, y])


def _normalised(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Activation("relu")(layers.GroupNormalization(_GROUPS)(x))
