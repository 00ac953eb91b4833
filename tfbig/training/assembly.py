"""The assembly of a run: the only place where features meet.

`assemble` turns a task and its configuration into a learner on its data; fit.py trains it. Everything below takes
plain arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import keras
import numpy as np
import tensorflow as tf

from tfbig.config import RunConfig
from tfbig.data.batches import Augment
from tfbig.data.index_plan import IndexPlan
from tfbig.data.sampling import Plan, PoissonPlan, padded_length
from tfbig.data.splits import Split, Splits
from tfbig.data.views import ViewPlan, augmented
from tfbig.errors import UsageError
from tfbig.gradients.private.mechanism import Accountant
from tfbig.gradients.private.rule import PrivateRule, private
from tfbig.gradients.rule import GradientRule, clipped, mean_gradient
from tfbig.networks.adapters import split_frozen
from tfbig.networks.fused import fused
from tfbig.objectives.supervised import Objective
from tfbig.training import feature_cache, features, private_state
from tfbig.training.callbacks import Monitor
from tfbig.training.feature_cache import FeatureCache
from tfbig.training.feature_key import Origin
from tfbig.training.learner import Learner
from tfbig.training.optimizers import WarmupCosine, make_optimizer, without_decay
from tfbig.training.privacy import Privacy, plan_privacy
from tfbig.training.private_state import PrivateState
from tfbig.training.task import Task

log = logging.getLogger(__name__)

# Features that may be held in memory where they cannot be kept on the disk.
_FEATURE_MEMORY_BYTES = 4 * 2**30
# Images that a frozen trunk sees at once; what trains on its features may take far larger batches.
_TRUNK_BATCH_SIZE = 64


@dataclass(frozen=True)
class Assembly:
    """Everything a run trains with.

    Args:
        network: Features in, logits out; what is evaluated and exported.
        learner: Trains `network`, or only the part of it behind a frozen trunk whose features are cached.
        splits: The data as `network` takes it.
        train: What the learner trains on: `splits.train`, or its cached features.
        validation: Likewise; None where there is no validation split.
        plan: Which examples each step sees.
        augment: Changes each training batch, or None; what is cached is augmented already.
        objective: What is minimised.
        physical_batch_size: Examples computed at once, over all devices.
        privacy: What a private run promises; None where training is not private.
        test_features: Computes the test examples' features, or reads them; None where they are not cached.
    """

    network: keras.Model
    learner: Learner
    splits: Splits
    train: Split
    validation: Split | None
    plan: Plan
    augment: Augment | None
    objective: Objective
    physical_batch_size: int
    privacy: Privacy | None = None
    test_features: Callable[[], Split] | None = None

    def judged(self) -> tuple[keras.Model, Split]:
        """A network and test examples as it takes them: `network`, or the part of it behind the cached features."""
        if self.test_features is None:
            return self.network, self.splits.test
        return self.learner.network, self.test_features()


def assemble(
    task: Task,
    config: RunConfig,
    splits: Splits,
    strategy: tf.distribute.Strategy,
    state: PrivateState | None = None,
    *,
    keeps_features: bool = True,
) -> Assembly:
    """Builds the network and ties it to the data, an objective and an optimizer.

    Args:
        task: The job.
        config: Everything about it; free of conflicts.
        splits: The data, as `task.load` gives it.
        strategy: Where to train, from `runtime`.
        state: Of a private run that has begun; drawn afresh where it is needed and not given.
        keeps_features: Whether a frozen backbone's features are computed once, where they can be; else with each step.
    """
    physical_batch_size = _physical_batch_size(config, strategy.num_replicas_in_sync)
    objective = task.objective(config, splits)
    # Before the work of computing features: it refuses patience without a validation split.
    monitor_of(objective, config, has_validation=splits.validation is not None)
    augment = task.augment(config, splits.spec)
    privacy = _privacy(config, splits, state or private_state.fresh()) if config.dp.is_private else None
    secret = (privacy and privacy.state.secret) or private_state.draw_secret()
    with strategy.scope():
        network = fused(task.build(config, splits.spec), for_xla=config.runtime.jit_compile is True)
        splits = task.prepare(splits, network)
        cache = _cache(config, splits)
        num_views = config.adapt.cached_views if augment is not None else 0
        is_live = augment is not None and not num_views
        can_keep = keeps_features and not is_live
        trunk, trained = _split(network, splits, cache, max(num_views, 1)) if can_keep else (None, network)
        plan = _plan(config, len(splits.train), physical_batch_size, secret)
        if num_views:
            _refuse_uncached(trunk, config)
            plan = ViewPlan(plan, num_views)
        optimizer = _optimizer(config, trained, plan)
        optimizer.build(trained.trainable_variables)
        # Before any example is read: it refuses networks that cannot be trained privately.
        at_once = physical_batch_size // strategy.num_replicas_in_sync
        rule = _rule(config, trained, objective, splits, optimizer, privacy, secret, at_once)
        if isinstance(rule, PrivateRule) and privacy is not None:
            privacy = _described(privacy, config, splits, rule, trained, has_trunk=trunk is not None)
        train, validation, test_features = splits.train, splits.validation, None
        if trunk is not None:
            num_images = min(physical_batch_size, padded_length(_TRUNK_BATCH_SIZE, strategy.num_replicas_in_sync))
            train = _train_features(trunk, config, splits, augment, num_images, cache)
            augment = None
            if validation is not None:
                origin = _origin(config, splits, "validation")
                validation = features.extract(trunk, validation, batch_size=num_images, cache=cache, origin=origin)
            if cache is not None and cache.has_room(len(splits.test) * trained.input_shape[-1] * 4):
                origin = _origin(config, splits, "test")
                test_features = functools.partial(
                    features.extract, trunk, splits.test, batch_size=num_images, cache=cache, origin=origin
                )
        learner = Learner(trained, objective, rule)
        learner.compile(optimizer=optimizer, jit_compile=config.runtime.jit_compile)
    return Assembly(
        network, learner, splits, train, validation, plan, augment, objective, physical_batch_size, privacy,
        test_features,
    )  # fmt: skip


def _refuse_uncached(trunk: keras.Model | None, config: RunConfig) -> None:
    if trunk is None:
        raise UsageError(
            f"--adapt.cached_views {config.adapt.cached_views} needs a backbone that gives the same features each time "
            f"and room for them, on the disk ({feature_cache.LIMIT_VARIABLE}) or in memory; give fewer views, or 0."
        )


def _physical_batch_size(config: RunConfig, num_replicas: int) -> int:
    """Examples computed at once over all devices: the batch, or in private training a part of it."""
    name, size = "data.batch_size", config.data.batch_size
    if config.dp.is_private:
        # A quarter: a step draws more or fewer than data.batch_size, and what fills up its last part is wasted.
        usual = padded_length(-(-size // 4), num_replicas)
        name, size = "dp.physical_batch_size", config.dp.physical_batch_size or usual
    if size % num_replicas:
        raise UsageError(
            f"--{name} {size} must be a multiple of the {num_replicas} devices that share each batch."
        )
    return size


def _cache(config: RunConfig, splits: Splits) -> FeatureCache | None:
    """The user's cache; None for a dry run, which writes nothing, and for data that nobody can tell from other data."""
    return None if config.dry_run or not splits.manifest.get("fingerprint") else feature_cache.from_environment()


