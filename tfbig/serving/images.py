"""What an image classifier serves: encoded files or float images in, labels or features out.

Decoding, resizing and naming the class happen inside the exported graph, with the operations that
training used, so a client sends the file as it is. Letters in shapes: B images, S pixels a side, C
classes, D features.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tfbig.data.images import decode_and_resize, resize
from tfbig.data.splits import DataSpec
from tfbig.networks.heads import embedding
from tfbig.serving.export import SERVING_DEFAULT, Signature

_ENCODED = tf.TensorSpec([None], tf.string, name="image_bytes")
_IMAGE = tf.TensorSpec([None, None, None, 3], tf.float32, name="image")


def image_signatures(network: keras.Model, spec: DataSpec) -> dict[str, Signature]:
    """The three functions that an image classifier serves.

    `serving_default` takes `image_bytes` (B,) strings, each a JPEG, PNG, GIF or BMP file, and `image` takes
    `image` (B, height, width, 3) in [0, 1]; both give `label` (B,) strings, `probability` (B,) of
    that label and `probabilities` (B, C) in the order of assets/class_names.txt. `embed` takes
    `image_bytes` and gives `embedding` (B, D), the features below the head. For multi-label data `label`
    joins the names of all classes above 0.5 with "|" (empty where there is none) and `probability` is the
    largest.

    Args:
        network: Images (B, S, S, 3) float32 in [0, 1] -> logits (B, C).
        spec: With the C class names.

    Returns:
        Name -> signature.

    Raises:
        ValueError: The network's size is not fixed, or its logits are not one a class name.
    """
    size = network.input_shape[1]
    if size is None or network.output_shape[-1] != len(spec.class_names):
        raise ValueError(
            f"Expected a network from square images of a fixed size to {len(spec.class_names)} logits, "
            f"got {network.input_shape} to {network.output_shape}."
        )
    features = embedding(network)

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return class_answers(tf.cast(network(images, training=False), tf.float32), spec)

    def from_bytes(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        return classify(_decoded(encoded, size))

    def from_image(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return classify(tf.ensure_shape(resize(image, size), (None, size, size, 3)))

    def embed(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embedding": tf.cast(features(_decoded(encoded, size), training=False), tf.float32)}

    return {
        SERVING_DEFAULT: Signature(from_bytes, (_ENCODED,)),
        "image": Signature(from_image, (_IMAGE,)),
        "embed": Signature(embed, (_ENCODED,)),
    }


def class_answers(logits: tf.Tensor, spec: DataSpec) -> dict[str, tf.Tensor]:
    """What a client of a classifier reads: `label` (B,), its `probability` (B,) and `probabilities` (B, C).

    Args:
        logits: (B, C) float32.
        spec: With the C class names.
    """
    names = tf.constant(spec.class_names)  # (C,)
    probabilities = (tf.sigmoid if spec.multi_label else tf.nn.softmax)(logits)  # (B, C)
    if spec.multi_label:
        all_names = tf.broadcast_to(names, tf.shape(probabilities))  # (B, C)
        label = tf.strings.reduce_join(tf.ragged.boolean_mask(all_names, probabilities > 0.5), axis=-1, separator="|")
    else:
        label = tf.gather(names, tf.argmax(probabilities, axis=-1))  # (B,)
    return {"label": label, "probability": tf.reduce_max(probabilities, axis=-1), "probabilities": probabilities}


def _decoded(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """(B,) files -> (B, S, S, 3)."""
    one = tf.TensorSpec((size, size, 3), tf.float32)
    # Eager loops are never parallel and warn when asked to be.
    parallel = None if tf.executing_eagerly() else 16
    return tf.map_fn(
        lambda file: decode_and_resize(file, size), encoded, fn_output_signature=one, parallel_iterations=parallel
    )
