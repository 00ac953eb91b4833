"""Every model of keras.applications as a backbone, with its own preprocessing put inside.

`apps:NAME` of tfbig.networks.backbones. The image sizes are those the published weights were trained
at. Letters in shapes: B images, S pixels a side, D features.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError

import keras

from tfbig.errors import EnvironmentFault, UsageError
from tfbig.paths import expanded

_USUAL_SIZE = 224
_SIZES = {
    "EfficientNetB1": 240,
    "EfficientNetB2": 260,
    "EfficientNetB3": 300,
    "EfficientNetB4": 380,
    "EfficientNetB5": 456,
    "EfficientNetB6": 528,
    "EfficientNetB7": 600,
    "EfficientNetV2B1": 240,
    "EfficientNetV2B2": 260,
    "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384,
    "EfficientNetV2M": 480,
    "EfficientNetV2L": 480,
    "InceptionResNetV2": 299,
    "InceptionV3": 299,
    "NASNetLarge": 331,
    "Xception": 299,
}


@keras.saving.register_keras_serializable("tfbig")
class ImagenetPreprocessing(keras.layers.Layer):
    """Images in [0, 1] -> what a family of keras.applications was trained on, by its own preprocess_input.

    Args:
        family: A module of keras.applications, such as resnet_v2.
        **kwargs: `name`, as in keras.layers.Layer.
    """

    def __init__(self, family: str, **kwargs: object) -> None:
        # Always float32: in bfloat16 neighbouring grey levels would fall together.
        super().__init__(**{"trainable": False, **kwargs, "dtype": "float32"})
        self.family = family
        self.built = True

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Images (B, S, S, 3) in [0, 1] -> the same shape, preprocessed."""
        return getattr(keras.applications, self.family).preprocess_input(images * 255.0)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the images."""
        return input_shape

    def get_config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {**super().get_config(), "family": self.family}


def applications() -> dict[str, Callable[..., keras.Model]]:
    """The models of keras.applications by name."""
    return {name: value for name, value in vars(keras.applications).items() if inspect.isfunction(value)}


def image_size(name: str) -> int:
    """S, the image size in pixels that a model's published weights were trained at."""
    return _SIZES.get(name, _USUAL_SIZE)


def family(name: str) -> str:
    """The module of keras.applications that holds a model's preprocess_input."""
    return applications()[name].__module__.rpartition(".")[2]


def build(name: str, size: int, *, weights: str, offline: bool) -> keras.Model:
    """A model without its classifier, averaged to a vector.

    Args:
        name: One of `applications()`.
        size: S, height and width in pixels.
        weights: imagenet, none, or a weights file of the model without its top.
        offline: Fail where the published weights are not yet in Keras's cache.

    Returns:
        Images (B, S, S, 3) in [0, 1] -> features (B, D).

    Raises:
        UsageError: The size or the weights file does not fit.
        EnvironmentFault: The published weights cannot be had.
    """
    published = "imagenet" if weights == "imagenet" else None
    try:
        # Keras announces its downloads on stdout, whose last line is the run's result.
        with _no_connections() if offline else contextlib.nullcontext(), contextlib.redirect_stdout(sys.stderr):
            body = applications()[name](
                include_top=False, weights=published, input_shape=(size, size, 3), pooling="avg"
            )
    except ValueError as error:
        raise UsageError(f"apps:{name} cannot be built for images of {size} pixels: {error}") from error
    # Keras reports every failed download as a bare Exception.
    except Exception as error:
        raise EnvironmentFault(
            f"The published weights of apps:{name} could not be fetched ({error}); put the file named there into "
            f"{_weights_cache()}, or give --model.weights FILE or none."
        ) from error
    if weights not in ("imagenet", "none"):
        _load_weights(body, weights, name)
    images = keras.Input((size, size, 3), name="image")
    return keras.Model(images, body(ImagenetPreprocessing(family(name), name="preprocessing")(images)))


def _weights_cache() -> Path:
    """Where Keras keeps the published weights."""
    return expanded(os.environ.get("KERAS_HOME") or "~/.keras") / "models"


def _load_weights(model: keras.Model, weights: str, name: str) -> None:
    if not expanded(weights).is_file():
        raise UsageError(f"model.weights must be imagenet, none or a weights file, got {weights!r}, which is no file.")
    try:
        model.load_weights(expanded(weights))
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(f"{weights} does not hold weights of {name} without its top: {error}") from error


@contextlib.contextmanager
def _no_connections() -> Iterator[None]:
    """Within, urllib (with which Keras fetches weights) opens nothing."""
    urllib.request.install_opener(urllib.request.build_opener(_Refuse()))
    try:
        yield
    finally:
        # urllib builds its default opener anew at the next use.
        urllib.request.install_opener(None)  # type: ignore[arg-type]


class _Refuse(urllib.request.BaseHandler):
    def default_open(self, request: urllib.request.Request) -> None:
        raise URLError("--runtime.offline forbids to fetch it")