def _origin(config: RunConfig, splits: Splits, role: str) -> Origin:
    about = f"{config.model.backbone} on {config.data.source}"
    return Origin(str(splits.manifest.get("fingerprint", "")), role, about)


def _train_features(
    trunk: keras.Model,
    config: RunConfig,
    splits: Splits,
    augment: Augment | None,
    batch_size: int,
    cache: FeatureCache | None,
) -> Split:
    """Features of the training examples, or of all their views."""
    origin = _origin(config, splits, "train")
    if augment is None:
        return features.extract(trunk, splits.train, batch_size=batch_size, cache=cache, origin=origin)
    seed = config.runtime.seed
    numbers = range(config.adapt.cached_views)
    views = [augmented(splits.train, augment, seed=seed, view=number) for number in numbers]
    # All of the job's options, for only the job knows which of them augment.
    texts = [f"view {number} of seed {seed}, {config.options!r}" for number in numbers]
    origins = [dataclasses.replace(origin, role=f"train view {i}", augmentation=text) for i, text in enumerate(texts)]
    return features.extract_views(trunk, views, batch_size=batch_size, cache=cache, origins=origins)


def _split(
    network: keras.Model, splits: Splits, cache: FeatureCache | None, num_views: int
) -> tuple[keras.Model | None, keras.Model]:
    """A frozen trunk and the rest, where the trunk's features can be kept on the disk or in memory."""
    trunk, rest = split_frozen(network)
    if trunk is None:
        return None, network
    num_examples = num_views * len(splits.train) + (len(splits.validation) if splits.validation else 0)
    needed = num_examples * rest.input_shape[-1] * 4
    if needed > _FEATURE_MEMORY_BYTES and not (cache and cache.has_room(needed)):
        log.info("features would take %.1f GiB, so each epoch computes them again", needed / 2**30)
        return None, network
    return trunk, rest


def _plan(config: RunConfig, num_examples: int, physical_batch_size: int, secret: int) -> Plan:
    """Which examples each step sees; in private training a secret, for who is drawn must not be known."""
    batch_size = config.data.batch_size
    if not config.dp.is_private:
        return IndexPlan(num_examples, batch_size, seed=config.runtime.seed)
    if config.dp.sampling == "poisson":
        return PoissonPlan(
            num_examples=num_examples, batch_size=batch_size, physical_batch_size=physical_batch_size, seed=secret
        )
    return IndexPlan(num_examples, batch_size, seed=secret, multiple=physical_batch_size)


