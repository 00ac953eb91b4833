"""Backbones: pretrained networks from images to features, whatever hub they come from.

Each carries its own input size and preprocessing, so that every backbone takes float32 RGB images in
[0, 1] and gives one vector an image. `load` reads what the user writes in --model.backbone, KIND:NAME.
Letters in shapes: B images, S pixels a side, D features, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import keras

from tfbig import resources
from tfbig.errors import EnvironmentFault, UsageError
from tfbig.networks import hub, imagenet, presets, scratch
from tfbig.networks.norms import with_group_norm
from tfbig.paths import expanded
from tfbig.suggest import nearest

_logger = logging.getLogger(__name__)

_USUAL_SIZE = 224


@dataclass(frozen=True)
class Backbone:
    """A network from images to features.

    Args:
        name: The backbone as the user wrote it.
        network: Images (B, S, S, 3), float32 RGB in [0, 1] -> features (B, D); its name is "backbone".
        image_size: S, height and width in pixels.
        pretrained: Whether its weights, and so its BatchNorm averages, were learned before.
    """

    name: str
    network: keras.Model
    image_size: int
    pretrained: bool


@dataclass(frozen=True)
class _Request:
    """What `load` was asked for, beside the kind."""

    spec: str
    name: str
    weights: str
    image_size: int | None
    norm: str
    signature: str | None
    output: str | None
    trust: bool
    offline: bool


def load(
    spec: str,
    *,
    weights: str = "imagenet",
    image_size: int | None = None,
    norm: str = "own",
    signature: str | None = None,
    output: str | None = None,
    trust: bool = False,
    offline: bool = False,
) -> Backbone:
    """The backbone that a specification names.

    Args:
        spec: bundled:NAME, tfhub:PATH-OR-URL, apps:NAME, kerashub:PRESET-OR-PATH, keras:FILE or scratch:NAME.
        weights: apps and kerashub: imagenet (the published weights), none, or a weights file.
        image_size: S in pixels, at least 8; by default what the backbone was made for.
        norm: scratch, and apps without weights: group puts group normalisation in place of BatchNorm.
        signature: tfhub: call this signature of the module.
        output: tfhub: key of the feature vector where the module gives a dict.
        trust: Load a module, or a .keras file, even though it can read and write files or run Python.
        offline: Open no connection.

    Raises:
        UsageError: The specification, or an option of it, cannot be meant.
        EnvironmentFault: The backbone cannot be had or does not give a vector.
    """
    kind, separator, name = spec.partition(":")
    if kind not in _LOADERS or not separator or not name:
        raise UsageError(
            f"model.backbone must be KIND:NAME with one of the kinds {', '.join(_LOADERS)}, got {spec!r}."
            f"{nearest(kind, _LOADERS)}"
        )
    _refuse_unused(kind, weights=weights, norm=norm, signature=signature, output=output)
    return _LOADERS[kind](_Request(spec, name, weights, image_size, norm, signature, output, trust, offline))


def names() -> dict[str, list[str]]:
    """What can be written in --model.backbone, by kind; upper case stands for the user's own."""
    return {
        "bundled": [f"bundled:{name}" for name in resources.bundled_backbones()],
        "scratch": [f"scratch:{name}" for name in scratch.NAMES],
        "apps": [f"apps:{name}" for name in imagenet.applications()],
        "kerashub": ["kerashub:PRESET", "kerashub:FOLDER"],
        "tfhub": [
            "tfhub:FOLDER",
            "tfhub:FILE.tar.gz",
            "tfhub:https://...",
            "tfhub:kaggle:OWNER/MODEL/FRAMEWORK/VARIATION",
        ],
        "keras": ["keras:FILE.keras"],
    }


def _refuse_unused(kind: str, *, weights: str, norm: str, signature: str | None, output: str | None) -> None:
    if norm != "own" and (kind not in ("apps", "scratch") or (kind == "apps" and weights != "none")):
        raise UsageError(
            f"model.norm group builds a network anew, so it is for scratch:, and for apps: with model.weights none; "
            f"got {kind}: with weights {weights}."
        )
    if weights != "imagenet" and kind not in ("apps", "kerashub"):
        raise UsageError(
            f"model.weights is for apps: and kerashub: backbones, got {weights!r} with {kind}:, which has its own."
        )
    if (signature or output) and kind not in ("tfhub", "bundled"):
        raise UsageError(f"model.signature and model.output are for tfhub: backbones, got one with {kind}:.")


