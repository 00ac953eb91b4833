"""Augmentation of image batches by Keras's layers, with every draw a function of the step's seed.

Keras's layers draw from a counter in a variable, so that what a batch becomes would depend on how many
came before it, in which order and in which process. Here the counter begins anew with each batch's seed:
a resumed run sees the very batches of one never interrupted. RandAugment: Cubuk et al. 2020, arXiv
1909.13719; MixUp: Zhang et al. 2018, arXiv 1710.09412; CutMix: Yun et al. 2019, arXiv 1905.04899. It sits
between `batches.batches` and the objectives, which take labels or distributions. Letters in shapes:
B a batch, H height, W width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfbig.data.batches import Augment, Parts
from tfbig.data.splits import Batch
from tfbig.errors import UsageError
from tfbig.suggest import nearest

_MIXING = ("mixup", "cutmix")
NAMES = (
    "resized_crop", "flip", "vertical_flip", "crop", "rotate", "brightness", "contrast", "randaugment", *_MIXING
)  # fmt: skip
_RANDAUGMENT_ROUNDS = 2
# Of images in [0, 1]; float32 whatever the global policy, for 8 bits a channel do not fit into bfloat16.
_COLOUR = {"value_range": (0.0, 1.0), "dtype": "float32"}
_PLACE = {"dtype": "float32"}


class _Draws(keras.random.SeedGenerator):
    """The n-th seed that a layer asks for, as a pure function of the step's seed and n."""

    def __init__(self, seed: tf.Tensor):
        # Not the base class's: it makes the variable that this class exists to do without.
        self._seed = seed
        self._count = 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        self._count += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._count)


def augmentation(names: Sequence[str], *, num_classes: int, multi_label: bool) -> Augment:
    """A function that changes a batch of images as the seed says.

    Guarantees: the same seed gives the same batch, in any process and order; the weights stay those of the
    first picture of each mixture.

    Args:
        names: Of NAMES, applied in the order of NAMES. resized_crop takes a part of each picture, 8 to 100 per cent of
            its area, while it is decoded, and mirrors it then where flip is named too (`image_parts.py`). flip is
            left-right; crop shifts by up to an eighth and reflects what it leaves empty; rotate turns by up to 15
            degrees; brightness and contrast change by up to a fifth. With mixup and cutmix both, each batch gets one of
            them.
        num_classes: C.
        multi_label: Labels are (B, C) zeros and ones already.

    Returns:
        (batch of (B, H, W, 3) float32 images in [0, 1], (2,) int32 seed) -> batch in the same range. mixup and cutmix
        turn integer labels into (B, C) float32 distributions.

    Raises:
        UsageError: An unknown name.
    """
    for name in names:
        if name not in NAMES:
            raise UsageError(f"augment must be some of {', '.join(NAMES)}, got {name!r}.{nearest(name, NAMES)}")
    parts, flips = "resized_crop" in names, "flip" in names
    # A part is mirrored where it is decoded: of a whole batch that costs several times as much.
    done = ("resized_crop", "flip") if parts else ()
    changes = [_change(name) for name in NAMES if name in names and name not in (*_MIXING, *done)]
    mixers = [_mixer(name) for name in _MIXING if name in names]

    def apply(batch: Batch, seed: tf.Tensor) -> Batch:
        draws = _Draws(seed)
        x: tf.Tensor = batch.x
        shape = x.shape
        for change in changes:
            x = change(x, draws)
        y = batch.y
        if mixers:
            y = tf.cast(y, tf.float32) if multi_label else tf.one_hot(y, num_classes)  # (B, C)
            mixed = [mixer(x, y, draws) for mixer in mixers]
            pick = tf.random.stateless_uniform([], draws.next(), 0, len(mixers), tf.int32)
            x, y = (tf.stack(choices)[pick] for choices in zip(*mixed, strict=True))
        return Batch(tf.ensure_shape(x, shape), y, batch.weight)

    return Parts(apply, flips) if parts else apply