def _rule(
    config: RunConfig,
    trained: keras.Model,
    objective: Objective,
    splits: Splits,
    optimizer: keras.optimizers.Optimizer,
    privacy: Privacy | None,
    secret: int,
    physical_batch_size: int,
) -> GradientRule:
    """What turns losses into gradients; `physical_batch_size` is a replica's."""
    clip_norm = config.train.clip_norm
    if privacy is None:
        return mean_gradient if clip_norm is None else clipped(mean_gradient, clip_norm)
    if not objective.separable:
        raise UsageError(
            "Private training needs an objective whose loss for one example depends on that example alone, and this "
            "one compares examples; take another objective, or train without --dp."
        )
    return private(
        trained,
        objective.losses,
        labels=splits.train.labels,
        clip_norm=config.dp.l2_norm_clip,
        clip_quantile=config.dp.clip_quantile,
        noise_multiplier=privacy.mechanism.noise_multiplier,
        expected_batch=config.data.batch_size,
        physical_batch_size=physical_batch_size,
        secret=secret,
        step=lambda: optimizer.iterations.value,
        tree_steps_per_epoch=privacy.mechanism.steps_per_epoch if config.dp.mechanism == "tree" else None,
    )


def _privacy(config: RunConfig, splits: Splits, state: PrivateState) -> Privacy:
    """What the run promises; counts examples by the spec, since a dry run holds only some of them."""
    dp, num_examples = config.dp, splits.spec.num_train
    steps_per_epoch = IndexPlan(num_examples, config.data.batch_size).steps_per_epoch
    return plan_privacy(
        state,
        num_examples=num_examples,
        batch_size=config.data.batch_size,
        num_steps=config.train.epochs * steps_per_epoch,
        sampling=dp.sampling,
        noise=dp.mechanism,
        target_epsilon=dp.target_epsilon,
        noise_multiplier=dp.noise_multiplier,
        delta=dp.delta,
        accountant=cast(Accountant, dp.accountant),
        clip_norm=dp.l2_norm_clip,
        max_epsilon=dp.max_epsilon,
    )


def _described(
    privacy: Privacy, config: RunConfig, splits: Splits, rule: PrivateRule, trained: keras.Model, *, has_trunk: bool
) -> Privacy:
    """The promise with what dp.json says beside its figures."""
    chosen = []
    if config.train.keep == "best" and splits.validation is not None:
        chosen.append("the best epoch")
    if config.train.early_stopping_patience is not None:
        chosen.append("when to stop")
    trained_count = sum(int(np.prod(v.shape)) for v in trained.trainable_variables)
    has_frozen = has_trunk or trained.count_params() > trained_count
    described = {
        "trained_variables": [variable.path for variable in trained.trainable_variables],
        "engine": rule.engine.name,
        "adaptive_clipping": rule.bound.parameters,
        "chosen_on_validation": chosen,
        "drawn_splits": _drawn(splits),
        "is_limited": splits.manifest.get("limit") is not None,
        "public_parts": ["the weights and statistics that were not trained"] if has_frozen else [],
    }
    return dataclasses.replace(privacy, described=described)


def _drawn(splits: Splits) -> list[str]:
    """Which of validation and test come of the private data; one of unknown origin counts as drawn."""
    found = {"validation": splits.validation, "test": splits.test}
    facts = splits.manifest.get("splits")
    origins = {role: fact.get("origin") for role, fact in facts.items()} if isinstance(facts, Mapping) else {}
    return [role for role, split in found.items() if split is not None and origins.get(role) != "given"]


def _optimizer(config: RunConfig, trained: keras.Model, plan: Plan) -> keras.optimizers.Optimizer:
    train = config.train
    num_steps = train.epochs * plan.steps_per_epoch
    schedule = WarmupCosine(
        cast(float, train.learning_rate),
        num_steps=num_steps,
        warmup_steps=min(train.warmup_steps, num_steps - 1),
        falls=train.schedule == "cosine",
    )
    scale = config.adapt.backbone_lr_scale
    return make_optimizer(
        train.optimizer,
        learning_rate=schedule,
        momentum=train.momentum,
        weight_decay=cast(float, train.weight_decay),
        undecayed=without_decay(trained.trainable_variables),
        slow=trained.get_layer("backbone").trainable_variables if scale != 1.0 else (),
        slow_scale=scale,
    )


def monitor_of(objective: Objective, config: RunConfig, *, has_validation: bool) -> Monitor:
    """Which epoch is best, and when to stop.

    Raises:
        UsageError: There is nothing to be patient about.
    """
    patience = config.train.early_stopping_patience
    if not has_validation and patience is not None:
        raise UsageError(
            "--train.early_stopping_patience needs a validation split; give --data.validation_fraction 0.1 with it."
        )
    return Monitor(("val_" if has_validation else "") + objective.monitor, objective.mode, patience)
