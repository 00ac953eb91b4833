"""Heads: a classifier on a backbone, and the same network cut at its features.

Letters in shapes: B images, S pixels a side, D features, C classes.
"""

from __future__ import annotations

import keras

from tfbig.networks.backbones import Backbone


@keras.saving.register_keras_serializable("tfbig")
class InferenceModel(keras.Model):
    """A functional model that always runs as in inference, whatever `training` its caller passes.

    BatchNorm uses its averages and leaves them alone, dropout does nothing; the weights can be trained.
    A model that is merely called with training=False does not keep to it: fit's training=True overrides
    the argument in the graph of the model around it.
    """

    def call(
        self, inputs: keras.KerasTensor, training: bool | None = None, mask: keras.KerasTensor | None = None
    ) -> keras.KerasTensor:
        """The outputs as in inference."""
        return super().call(inputs, training=False, mask=mask)


def classifier(
    backbone: Backbone,
    num_classes: int,
    *,
    hidden_units: int | None = None,
    dropout: float = 0.0,
    inference_mode: bool,
) -> keras.Model:
    """Images -> logits: the backbone, an optional hidden layer, dropout, one linear layer.

    Args:
        backbone: What gives the features; its layers are shared, not copied.
        num_classes: C, at least 1.
        hidden_units: Units of the hidden layer; None for a linear head.
        dropout: Share of the features dropped while training, at least 0 and below 1.
        inference_mode: Run the backbone as in inference while training too, so that its BatchNorm
            averages stay untouched.

    Returns:
        (B, S, S, 3) images in [0, 1] -> (B, C) float32 logits, with layers "backbone", "features",
        "hidden" where asked for, "dropout" and "logits".
    """
    body = backbone.network
    if inference_mode:
        body = InferenceModel(body.inputs[0], body.outputs[0], name="backbone")
    images = keras.Input((backbone.image_size, backbone.image_size, 3), name="image")
    x = body(images)  # (B, D)
    x = keras.layers.Activation("linear", dtype="float32", name="features")(x)
    if hidden_units is not None:
        x = keras.layers.Dense(hidden_units, activation="relu", name="hidden")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)  # (B, C)
    return keras.Model(images, logits, name="classifier")


def embedding(network: keras.Model) -> keras.Model:
    """Images (B, S, S, 3) -> features (B, D) of a `classifier`, sharing its layers."""
    return keras.Model(network.inputs[0], network.get_layer("features").output, name="embedding")
