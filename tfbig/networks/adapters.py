"""Which weights of a network's backbone are trained: none, the last layers, or low-rank updates.

Each function takes a network with a layer "backbone", as tfbig.networks.heads builds it, changes which
weights train, and returns it. LoRA: Hu et al. 2021, arXiv 2106.09685, by Keras's own enable_lora.
Letters in shapes: B images, D features, C classes.
"""

from __future__ import annotations

import math

import keras

from tfbig.errors import UsageError
from tfbig.networks.heads import InferenceModel, embedding
from tfbig.networks.hub import HubLayer


def freeze(network: keras.Model) -> keras.Model:
    """Trains the head only."""
    network.get_layer("backbone").trainable = False
    return network


def unfreeze_last(network: keras.Model, num_layers: int) -> keras.Model:
    """Trains the head and the last layers of the backbone.

    Args:
        network: With a layer "backbone".
        num_layers: How many layers with weights, at least 1, counted from the features backwards; a block
            that is one layer to Keras counts as one.

    Raises:
        UsageError: The backbone has fewer layers, or is a hub module, which is one.
    """
    backbone = network.get_layer("backbone")
    layers = [layer for layer in _leaves(backbone) if layer.weights]
    if any(isinstance(layer, HubLayer) for layer in layers):
        raise UsageError(
            "adapt.unfreeze_last cannot be used with a hub module, which is a single layer; leave it out to train "
            "all of the module, or use --adapt.mode head to train none of it."
        )
    if not 1 <= num_layers <= len(layers):
        raise UsageError(
            f"adapt.unfreeze_last must be between 1 and {len(layers)}, the layers with weights of the backbone, "
            f"got {num_layers}."
        )
    backbone.trainable = True
    for layer in layers[:-num_layers]:
        layer.trainable = False
    return network


def lora(network: keras.Model, rank: int) -> keras.Model:
    """Trains the head, and in the backbone only low-rank updates of its dense kernels.

    Guarantees: the network's outputs are unchanged until the first step.

    Args:
        network: With a layer "backbone".
        rank: Of the updates, at least 1 and at most the width of the narrowest kernel.

    Raises:
        UsageError: The backbone has no dense kernel, or one that is narrower than the rank.
    """
    backbone = network.get_layer("backbone")
    adapted = [layer for layer in _every_layer(backbone) if _can_adapt(layer)]
    if not adapted:
        raise UsageError(
            "adapt.mode lora needs Dense or EinsumDense layers in the backbone, which has none; use --adapt.mode "
            "head or full, or a transformer backbone."
        )
    narrowest = min(adapted, key=_width)
    if not 1 <= rank <= _width(narrowest):
        raise UsageError(
            f"adapt.lora_rank must be between 1 and {_width(narrowest)}, the width of {narrowest.path}, got {rank}."
        )
    backbone.trainable = True
    for layer in adapted:
        layer.enable_lora(rank)
    updates = {id(v) for layer in adapted for v in (layer.lora_kernel_a, layer.lora_kernel_b)}
    for layer in _every_layer(backbone):
        if not any(id(v) in updates for v in layer.weights):
            # A whole layer, so that a BatchNorm leaves its averages alone as well.
            layer.trainable = False
    for variable in backbone.trainable_variables:
        # What is left are biases of the adapted layers and weights of the blocks around them.
        variable.trainable = id(variable) in updates
    return network


def split_frozen(network: keras.Model) -> tuple[keras.Model | None, keras.Model]:
    """Cuts a network whose backbone is frozen, so that its features can be computed once.

    Args:
        network: As `heads.classifier` builds it; any other network is left whole.

    Returns:
        (trunk, rest): trunk takes images to features (B, D), rest features to logits (B, C), sharing the
        head's layers; (None, network) where the backbone trains, or draws random numbers while training.
    """
    backbone = next((layer for layer in network.layers if layer.name == "backbone"), None)
    if backbone is None or backbone.trainable_variables or not _is_deterministic(backbone):
        return None, network
    trunk = embedding(network)
    return trunk, keras.Model(trunk.outputs[0], network.outputs[0], name="head")


def _is_deterministic(backbone: keras.Model) -> bool:
    """Whether frozen features are the same at every step of training."""
    if isinstance(backbone, InferenceModel):
        return True
    return not any(hasattr(layer, "seed_generator") for layer in _every_layer(backbone))


def _leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """A model's layers in the order of its graph, nested models opened."""
    leaves = []
    for layer in model.layers:
        leaves += _leaves(layer) if isinstance(layer, keras.Model) else [layer]
    return leaves


def _every_layer(model: keras.Model) -> list[keras.layers.Layer]:
    """All layers at any depth, those inside of blocks too."""
    # Keras has no public way into a layer's own layers; keras_hub uses this one too.
    return list(model._flatten_layers(include_self=False, recursive=True))


def _can_adapt(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense) and layer.kernel_constraint is None


def _width(layer: keras.layers.Layer) -> int:
    """The largest rank that an update of the layer's kernel can have."""
    *inputs, outputs = layer.kernel.shape
    return min(math.prod(inputs), outputs)