def _change(name: str) -> Callable[[tf.Tensor, _Draws], tf.Tensor]:
    if name == "randaugment":
        return _randaugment()
    layers = {
        "flip": lambda: keras.layers.RandomFlip("horizontal", **_PLACE),
        "vertical_flip": lambda: keras.layers.RandomFlip("vertical", **_PLACE),
        "crop": lambda: keras.layers.RandomTranslation(0.125, 0.125, **_PLACE),
        "rotate": lambda: keras.layers.RandomRotation(15 / 360, **_PLACE),
        "brightness": lambda: keras.layers.RandomBrightness(0.2, **_COLOUR),
        "contrast": lambda: keras.layers.RandomContrast(0.2, **_COLOUR),
    }
    return _by_layer(layers[name]())


def _by_layer(layer: keras.layers.Layer) -> Callable[[tf.Tensor, _Draws], tf.Tensor]:
    def change(x: tf.Tensor, draws: _Draws) -> tf.Tensor:
        drawn = layer.get_random_transformation(x, training=True, seed=draws)
        return layer.transform_images(x, drawn, training=True)

    return change


def _randaugment() -> Callable[[tf.Tensor, _Draws], tf.Tensor]:
    """Two operations for each picture, each drawn from twelve.

    Not keras.layers.RandAugment, which gives a whole batch the same two, computes all eleven twice, moves
    and turns one way only, and at its default strength leaves some pictures white or black.
    """
    operations = [
        lambda x, draws: x,
        *map(
            _by_layer,
            [
                keras.layers.AutoContrast(**_COLOUR),
                keras.layers.Equalization(**_COLOUR),
                keras.layers.RandomRotation(30 / 360, **_PLACE),
                keras.layers.RandomShear(0.3, 0.3, **_PLACE),
                keras.layers.RandomTranslation(0.2, 0.2, **_PLACE),
                keras.layers.RandomBrightness(0.3, **_COLOUR),
                keras.layers.RandomContrast(0.5, **_COLOUR),
                keras.layers.RandomColorDegeneration(0.5, **_COLOUR),
                keras.layers.RandomSharpness(0.5, **_COLOUR),
                keras.layers.RandomPosterization((4, 8), **_COLOUR),
                keras.layers.Solarization(threshold_factor=(0.5, 1.0), **_COLOUR),
            ],
        ),
    ]

    def change(x: tf.Tensor, draws: _Draws) -> tf.Tensor:
        for _ in range(_RANDAUGMENT_ROUNDS):
            picks = tf.random.stateless_uniform(tf.shape(x)[:1], draws.next(), 0, len(operations), tf.int32)  # (B,)
            parts = tf.dynamic_partition(tf.range(tf.shape(x)[0]), picks, len(operations))
            changed = [_on_part(operation, x, part, draws) for operation, part in zip(operations, parts, strict=True)]
            x = tf.dynamic_stitch(parts, changed)  # (B, H, W, 3)
        return x

    return change


def _on_part(
    operation: Callable[[tf.Tensor, _Draws], tf.Tensor], x: tf.Tensor, part: tf.Tensor, draws: _Draws
) -> tf.Tensor:
    # One picture more, dropped again: some of Keras's layers fail on none.
    return operation(tf.gather(x, tf.concat([part, [0]], axis=0)), draws)[:-1]


def _mixer(name: str) -> Callable[[tf.Tensor, tf.Tensor, _Draws], tuple[tf.Tensor, tf.Tensor]]:
    # A factor of exactly 1 draws CutMix's share uniformly, as in the paper; Keras's default varies it.
    layer = keras.layers.MixUp(0.2, **_PLACE) if name == "mixup" else keras.layers.CutMix((1.0, 1.0), **_PLACE)

    def mix(x: tf.Tensor, y: tf.Tensor, draws: _Draws) -> tuple[tf.Tensor, tf.Tensor]:
        drawn = layer.get_random_transformation(x, training=True, seed=draws)
        return layer.transform_images(x, drawn), layer.transform_labels(y, drawn)

    return mix
