"""The key of cached features: a digest of everything that they depend on.

Backbone (weights, architecture, a hub module's graph), data (fingerprint, role, names), precision, augmentation,
versions, and some examples as the backbone takes them. Used by features.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfbig import __version__
from tfbig.data.file_names import blocks
from tfbig.data.splits import Split
from tfbig.networks.hub import HubLayer

log = logging.getLogger(__name__)

# Examples whose values are part of a key: the first, the last, and some between.
_NUM_PROBED = 8
# How features.py computes; to be changed with it, so that what it computes otherwise is never mixed.
_COMPUTATION = "folded 1"
# Stands for the names of all examples.
_NAMES = "\0names"
# Where a configuration has names of layers.
_NAMING = ("name", "keras_history", "input_layers", "output_layers")


@dataclass(frozen=True)
class Origin:
    """What the features of a split are of, beside the trunk and the examples' names.

    Args:
        data: The data's fingerprint, from its manifest; with the names it says every example's content.
        role: train or validation.
        about: For people: the backbone and the source.
        augmentation: Whatever else the inputs were changed by; empty where by nothing.
    """

    data: str
    role: str
    about: str
    augmentation: str = ""


def feature_key(trunk: keras.Model, split: Split, origin: Origin, batch_size: int) -> str | None:
    """32 hexadecimal digits of all that the features depend on; None where that cannot be told.

    Args:
        trunk: Frozen network.
        split: Its examples, as the trunk takes them.
        origin: What they are.
        batch_size: Examples a forward pass, over all devices.
    """
    architecture = _architecture(trunk)
    if not origin.data or architecture is None:
        return None
    parts: Mapping[str, object] = {
        "computation": _COMPUTATION,
        "versions": [__version__, tf.__version__, keras.__version__],
        "devices": sorted({device.device_type for device in tf.config.list_logical_devices()}),
        "precision": keras.config.dtype_policy().name,
        "architecture": architecture,
        "weights": [_digest(np.asarray(weight)) for weight in trunk.weights],
        "data": [origin.data, origin.role, [_NAMES]],
        "augmentation": origin.augmentation,
        # The last bits of a convolution depend on it.
        "batch_size": batch_size,
        # As the trunk takes them: decoded, resized, and whatever a job does beside, in this very version of it.
        "examples": _probe(split),
    }
    return _hash_with_names(json.dumps(parts, sort_keys=True), split.names)


def _hash_with_names(text: str, names: Sequence[str]) -> str:
    """The hash of a JSON text with all names in the place of `_NAMES`, of which few are in memory at a time."""
    before, after = text.split(json.dumps(_NAMES), maxsplit=1)
    hashed = hashlib.blake2b(before.encode(), digest_size=16)
    for indices, several in blocks(names):
        hashed.update((", " if indices[0] else "").encode() + json.dumps(several)[1:-1].encode())
    hashed.update(after.encode())
    return hashed.hexdigest()


def _probe(split: Split) -> list[str]:
    indices = np.unique(np.linspace(0, len(split) - 1, _NUM_PROBED).astype(int))
    return [
        _digest(np.asarray(value)) for index in indices for value in tf.nest.flatten(split.fetch(tf.constant(index)))
    ]


def _architecture(trunk: keras.Model) -> str | None:
    """A digest of the trunk's configuration and of its hub modules' graphs; None where it has no configuration.

    Names that Keras made up by counting are left out, for they depend on what the process built before.
    """
    # Keras has no public way into a layer's own layers.
    layers = list(trunk._flatten_layers(include_self=True, recursive=True))
    named = [*layers, *(operation for layer in layers for operation in getattr(layer, "operations", ()))]
    numbers = {item.name: f"#{number}" for number, item in reversed(list(enumerate(named)))}
    modules = {layer.module_path: _module_digest(Path(layer.module_path)) for layer in layers
               if isinstance(layer, HubLayer)}  # fmt: skip
    try:
        text = json.dumps(_anonymous(keras.saving.serialize_keras_object(trunk), numbers, modules), sort_keys=True)
    except (NotImplementedError, TypeError, ValueError) as error:
        log.info("the backbone's configuration cannot be written down (%s), so its features are not cached", error)
        return None
    return _hash(text.encode())


def _anonymous(config: object, numbers: Mapping[str, str], modules: Mapping[str, str]) -> object:
    """A configuration with layers numbered and modules named by content."""
    if isinstance(config, dict):
        return {
            name: _renamed(value, numbers) if name in _NAMING else _anonymous(value, numbers, modules)
            for name, value in config.items()
            if name != "shared_object_id"
        }
    if isinstance(config, list | tuple):
        return [_anonymous(value, numbers, modules) for value in config]
    return modules.get(config, config) if isinstance(config, str) else config


def _renamed(value: object, numbers: Mapping[str, str]) -> object:
    if isinstance(value, list | tuple):
        return [_renamed(member, numbers) for member in value]
    return numbers.get(value, value) if isinstance(value, str) else value


def _module_digest(folder: Path) -> str:
    """Of a SavedModel's graph and assets; its variables are among the trunk's weights."""
    files = [folder / "saved_model.pb", *sorted(path for path in folder.glob("assets/**/*") if path.is_file())]
    return _hash("".join(_hash(path.read_bytes()) for path in files).encode())


def _digest(value: np.ndarray) -> str:
    raw = repr(value.tolist()).encode() if value.dtype == object else np.ascontiguousarray(value).tobytes()
    return _hash(f"{value.dtype} {value.shape} ".encode() + raw)


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
