"""A job, as data: the plain functions that fit.py and the command line call in turn.

`Task` imports no TensorFlow, so that `--help` and every configuration error answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

    from tfbig.config import RunConfig
    from tfbig.data.batches import Augment
    from tfbig.data.splits import DataSpec, Splits
    from tfbig.objectives.supervised import Objective
    from tfbig.serving.export import Signature


@dataclass(frozen=True)
class Task:
    """One job, from data to served model.

    Args:
        name: The job's module name, as in `python -m tfbig.pipelines.NAME`.
        options: Frozen dataclass of the job's own flags, `--options.X`.
        load: config -> the data. Raises DataError.
        build: (config, spec) -> the network to train, ending in logits.
        prepare: (splits, network) -> the splits with features as the network takes them, such as images
            decoded to its input size.
        objective: (config, splits) -> what to minimise and what to measure.
        signatures: (network, spec) -> the functions to serve by name; one is "serving_default".
        augment: (config, spec) -> changes to training batches that draw only from the seed given, or None.
        defaults: Dotted flag -> this job's default, where it differs from tfbig.config.
        examples: Commands shown by --help.
    """

    name: str
    options: type
    load: Callable[[RunConfig], Splits]
    build: Callable[[RunConfig, DataSpec], keras.Model]
    objective: Callable[[RunConfig, Splits], Objective]
    signatures: Callable[[keras.Model, DataSpec], Mapping[str, Signature]]
    prepare: Callable[[Splits, keras.Model], Splits] = lambda splits, network: splits
    augment: Callable[[RunConfig, DataSpec], Augment | None] = lambda config, spec: None
    defaults: Mapping[str, object] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
