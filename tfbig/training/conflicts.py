"""Pairs of settings that cannot work, as data. Checked before TensorFlow is loaded.

What only the network can tell (no layer for LoRA, fewer layers than asked for) is checked when it is built.
"""

from __future__ import annotations

from collections.abc import Callable

from tfbig.config import RunConfig
from tfbig.errors import UsageError


def _pretrained(config: RunConfig) -> bool:
    return not config.model.backbone.startswith("scratch:") and config.model.weights != "none"


CONFLICTS: tuple[tuple[Callable[[RunConfig], bool], str], ...] = (
    (
        lambda c: c.adapt.unfreeze_last is not None and c.adapt.mode != "full",
        "--adapt.unfreeze_last chooses among the layers of full fine-tuning; give --adapt.mode full with it.",
    ),
    (
        lambda c: c.adapt.backbone_lr_scale != 1.0 and c.adapt.mode == "head",
        "--adapt.backbone_lr_scale has no effect where the backbone is frozen; leave it out.",
    ),
    (
        lambda c: c.adapt.mode in ("head", "lora") and not _pretrained(c),
        "--adapt.mode head and lora keep the backbone's weights, but this one has none; give --adapt.mode full, "
        "or a pretrained --model.backbone.",
    ),
    (
        lambda c: c.adapt.mode in ("head", "lora") and c.adapt.statistics == "updated",
        "--adapt.statistics updated changes a backbone that --adapt.mode head and lora keep; leave it out.",
    ),
    (
        lambda c: c.runtime.jit_compile and c.runtime.strategy == "mirrored",
        "--runtime.jit_compile does not work under --runtime.strategy mirrored on several CPU devices; leave one out.",
    ),
)


def check_conflicts(config: RunConfig) -> None:
    """Raises UsageError for the first pair of settings that cannot work together."""
    for applies, message in CONFLICTS:
        if applies(config):
            raise UsageError(message)
