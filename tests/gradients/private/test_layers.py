"""The clipped sum of every type of layer equals a plain loop over examples, and so do its norms."""

import logging
from collections.abc import Callable
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from tfbig.gradients.private import convolutions
from tfbig.gradients.private.layers import has_rule
from tfbig.networks import backbones
from tfbig.networks.heads import InferenceModel, classifier

B = 6
Case = tuple[keras.Model, np.ndarray | dict[str, np.ndarray]]


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(B, *shape)).astype("f4")


def _ids(length: int, num_ids: int) -> np.ndarray:
    """Fewer ids than positions, so that some are repeated."""
    return np.random.default_rng(1).integers(0, num_ids, (B, length)).astype("int32")


def _chain(shape: tuple[int, ...], *layers: keras.layers.Layer) -> Case:
    return keras.Sequential([kl.Input(shape), *layers, kl.Flatten(), kl.Dense(5)]), _floats(*shape)


def _on_ids(length: int, num_ids: int, *layers: keras.layers.Layer) -> Case:
    network = keras.Sequential([kl.Input((length,), dtype="int32"), *layers, kl.Flatten(), kl.Dense(5)])
    return network, _ids(length, num_ids)


def _attention(attention: keras.layers.Layer) -> Case:
    tokens = kl.Input((6, 12))
    hidden = kl.GlobalAveragePooling1D()(attention(tokens, tokens))
    return keras.Model(tokens, kl.Dense(5)(hidden)), _floats(6, 12)


def _twice(shape: tuple[int, ...], layer: keras.layers.Layer) -> Case:
    return _chain(shape, layer, layer)


def _frozen(layer: keras.layers.Layer) -> keras.layers.Layer:
    layer.trainable = False
    return layer


def _low_rank(case: Case, *, alpha: float | None = None) -> Case:
    """LoRA wherever there is a kernel that takes it, but for the head; the biases stay trained."""
    for layer in case[0]._flatten_layers(include_self=False):
        if isinstance(layer, kl.Dense | kl.EinsumDense | kl.Embedding) and layer is not case[0].layers[-1]:
            layer.enable_lora(2, lora_alpha=alpha)
    return case


def _frozen_bias(case: Case) -> Case:
    for layer in case[0].layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.trainable = False
    return case


def _batch_norm_in_inference() -> Case:
    body, _ = _chain((8, 8, 3), kl.Conv2D(4, 3), kl.BatchNormalization())
    inputs = kl.Input((8, 8, 3))
    frozen = InferenceModel(body.inputs[0], body.layers[-2].output)
    body.layers[1].moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    body.layers[1].moving_variance.assign([0.5, 1.5, 2.5, 3.5])
    return keras.Model(inputs, kl.Dense(5)(frozen(inputs))), _floats(8, 8, 3)


def _dict_inputs() -> Case:
    inputs = {"image": kl.Input((4, 4, 2), name="image"), "word": kl.Input((3,), dtype="int32", name="word")}
    image = kl.Flatten()(kl.Conv2D(3, 3, activation="relu")(inputs["image"]))
    word = kl.Flatten()(kl.Embedding(4, 6)(inputs["word"]))
    network = keras.Model(inputs, kl.Dense(5)(kl.Concatenate()([image, word])))
    return network, {"image": _floats(4, 4, 2), "word": _ids(3, 4)}


class LearnedPositions(keras.layers.Layer):
    """A weight of its own, added to each example."""

    def build(self, input_shape: tuple) -> None:
        self.positions = self.add_weight(shape=input_shape[1:], initializer="random_normal")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.positions


class EmbeddedPositions(keras.layers.Layer):
    """An embedding of the positions, whose output has no axis of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.table = kl.Embedding(6, 10)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.table(keras.ops.arange(6))


class KeywordInput(keras.layers.Layer):
    """Calls its layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = kl.Dense(7)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.inner(inputs=x)


