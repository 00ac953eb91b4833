"""KerasHub's image backbones by preset, with the preset's own scaling put inside and pooled to a vector.

`kerashub:PRESET-OR-FOLDER` of tfbig.networks.backbones. Letters in shapes: B images, S pixels a side,
D features, T tokens.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType

import keras

from tfbig.errors import EnvironmentFault, UsageError
from tfbig.networks import handles
from tfbig.paths import expanded

_logger = logging.getLogger(__name__)

_USUAL_SIZE = 224


def build(
    preset: str, *, image_size: int | None, weights: str, offline: bool
) -> tuple[keras.Model, int]:
    """A preset's backbone.

    Args:
        preset: Name of a built-in preset, a kaggle:// or hf:// handle, or a folder written by save_to_preset.
        image_size: S in pixels; by default the preset's own.
        weights: imagenet (the preset's weights), none, or a weights file.
        offline: Fail where the preset is not on this machine.

    Returns:
        Images (B, S, S, 3) in [0, 1] -> features, and S.

    Raises:
        EnvironmentFault: KerasHub is not installed, or the preset cannot be had.
        UsageError: The preset is no image backbone, or the size or the weights file does not fit it.
    """
    keras_hub = _keras_hub()
    folder = _on_disk(keras_hub, preset) if offline else preset
    try:
        body = keras_hub.models.Backbone.from_preset(folder, load_weights=weights == "imagenet")
        converter = _converter(keras_hub, folder, type(body))
    # Downloads go through kagglehub, huggingface_hub and others, each with errors of its own.
    except Exception as error:
        raise EnvironmentFault(
            f"kerashub:{preset} cannot be loaded ({handles.first_line(error)}); give a preset that "
            "keras_hub.models.Backbone.presets lists, or a folder written by save_to_preset."
        ) from error
    if weights not in ("imagenet", "none"):
        _load_weights(body, weights, preset)
    size = _size(body, converter, image_size, preset)
    images = keras.Input((size, size, 3), name="image")
    features = pooled(body(_scaled(images, converter, preset)), class_token=getattr(body, "use_class_token", False))
    return keras.Model(images, features), size


def pooled(x: keras.KerasTensor, *, class_token: bool = False) -> keras.KerasTensor:
    """A map (B, H, W, D) or tokens (B, T, D) averaged to (B, D); any other shape as it is.

    Args:
        x: What a backbone gives.
        class_token: Take the first token instead of the average, as a ViT was trained to be read.
    """
    if len(x.shape) == 4:
        return keras.layers.GlobalAveragePooling2D(name="pool")(x)
    if len(x.shape) == 3:
        return x[:, 0] if class_token else keras.layers.GlobalAveragePooling1D(name="pool")(x)
    return x


def _keras_hub() -> ModuleType:
    try:
        import keras_hub
    except ImportError as error:
        raise EnvironmentFault(
            f"kerashub: backbones need the package keras-hub ({error}); run pip install 'tfbig[models]'."
        ) from error
    return keras_hub


def _on_disk(keras_hub: ModuleType, preset: str) -> str:
    """The folder of a preset that is on this machine."""
    if expanded(preset).is_dir():
        return str(expanded(preset))
    built_in = keras_hub.models.Backbone.presets
    handle = built_in[preset]["kaggle_handle"] if preset in built_in else preset
    if handle.startswith("kaggle://"):
        return str(handles.cached_from_kaggle(handle.removeprefix("kaggle://"), file="config.json"))
    raise EnvironmentFault(
        f"kerashub:{preset} is not a folder, and --runtime.offline forbids to fetch it; give a folder "
        "written by save_to_preset."
    )


def _converter(keras_hub: ModuleType, preset: str, backbone_class: type) -> keras.layers.Layer | None:
    """The preset's image converter; None for a preset saved without one."""
    if Path(preset).is_dir() and not (Path(preset) / "image_converter.json").exists():
        return None
    return keras_hub.layers.ImageConverter.from_preset(preset)


def _scaled(
    images: keras.KerasTensor, converter: keras.layers.Layer | None, preset: str
) -> keras.KerasTensor:
    if converter is None:
        _logger.warning(
            "kerashub:%s has no image converter; its network gets grey levels 0 to 255. If it was trained on another "
            "range, save an ImageConverter beside it.",
            preset,
        )
    scale = getattr(converter, "scale", None)
    offset = getattr(converter, "offset", None)
    # A converter takes grey levels, 0 to 255.
    scale = 1.0 if scale is None else scale
    per_channel = [255.0 * s for s in scale] if isinstance(scale, list | tuple) else 255.0 * scale
    layer = keras.layers.Rescaling(
        per_channel, offset=0.0 if offset is None else offset, dtype="float32", name="preprocessing"
    )
    return layer(images)


def _size(body: keras.Model, converter: keras.layers.Layer | None, wanted: int | None, preset: str) -> int:
    shape = getattr(body, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] != 3:
        raise UsageError(f"kerashub:{preset} must take images (B, H, W, 3), it takes {shape}.")
    fixed = shape[1]
    if fixed and wanted and fixed != wanted:
        raise UsageError(f"data.image_size must be {fixed} for kerashub:{preset}, which takes no other, got {wanted}.")
    own = (getattr(converter, "image_size", None) or (None,))[0]
    return fixed or wanted or own or _USUAL_SIZE


def _load_weights(model: keras.Model, weights: str, preset: str) -> None:
    path = expanded(weights)
    if not path.is_file():
        raise UsageError(f"model.weights must be imagenet, none or a weights file, got {weights!r}, which is no file.")
    try:
        model.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(f"{weights} does not hold weights of kerashub:{preset}: {error}") from error
