"""Pairs of settings that cannot work, as data. Checked before TensorFlow is loaded.

What only the network can tell (no layer for LoRA, fewer layers than asked for) is checked when it is built.
"""

from __future__ import annotations

from collections.abc import Callable

from tfbig.config import DpConfig, RunConfig
from tfbig.errors import UsageError


def _pretrained(config: RunConfig) -> bool:
    return not config.model.backbone.startswith("scratch:") and config.model.weights != "none"


def _mixes_examples(config: RunConfig) -> bool:
    wanted = str(getattr(config.options, "augment", "")).split(",")
    return not {"mixup", "cutmix"}.isdisjoint(name.strip() for name in wanted)


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
        lambda c: c.adapt.cached_views > 0 and c.adapt.mode != "head",
        "--adapt.cached_views keeps features of a frozen backbone, and only --adapt.mode head has one; give it too, or "
        "leave --adapt.cached_views out.",
    ),
    (
        lambda c: c.adapt.cached_views > 0 and getattr(c.options, "augment", None) == "",
        "--adapt.cached_views keeps augmented pictures, and nothing augments them; give --options.augment flip,crop "
        "with it, or leave it out.",
    ),
    (
        lambda c: c.adapt.cached_views > 0 and _mixes_examples(c),
        "--adapt.cached_views keeps each picture by itself, and --options.augment mixup and cutmix mix the pictures of "
        "a step; take augmentations of single pictures, such as flip,crop.",
    ),
    (
        lambda c: c.runtime.jit_compile is True and c.runtime.strategy == "mirrored",
        "--runtime.jit_compile does not work under --runtime.strategy mirrored on several CPU devices; leave one out.",
    ),
    (
        lambda c: c.tune.is_search and "auto" in (c.runtime.precision, c.runtime.jit_compile),
        "--runtime.precision auto and --runtime.jit_compile auto would time each trial of a search, so trials would "
        "not be alike; leave them out, or give what a run of its own chose (choice in its environment.json).",
    ),
    (
        lambda c: not c.dp.is_private and c.dp != DpConfig(),
        "--dp flags have no effect without one of --dp.target_epsilon and --dp.noise_multiplier; give one of them.",
    ),
    (
        lambda c: c.dp.is_private and c.data.class_weights == "balanced",
        "--data.class_weights balanced counts the private labels, which private training does not cover; leave it out "
        "(AUROC and balanced accuracy can be read without it).",
    ),
    (
        lambda c: c.dp.is_private and _mixes_examples(c),
        "--options.augment mixup and cutmix put two examples into one, so neither's influence is bounded; take "
        "augmentations of single examples, such as flip,crop.",
    ),
    (
        lambda c: c.dp.is_private and c.train.clip_norm is not None,
        "--train.clip_norm clips the batch's gradient; private training clips each example's, by --dp.l2_norm_clip. "
        "Leave --train.clip_norm out.",
    ),
    (
        lambda c: c.dp.mechanism == "tree" and c.dp.sampling != "shuffle",
        "--dp.mechanism tree uses each example once an epoch; give --dp.sampling shuffle with it.",
    ),
    (
        lambda c: c.dp.mechanism == "tree" and (c.dp.accountant == "pld" or c.dp.clip_quantile is not None),
        "--dp.mechanism tree has no PLD accountant and no moving clipping norm; leave --dp.accountant and "
        "--dp.clip_quantile out.",
    ),
    (
        # Neighbours differ by a gradient of zero then, which moves the count by 1, and its noise is for a half.
        lambda c: c.dp.clip_quantile is not None and c.dp.sampling == "shuffle",
        "--dp.clip_quantile counts examples with noise that is enough where each is drawn independently, and too "
        "little with --dp.sampling shuffle; leave one of them out.",
    ),
    (
        # A profile holds the compiled step, constants included, and the noise's key is one.
        lambda c: c.dp.is_private and c.train.profile_steps is not None,
        "--train.profile_steps writes the compiled step of a private run, and with it the key of its noise, to "
        "tensorboard/; leave it out, and profile the same run without --dp.",
    ),
    (
        lambda c: c.dp.ledger_epsilon is not None and c.dp.ledger is None,
        "--dp.ledger_epsilon is a dataset's limit in a ledger; give --dp.ledger PATH with it.",
    ),
)


def check_conflicts(config: RunConfig) -> None:
    """Raises UsageError for the first pair of settings that cannot work together."""
    for applies, message in CONFLICTS:
        if applies(config):
            raise UsageError(message)
