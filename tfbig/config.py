"""The configuration of a run: a tree of frozen dataclasses. Defaults live here and nowhere else.

The docstrings are the text of `--help`. Values are checked where they are made, so that a recipe, a
flag and a Python caller get the same sentence. Imports no TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Literal

_LEAST_NORM = 1e-6


def _require(ok: bool, flag: str, expected: str, came: object) -> None:
    if not ok:
        raise ValueError(f"{flag} must be {expected}, got {came!r}.")


def _at_least(flag: str, value: float | None, least: float, unit: str = "") -> None:
    _require(value is None or (value >= least and math.isfinite(value)), flag, f"at least {least}{unit}", value)


def _fraction(flag: str, value: float | None) -> None:
    _require(value is None or 0 <= value < 1, flag, "at least 0 and below 1", value)


def _folder(flag: str, path: str | None) -> None:
    """Refuses what the libraries that write into a folder, or JSON, cannot take as its name."""
    _require(path != "", flag, "not empty", "")
    named = path is None or ("\0" not in path and path.encode(errors="replace").decode() == path)
    _require(named, flag, "the name of a folder in UTF-8", path)


@dataclass(frozen=True)
class DataConfig:
    """The examples to learn from.

    Args:
        source: digits, tfds:NAME, folder:PATH (one sub-folder a class) or csv:PATH (a path and a label column).
        dir: Where TFDS keeps its datasets (its data_dir); for csv, the folder the paths start from.
        train_split: Name of the training split; TFDS slices such as train[:90%] work.
        validation_split: Name of the validation split; where there is none it is drawn from train.
        test_split: Name of the test split; where there is none it is drawn from train.
        validation_fraction: Share of train drawn for validation, at most 2,500 examples, by class, 0 for none.
        test_fraction: Share of train drawn for test where no test split exists.
        batch_size: Examples a step, over all devices together.
        limit: At most this many examples of each split, stratified by class.
        image_size: Height and width in pixels; by default what the backbone was made for.
        on_bad: What to do with a file that cannot be read: fail, or skip and count it in the manifest.
        decoded_gb: Keep the decoded training pictures in memory if they fit into this many gigabytes (3 bytes a pixel);
            0 decodes them anew in each epoch.
        class_weights: balanced weighs each class by the inverse of its frequency in train.
        path_column: csv: column of the file paths.
        label_column: csv: column of the labels; several in a cell, separated by |, make it multi-label.
    """

    source: str = "digits"
    dir: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    batch_size: int = 64
    limit: int | None = None
    image_size: int | None = None
    on_bad: Literal["fail", "skip"] = "fail"
    decoded_gb: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    path_column: str = "path"
    label_column: str = "label"

    def __post_init__(self) -> None:
        _fraction("data.validation_fraction", self.validation_fraction)
        _fraction("data.test_fraction", self.test_fraction)
        _require(1 <= self.batch_size <= 65536, "data.batch_size", "between 1 and 65536", self.batch_size)
        for name in ("source", "dir"):
            _require(getattr(self, name) != "", f"data.{name}", "not empty", "")
        _at_least("data.limit", self.limit, 1)
        size = self.image_size
        _require(size is None or 8 <= size <= 65536, "data.image_size", "between 8 and 65536 pixels", size)
        _at_least("data.decoded_gb", self.decoded_gb, 0, " gigabytes")


@dataclass(frozen=True)
class ModelConfig:
    """The network to start from.

    Args:
        backbone: bundled:NAME, tfhub:PATH-OR-URL, apps:NAME (keras.applications), kerashub:PRESET-OR-PATH,
            keras:FILE or scratch:NAME.
        weights: apps and kerashub: imagenet (the published weights), none, or a weights file.
        hidden_units: Units of one hidden layer in the head; by default the head is linear.
        norm: group puts group normalisation in place of BatchNorm in a network without weights, as private training
            needs it; own leaves the network as it is.
        dropout: Share of features dropped before the head while training.
        signature: tfhub: call this signature of the module, such as serve, instead of the module itself.
        output: tfhub: key of the feature vector where the module gives a dict.
        trust: Load a module even though its graph reads or writes files or calls Python.
    """

    backbone: str = "bundled:glyphs"
    weights: str = "imagenet"
    hidden_units: int | None = None
    norm: Literal["own", "group"] = "own"
    dropout: float = 0.0
    signature: str | None = None
    output: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        _require(
            self.hidden_units is None or 1 <= self.hidden_units <= 65536,
            "model.hidden_units", "between 1 and 65536", self.hidden_units,
        )  # fmt: skip
        _fraction("model.dropout", self.dropout)


@dataclass(frozen=True)
class AdaptConfig:
    """How much of the backbone is trained.

    Args:
        mode: head trains the head on a frozen backbone, full trains all, lora trains low-rank updates and the head.
        lora_rank: Rank of the updates, 1 to the width of the layers.
        unfreeze_last: full: train only the last this many layers of the backbone.
        backbone_lr_scale: full: the backbone's learning rate as a share of the head's.
        cached_views: head: augment each picture in this many ways once, and let the epochs take them in turn; 0
            augments anew at each step, with the backbone computed each time.
        statistics: BatchNorm averages in the backbone; auto freezes a pretrained backbone's, updates one from scratch.
    """

    mode: Literal["head", "full", "lora"] = "full"
    lora_rank: int = 8
    unfreeze_last: int | None = None
    backbone_lr_scale: float = 1.0
    cached_views: int = 0
    statistics: Literal["auto", "frozen", "updated"] = "auto"

    def __post_init__(self) -> None:
        _require(0 <= self.cached_views <= 1000, "adapt.cached_views", "between 0 and 1000", self.cached_views)
        _at_least("adapt.lora_rank", self.lora_rank, 1)
        _at_least("adapt.unfreeze_last", self.unfreeze_last, 1, " layer")
        scale = self.backbone_lr_scale
        _require(0 < scale <= 1e3, "adapt.backbone_lr_scale", "above 0 and at most 1000", scale)


@dataclass(frozen=True)
class TrainConfig:
    """How it is trained.

    Args:
        epochs: Passes over the training split.
        learning_rate: Peak learning rate; by default 0.003 for a linear head alone, 0.0015 for a head with a
            hidden layer, else 0.001.
        optimizer: adamw, or sgd with momentum.
        schedule: cosine falls to 0 over the run, constant stays.
        warmup_steps: Steps over which the learning rate rises from 0.
        momentum: sgd: share of the last update kept.
        weight_decay: Decoupled decay of kernels, not of biases and norms; by default 0.1 for a head with a
            hidden layer, which would learn the features by heart, else 0.03.
        clip_norm: Gradients are scaled down to this global norm.
        ema_decay: Average the weights, keeping this share a step (0.99 to 0.9999), and use the average.
        early_stopping_patience: Stop after this many epochs without a better validation result.
        keep: Weights that are evaluated and exported: best on validation, or last; by default best, and last in
            private training, where choosing by validation examples would not be covered.
        checkpoint_every_s: Seconds between checkpoints within an epoch; each epoch's end has one too.
        log_graph: Write the network's graph to TensorBoard.
        profile_steps: First and last step to profile for TensorBoard, such as [10, 20].
    """

    epochs: int = 20
    learning_rate: float | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float | None = None
    clip_norm: float | None = None
    ema_decay: float | None = None
    early_stopping_patience: int | None = None
    keep: Literal["best", "last"] | None = None
    checkpoint_every_s: float = 60.0
    log_graph: bool = False
    profile_steps: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _at_least("train.epochs", self.epochs, 1)
        _require(self.epochs <= 10**6, "train.epochs", "at most 1000000", self.epochs)
        rate = self.learning_rate
        _require(rate is None or 0 < rate < 1e3, "train.learning_rate", "above 0 and below 1000", rate)
        _at_least("train.warmup_steps", self.warmup_steps, 0)
        _fraction("train.momentum", self.momentum)
        decay = self.weight_decay
        # A larger one is no float32 any more.
        _require(decay is None or 0 <= decay <= 1e38, "train.weight_decay", "between 0 and 1e38", decay)
        _require(self.clip_norm is None or self.clip_norm > 0, "train.clip_norm", "above 0", self.clip_norm)
        _fraction("train.ema_decay", self.ema_decay)
        _at_least("train.early_stopping_patience", self.early_stopping_patience, 1, " epoch")
        _at_least("train.checkpoint_every_s", self.checkpoint_every_s, 0, " seconds")
        if self.profile_steps is not None:
            first, last = self.profile_steps
            _require(0 <= first <= last, "train.profile_steps", "[first, last] with 0 <= first <= last",
                     list(self.profile_steps))


@dataclass(frozen=True)
class DpConfig:
    """Differential privacy for each training example; off until target_epsilon or noise_multiplier is given.

    Args:
        target_epsilon: Privacy loss of the whole run, to which the noise is calibrated; 1 to 8 is usual.
        noise_multiplier: In place of target_epsilon: the noise over l2_norm_clip; 0.5 to 10 is usual.
        delta: Probability with which epsilon may not hold; well below 1 / training examples.
        l2_norm_clip: Each example's gradient is scaled down to this norm; 0.1 to 10 is usual.
        clip_quantile: Let the norm follow this quantile of the gradients' norms, privately, from l2_norm_clip on.
        physical_batch_size: Examples computed at once over all devices, for memory; by default a quarter of
            data.batch_size, which is then the expected number of examples a step.
        sampling: poisson draws each example independently a step; shuffle earns no amplification, so a much larger
            epsilon.
        mechanism: gaussian is DP-SGD; tree is DP-FTRL, for data that cannot be sampled at random, with shuffle.
        accountant: pld is the tighter one, rdp the older one, and the only one for tree and for a random search.
        max_epsilon: Stop before this epsilon is exceeded; what is trained by then is evaluated and exported.
        ledger: File of the privacy budgets of datasets, over runs; each run is charged before it starts.
        ledger_epsilon: The dataset's limit in the ledger, given when the dataset is first charged.
    """

    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    l2_norm_clip: float = 1.0
    clip_quantile: float | None = None
    physical_batch_size: int | None = None
    sampling: Literal["poisson", "shuffle"] = "poisson"
    mechanism: Literal["gaussian", "tree"] = "gaussian"
    accountant: Literal["pld", "rdp"] | None = None
    max_epsilon: float | None = None
    ledger: str | None = None
    ledger_epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.target_epsilon is not None and self.noise_multiplier is not None:
            raise ValueError(
                f"give one of dp.target_epsilon and dp.noise_multiplier, got {self.target_epsilon:g} and "
                f"{self.noise_multiplier:g}; a recipe's is taken back with --dp.target_epsilon null or "
                "--dp.noise_multiplier null."
            )
        for name in ("target_epsilon", "noise_multiplier", "max_epsilon", "ledger_epsilon", "l2_norm_clip"):
            value = getattr(self, name)
            usual = {"noise_multiplier": "0.5 to 10", "l2_norm_clip": "0.1 to 10"}.get(name, "1 to 8")
            ok = value is None or (value > 0 and math.isfinite(value))
            _require(ok, f"dp.{name}", f"above 0 ({usual} is usual)", value)
        for name in ("noise_multiplier", "l2_norm_clip"):
            value = getattr(self, name)
            # Beyond these, float32 squares underflow or overflow, and nothing is clipped.
            ok = value is None or _LEAST_NORM <= value <= 1 / _LEAST_NORM
            _require(ok, f"dp.{name}", f"between {_LEAST_NORM:g} and {1 / _LEAST_NORM:g}", value)
        limit = self.ledger_epsilon
        _require(limit is None or limit <= 1e9, "dp.ledger_epsilon", "at most 1e9", limit)
        _require(0 < self.delta < 1, "dp.delta", "above 0 and below 1 (1e-5 is usual)", self.delta)
        quantile = self.clip_quantile
        _require(quantile is None or 0 < quantile < 1, "dp.clip_quantile", "above 0 and below 1", quantile)
        _at_least("dp.physical_batch_size", self.physical_batch_size, 1)
        size = self.physical_batch_size
        _require(size is None or size <= 65536, "dp.physical_batch_size", "at most 65536", size)
        _require(self.ledger != "", "dp.ledger", "not empty", "")
        ledger = self.ledger
        _require(ledger is None or ledger.isprintable(), "dp.ledger", "the name of a file in UTF-8", ledger)

    @property
    def is_private(self) -> bool:
        """Whether training is to be private."""
        return self.target_epsilon is not None or self.noise_multiplier is not None


@dataclass(frozen=True)
class RuntimeConfig:
    """The machine it runs on.

    Args:
        strategy: none is one device, mirrored all devices of this host, multiworker the workers that TF_CONFIG names,
            tpu a TPU; auto is multiworker where TF_CONFIG names several, else all GPUs of this host.
        precision: bfloat16 computes in bfloat16 and keeps the weights in float32; auto times a few steps of each and
            keeps the faster.
        jit_compile: Compile the step with XLA; auto times a few steps with and without.
        seed: Orders the data, draws the augmentation and initialises new layers.
        offline: Never open a connection; what is not on this machine is an error.
        start_timeout_s: Seconds to wait at the start for the other workers of TF_CONFIG.
    """

    strategy: Literal["auto", "none", "mirrored", "multiworker", "tpu"] = "auto"
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    jit_compile: bool | Literal["auto"] = False
    seed: int = 0
    offline: bool = False
    start_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        timeout_s = self.start_timeout_s
        _require(0 < timeout_s <= 86400, "runtime.start_timeout_s", "above 0 and at most 86400", timeout_s)
        _require(0 <= self.seed < 2**31, "runtime.seed", "between 0 and 2147483647", self.seed)


@dataclass(frozen=True)
class ExportConfig:
    """The served model.

    Args:
        dir: Folder that TF Serving watches; each export adds the next version, DIR/1, DIR/2. No export by default.
    """

    dir: str | None = None

    def __post_init__(self) -> None:
        _folder("export.dir", self.dir)


@dataclass(frozen=True)
class TuneConfig:
    """A search for settings; off until max_trials is given.

    Args:
        max_trials: Settings to try, each in a run of its own; the best on validation is evaluated and exported. In a
            private random search the mean of their number, which is drawn at random.
        tuner: random draws settings; hyperband drops the worse ones after few epochs; bayesian draws where a model of
            the results so far expects better ones.
        executions: Runs a trial, with seeds one apart, whose mean counts.
        space: Flag -> {log: [LOW, HIGH]}, {linear: [LOW, HIGH]} or {choice: [VALUE, ...]}.
    """

    max_trials: int | None = None
    tuner: Literal["random", "hyperband", "bayesian"] = "random"
    executions: int = 1
    space: Mapping[str, Mapping[str, list]] | None = None

    def __post_init__(self) -> None:
        _at_least("tune.max_trials", self.max_trials, 1)
        _require(self.max_trials is None or self.max_trials <= 9999, "tune.max_trials", "at most 9999", self.max_trials)
        _require(1 <= self.executions <= 100, "tune.executions", "between 1 and 100", self.executions)

    @property
    def is_search(self) -> bool:
        """Whether settings are searched for."""
        return self.max_trials is not None


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is made from.

    Args:
        data: See DataConfig.
        model: See ModelConfig.
        adapt: See AdaptConfig.
        train: See TrainConfig.
        dp: See DpConfig.
        tune: See TuneConfig.
        runtime: See RuntimeConfig.
        export: See ExportConfig.
        options: The job's own flags, an instance of its Task.options.
        run_dir: Folder of this run's files; by default runs/JOB-SOURCE-HASH, the hash of the configuration.
        resume: auto goes on where this run_dir's run stopped, never starts it again, a path goes on in that folder.
        dry_run: Read two batches, take one step, export and reload in a temporary folder, and report; writes nothing.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    dp: DpConfig = field(default_factory=DpConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    options: object = None
    run_dir: str | None = None
    resume: str = "auto"
    dry_run: bool = False

    def __post_init__(self) -> None:
        _folder("run_dir", self.run_dir)
        # Filled in here, so that a run records the numbers it used, and a later default does not change it.
        head = self.adapt.mode == "head"
        hidden = head and self.model.hidden_units is not None
        rate, decay = self.train.learning_rate, self.train.weight_decay
        if rate is None:
            rate = 1.5e-3 if hidden else 3e-3 if head else 1e-3
        if decay is None:
            decay = 0.1 if hidden else 0.03
        keep = self.train.keep or ("last" if self.dp.is_private else "best")
        train = replace(self.train, learning_rate=rate, weight_decay=decay, keep=keep)
        object.__setattr__(self, "train", train)
        if self.dp.is_private and self.dp.accountant is None:
            object.__setattr__(self, "dp", replace(self.dp, accountant=self.tightest_accountant))

    @property
    def tightest_accountant(self) -> Literal["pld", "rdp"]:
        """The tightest that knows the run; a private random search as a whole is known to rdp alone."""
        is_random = self.tune.is_search and self.tune.tuner == "random"
        return "rdp" if self.dp.mechanism == "tree" or is_random else "pld"


def flatten(config: object, prefix: str = "") -> dict[str, str | float | bool]:
    """A configuration as dotted flag -> value; values that are no number, string or bool as text."""
    flat: dict[str, str | float | bool] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value if isinstance(value, (str, float, int, bool)) else str(value)
    return flat