class TiedOutput(keras.layers.Layer):
    """A projection onto the very weights of an embedding."""

    def __init__(self, embedding: keras.layers.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return keras.ops.matmul(x, keras.ops.transpose(self.embedding.embeddings))


class MergedAxes(keras.layers.Layer):
    """Puts examples and positions along one axis, so that a layer inside does not see which is whose."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = kl.Dense(4)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return keras.ops.reshape(self.inner(keras.ops.reshape(x, (-1, 10))), (-1, 6, 4))


class Doubled(kl.Dense):
    """A subclass that computes something else than its parent."""

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return 2.0 * super().call(x, training=training)


def _tied() -> Case:
    tokens, embedding = kl.Input((6,), dtype="int32"), kl.Embedding(7, 4)
    hidden = TiedOutput(embedding)(embedding(tokens))
    return keras.Model(tokens, kl.Dense(5)(kl.Flatten()(hidden))), _ids(6, 7)


_same: dict = {"padding": "same"}
TAPPED: dict[str, Callable[[], Case]] = {
    "dense": lambda: _chain((10,), kl.Dense(16, activation="relu")),
    "dense, Gram matrices": lambda: _chain((6, 40), kl.Dense(30, activation="gelu"), kl.Dense(40)),
    "dense, products": lambda: _chain((6, 5), kl.Dense(7, activation="gelu"), kl.Dense(8, use_bias=False)),
    "dense of rank 4": lambda: _chain((3, 4, 5), kl.Dense(7, activation="tanh")),
    "dense subclass": lambda: _chain((6, 5), Doubled(7, activation="tanh")),
    "dense by keyword": lambda: _chain((6, 5), KeywordInput()),
    "einsum, heads": lambda: _chain(
        (6, 10),
        kl.EinsumDense("abc,cde->abde", (6, 3, 4), bias_axes="de", activation="tanh"),
        kl.EinsumDense("abde,def->abf", (6, 7), bias_axes="f"),
    ),
    "einsum, ellipsis, transposed": lambda: _chain(
        (6, 10),
        kl.EinsumDense("...x,xy->...y", 7, bias_axes="y", activation="gelu"),
        kl.EinsumDense("...x,yx->...y", 6),
    ),
    "einsum, grouped": lambda: _chain(
        (6, 10), kl.EinsumDense("abc,bcd->abd", (6, 7), bias_axes="bd", activation="gelu")
    ),
    "einsum, one bias along an axis": lambda: _chain(
        (6, 10), kl.EinsumDense("abc,cd->adb", (7, 6), bias_axes="d", activation="tanh")
    ),
    # Sizes for which padding is not the same on both sides.
    "convolution": lambda: _chain(
        (10, 8, 3),
        kl.Conv2D(6, 3, activation="relu", **_same),
        kl.Conv2D(5, 3, strides=2, activation="relu", **_same),
        kl.Conv2D(4, (3, 2)),
    ),
    "convolution of patches, 1x1": lambda: _chain(
        (9, 9, 3), kl.Conv2D(6, 4, 4, activation="relu"), kl.Conv2D(5, 1, activation="tanh"), kl.Conv2D(4, 1, 2)
    ),
    "convolution, dilated": lambda: _chain((9, 10, 3), kl.Conv2D(4, (2, 4), dilation_rate=3, **_same)),
    "convolution, groups": lambda: _chain(
        (8, 8, 4), kl.Conv2D(8, 3, groups=2, strides=2, activation="relu"), kl.Conv2D(4, 2, groups=4)
    ),
    "convolution of signals": lambda: _chain(
        (14, 4),
        kl.Conv1D(6, 3, padding="causal", dilation_rate=2),
        kl.Conv1D(8, 3, strides=2, activation="relu", **_same),
        kl.Conv1D(4, 2, groups=2),
    ),
    "depthwise": lambda: _chain(
        (10, 10, 3),
        kl.DepthwiseConv2D(3, depth_multiplier=2, activation="relu", **_same),
        kl.DepthwiseConv2D(3, strides=2, **_same),
    ),
    "depthwise of signals": lambda: _chain((11, 3), kl.DepthwiseConv1D(3, depth_multiplier=2, activation="relu")),
    "separable": lambda: _chain(
        (10, 10, 3),
        kl.SeparableConv2D(6, 3, activation="relu", depth_multiplier=2),
        kl.SeparableConv2D(4, 3, strides=2, **_same),
    ),
    "separable of signals": lambda: _chain((11, 3), kl.SeparableConv1D(6, 3, activation="relu")),
    "transposed convolution": lambda: _chain((4, 4, 3), kl.Conv2DTranspose(3, 3, strides=2, activation="relu")),
    "convolution of volumes": lambda: _chain((4, 4, 4, 2), kl.Conv3D(3, 2, activation="relu")),
    "embedding, repeated ids": lambda: _on_ids(9, 5, kl.Embedding(5, 4)),
    "layer norm": lambda: _chain(
        (6, 8), kl.LayerNormalization(), kl.LayerNormalization(axis=1), kl.LayerNormalization(axis=(1, 2))
    ),
    "layer norm, scale or offset alone": lambda: _chain(
        (6, 8), kl.LayerNormalization(center=False), kl.LayerNormalization(scale=False)
    ),
    "RMS norm": lambda: _chain((6, 8), kl.RMSNormalization()),
    "group norm": lambda: _chain((7, 7, 3), kl.Conv2D(8, 3), kl.GroupNormalization(4)),
    "unit norm of groups, first axis": lambda: _chain((4, 7, 3), kl.GroupNormalization(2, axis=1)),
    "batch norm, frozen": lambda: _chain((7, 7, 3), kl.Conv2D(4, 3), _frozen(kl.BatchNormalization())),
    "batch norm in inference": _batch_norm_in_inference,
    "attention": lambda: _attention(kl.MultiHeadAttention(3, 4)),
    "attention, grouped queries": lambda: _attention(kl.GroupQueryAttention(4, 4, 2)),
    "GRU": lambda: _chain((5, 4), kl.GRU(6)),
    "LSTM, both ways": lambda: _chain((5, 4), kl.Bidirectional(kl.LSTM(3, return_sequences=True))),
    "PReLU": lambda: _chain((9,), kl.Dense(8), kl.PReLU(), kl.Reshape((2, 4)), kl.PReLU(shared_axes=[1])),
    "time distributed": lambda: _chain((7, 4), kl.TimeDistributed(kl.Dense(6, activation="tanh"))),
    "a dense layer twice": lambda: _twice((10,), kl.Dense(10, activation="tanh")),
    "a convolution twice": lambda: _twice((10, 4), kl.Conv1D(4, 3, activation="tanh", **_same)),
    "a separable one twice": lambda: _twice((10, 4), kl.SeparableConv1D(4, 3, activation="tanh", **_same)),
    "a layer norm twice": lambda: _twice((6, 8), kl.LayerNormalization()),
    "frozen bias": lambda: _frozen_bias(_chain((6, 10), kl.Dense(16, activation="relu"), kl.Dense(12))),
    "LoRA, dense": lambda: _low_rank(_chain((6, 10), kl.Dense(16, activation="relu"), kl.Dense(12)), alpha=5),
    "LoRA, frozen bias": lambda: _frozen_bias(_low_rank(_chain((6, 10), kl.Dense(16), kl.Dense(12)))),
    "LoRA, einsum": lambda: _low_rank(
        _chain((6, 10), kl.EinsumDense("abc,cde->abde", (6, 3, 4)), kl.EinsumDense("abde,def->abf", (6, 7)))
    ),
    "LoRA, attention": lambda: _low_rank(_attention(kl.MultiHeadAttention(3, 4)), alpha=3),
    "LoRA, embedding": lambda: _low_rank(_on_ids(9, 5, kl.Embedding(5, 4))),
    "learned positions": lambda: _chain((6, 10), LearnedPositions(), kl.Dense(8)),
    "embedded positions": lambda: _chain((6, 10), EmbeddedPositions(), kl.Dense(8)),
    "several inputs": _dict_inputs,
}
WITH_XLA = ("dense, products", "convolution", "LoRA, frozen bias")
LONG = ("LSTM, both ways", "attention, grouped queries", "a separable one twice", "separable of signals")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in TAPPED])
def test_a_tapped_layer_equals_the_loop(name: str, reference: SimpleNamespace) -> None:
    reference.check_against_loop(*TAPPED[name]())


@pytest.mark.parametrize("name", WITH_XLA)
def test_a_tapped_layer_equals_the_loop_with_xla(name: str, reference: SimpleNamespace) -> None:
    reference.check_against_loop(*TAPPED[name](), jit=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TAPPED.keys() - set(WITH_XLA)))
def test_every_other_tapped_layer_equals_the_loop_with_xla(name: str, reference: SimpleNamespace) -> None:
    reference.check_against_loop(*TAPPED[name](), jit=True)


@pytest.mark.parametrize(
    "name", ["convolution", "convolution of patches, 1x1", "convolution of signals", "a convolution twice"]
)
def test_a_convolution_too_large_to_keep_equals_the_loop(
    name: str, reference: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "_KEPT_BYTES", 0)
    reference.check_against_loop(*TAPPED[name]())


BY_EXAMPLE: dict[str, tuple[Callable[[], Case], str]] = {
    "tied weights": (_tied, "do not add up"),
    "merged axes": (lambda: _chain((6, 10), MergedAxes()), "first axis"),
    "dropout in a recurrence": (lambda: _chain((5, 4), kl.LSTM(3, dropout=1e-7)), "random numbers"),
}


@pytest.mark.parametrize("name", BY_EXAMPLE)
def test_what_cannot_be_tapped_is_computed_by_example_and_said(
    name: str, reference: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = BY_EXAMPLE[name]
    with caplog.at_level(logging.WARNING, logger="tfbig.gradients.private.checks"):
        reference.check_against_loop(*make(), engine="by_example")
    assert reason in caplog.text and "exact and slow" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tied weights", "merged axes"])
def test_by_example_with_xla(name: str, reference: SimpleNamespace) -> None:
    reference.check_against_loop(*BY_EXAMPLE[name][0](), engine="by_example", jit=True)


def test_a_subclass_that_computes_otherwise_has_no_rule() -> None:
    assert has_rule(kl.Dense(3)) and not has_rule(Doubled(3))


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_vision_transformer_equals_the_loop(jit: bool, reference: SimpleNamespace) -> None:
    import keras_hub

    body = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24
    )
    network = keras.Model(body.inputs, kl.Dense(5)(body.output[:, 0]))
    reference.check_against_loop(network, _floats(16, 16, 3), jit=jit)


def _text_backbone(kind: str) -> keras.Model:
    import keras_hub

    sizes = {"vocabulary_size": 13, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 12,
             "max_sequence_length": 10, "dropout": 0.0}  # fmt: skip
    return getattr(keras_hub.models, kind)(**sizes)


@pytest.mark.parametrize(
    ("kind", "jit"),
    [
        ("BertBackbone", False),
        pytest.param("BertBackbone", True, marks=pytest.mark.slow),
        pytest.param("RobertaBackbone", False, marks=pytest.mark.slow),
        pytest.param("GPT2Backbone", False, marks=pytest.mark.slow),
    ],
)
def test_a_text_transformer_equals_the_loop(kind: str, jit: bool, reference: SimpleNamespace) -> None:
    body = _text_backbone(kind)
    hidden = body.output["sequence_output"] if isinstance(body.output, dict) else body.output
    network = keras.Model(body.inputs, kl.Dense(5)(hidden[:, 1]))
    x = {spec.name: _ids(7, 13) if spec.name == "token_ids" else _ids(7, 2) for spec in body.inputs}
    x["padding_mask"][:] = 1
    x["padding_mask"][:, 5:] = 0
    reference.check_against_loop(network, x, jit=jit)


@pytest.mark.parametrize(("trained", "engine"), [
    (False, "tapped"), pytest.param(True, "by_example", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_hub_module_equals_the_loop(trained: bool, engine: str, reference: SimpleNamespace) -> None:
    backbone = backbones.load("bundled:glyphs")
    network = classifier(backbone, 5, inference_mode=True)
    network.get_layer("backbone").trainable = trained
    size = backbone.image_size
    x = np.random.default_rng(0).random((4, size, size, 3), np.float32)
    reference.check_against_loop(network, x, engine=engine)
