"""The runtime that a configuration asks for. Below the other modules of pipelines/; imports TensorFlow when called."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from tfbig.config import RunConfig

if TYPE_CHECKING:
    import tensorflow as tf

    from tfbig.team import Team


def runtime_of(
    config: RunConfig, *, strategy: str | None = None, team: Team | None = None
) -> AbstractContextManager[tf.distribute.Strategy]:
    """`tfbig.runtime.runtime` with a configuration's settings.

    Args:
        config: Its precision is settled, and not `auto`.
        strategy: In place of the configuration's.
        team: The processes that train together; by default this one alone.
    """
    from tfbig.runtime import runtime

    return runtime(
        strategy=strategy or config.runtime.strategy,
        precision=config.runtime.precision,
        seed=config.runtime.seed,
        exact_float32=config.dp.is_private,
        team=team,
    )