def _known(request: _Request, choices: Iterable[str]) -> str:
    choices = list(choices)
    if request.name not in choices:
        raise UsageError(
            f"model.backbone {request.spec!r} is not known; choices: {', '.join(choices)}."
            f"{nearest(request.name, choices)}"
        )
    return request.name


def _bundled(request: _Request) -> Backbone:
    modules = resources.bundled_backbones()
    return _from_module(modules[_known(request, modules)], request)


def _tfhub(request: _Request) -> Backbone:
    return _from_module(hub.resolve(request.name, offline=request.offline), request)


def _from_module(path: Path, request: _Request) -> Backbone:
    layer = hub.HubLayer(
        path,
        trainable=True,
        signature=request.signature,
        output=request.output,
        trust=request.trust,
        name="module",
    )
    size = _size(layer.image_size, request)
    images = keras.Input((size, size, 3), name="image")
    x = images
    if layer.takes_integers:
        x = keras.layers.Rescaling(255.0, dtype="float32", name="grey_levels")(x)
    return _backbone(keras.Model(images, layer(x)), size, request)


def _apps(request: _Request) -> Backbone:
    name = _known(request, imagenet.applications())
    size = request.image_size or imagenet.image_size(name)
    network = imagenet.build(name, size, weights=request.weights, offline=request.offline)
    if request.norm == "group":
        network = with_group_norm(network)
    return _backbone(network, size, request, pretrained=request.weights != "none")


def _kerashub(request: _Request) -> Backbone:
    network, size = presets.build(
        request.name, image_size=request.image_size, weights=request.weights, offline=request.offline
    )
    return _backbone(network, size, request, pretrained=request.weights != "none")


def _keras(request: _Request) -> Backbone:
    path = expanded(request.name)
    if not path.is_file() or path.suffix != ".keras":
        raise EnvironmentFault(f"{request.spec} must name a .keras file, and there is none at {path}.")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=not request.trust)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise EnvironmentFault(f"{path} cannot be loaded as a .keras file ({error}).") from error
    shapes = [tuple(tensor.shape) for tensor in model.inputs or ()]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][3] != 3 or shapes[0][1] != shapes[0][2]:
        raise EnvironmentFault(f"{path} must take one batch of square images (B, S, S, 3), it takes {shapes}.")
    size = _size(shapes[0][1], request)
    images = keras.Input((size, size, 3), name="image")
    return _backbone(keras.Model(images, presets.pooled(model(images))), size, request)


def _scratch(request: _Request) -> Backbone:
    name = _known(request, scratch.NAMES)
    size = request.image_size or scratch.NAMES[name]
    network = scratch.build(name, size)
    if request.norm == "group":
        network = with_group_norm(network)
    return _backbone(network, size, request, pretrained=False)


def _size(fixed: int | None, request: _Request) -> int:
    """The size to build for: the network's own where it has one."""
    if fixed and request.image_size and fixed != request.image_size:
        raise UsageError(
            f"data.image_size must be {fixed} for {request.spec}, which takes no other, got {request.image_size}."
        )
    return fixed or request.image_size or _USUAL_SIZE


def _backbone(network: keras.Model, size: int, request: _Request, *, pretrained: bool = True) -> Backbone:
    if len(network.outputs) != 1 or len(network.outputs[0].shape) != 2 or network.outputs[0].shape[1] is None:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in network.outputs)
        raise EnvironmentFault(
            f"{request.spec} must give one feature vector (B, D) an image, it gives {shapes}; take the module's "
            "feature-vector version, or choose another output with --model.output."
        )
    _logger.info("Backbone %s: images of %d pixels to %s features.", request.spec, size, network.outputs[0].shape[1])
    network = keras.Model(network.inputs[0], network.outputs[0], name="backbone")
    return Backbone(name=request.spec, network=network, image_size=size, pretrained=pretrained)


_LOADERS: dict[str, Callable[[_Request], Backbone]] = {
    "bundled": _bundled,
    "tfhub": _tfhub,
    "apps": _apps,
    "kerashub": _kerashub,
    "keras": _keras,
    "scratch": _scratch,
}
