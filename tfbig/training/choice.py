"""Precision and compilation chosen by timing steps: `--runtime.precision auto` and `--runtime.jit_compile auto`.

Only the decision; pipelines/_choice.py takes the steps. What is never timed: bfloat16 where the hardware does not
compute it, XLA over several devices, and anything in private training or over several workers, which stay as the
defaults are. Imports no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from tfbig.config import RunConfig

Precision: TypeAlias = Literal["float32", "bfloat16"]
Part: TypeAlias = Literal["network", "head"]

WARM_UP_STEPS = 2
"""Of each candidate: the first traces and compiles, and what the second does only once."""
TIMED_STEPS = 5
MOST_S = 30.0
"""So long after a candidate's first step no further one begins, if one was timed."""
LEAST_GAIN = 1.05
"""How much faster than the default a candidate has to be: less is lost in the noise of the timing."""


@dataclass(frozen=True)
class Timing:
    """What the steps of one candidate told.

    Args:
        precision: float32 or bfloat16.
        jit_compile: Whether XLA compiled the step.
        step_ms: The fastest step of those timed, milliseconds; None where it failed.
        first_step_s: From the start of the building to the end of the first step, seconds.
        is_finite: Whether every loss was finite.
        failure: Why there were no steps; empty where there were.
        part: What the steps train as the run's will: the whole network, or the head behind features that are kept.
        num_steps: How many were timed.
    """

    precision: Precision
    jit_compile: bool
    step_ms: float | None
    first_step_s: float | None = None
    is_finite: bool = False
    failure: str = ""
    part: Part = "network"
    num_steps: int = 0


@dataclass(frozen=True)
class Choice:
    """What `auto` stands for in a run.

    Args:
        precision: float32 or bfloat16.
        jit_compile: Whether XLA compiles the step.
        reason: Why these.
        timed: What was timed, in its order.
    """

    precision: Precision
    jit_compile: bool
    reason: str
    timed: tuple[Timing, ...] = ()

    def applied(self, config: RunConfig) -> RunConfig:
        """The configuration with the choice in place of `auto`."""
        runtime = dataclasses.replace(config.runtime, precision=self.precision, jit_compile=self.jit_compile)
        return dataclasses.replace(config, runtime=runtime)

    def record(self) -> dict[str, object]:
        """As environment.json holds it."""
        return dataclasses.asdict(self)


def has_enough(ends: Sequence[float]) -> bool:
    """Whether a candidate has taken the steps that it may.

    Args:
        ends: When its building began, then the end of each step, seconds.
    """
    num_steps = len(ends) - 1
    return num_steps >= WARM_UP_STEPS + TIMED_STEPS or (num_steps > 1 and ends[-1] - ends[1] >= MOST_S)


def timed_steps(ends: Sequence[float]) -> list[float]:
    """Seconds of the steps that count: those behind the warm-up; where the time did not suffice, the last.

    Args:
        ends: When the building began, then the end of each step, at least two, seconds.
    """
    durations = [after - before for before, after in zip(ends[1:], ends[2:], strict=False)]  # not of the first step
    return durations[WARM_UP_STEPS - 1 :] or durations[-1:]


def is_open(config: RunConfig) -> bool:
    """Whether there is something to choose."""
    return "auto" in (config.runtime.precision, config.runtime.jit_compile)


def recorded(record: object, config: RunConfig) -> Choice | None:
    """The choice that an earlier session of the run made; None where there is none that fits.

    Args:
        record: What environment.json holds under `choice`.
        config: The run's settings.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("jit_compile"), bool):
        return None
    precision, jit_compile = record.get("precision"), record["jit_compile"]
    fits = precision in ("float32", "bfloat16") and config.runtime.precision in (precision, "auto")
    if not fits or config.runtime.jit_compile not in (jit_compile, "auto"):
        return None
    timed = tuple(Timing(**entry) for entry in cast(Sequence[Mapping], record.get("timed", ())))
    return Choice(cast(Precision, precision), jit_compile, str(record.get("reason", "")), timed)


def unmeasured(config: RunConfig, reason: str) -> Choice:
    """The defaults in place of `auto`."""
    precision, jit_compile = config.runtime.precision, config.runtime.jit_compile
    return Choice("float32" if precision == "auto" else precision, jit_compile is True, reason)


def choose(
    config: RunConfig, time: Callable[[Precision, bool], Timing], *, has_bfloat16: bool, has_xla: bool
) -> Choice:
    """Times the candidates: the precisions first, then the faster one with and without XLA.

    Args:
        config: With `auto` somewhere.
        time: Takes steps under a precision, with or without XLA.
        has_bfloat16: Whether the hardware computes in bfloat16.
        has_xla: Whether XLA may be tried.

    Returns:
        The fastest candidate whose losses are finite; the default unless another is faster by `LEAST_GAIN`.
    """
    found = unmeasured(config, "there is one candidate only on this machine")
    tries_bfloat16 = config.runtime.precision == "auto" and has_bfloat16
    tries_xla = config.runtime.jit_compile == "auto" and has_xla
    if not tries_bfloat16 and not tries_xla:
        return found
    best = time(found.precision, found.jit_compile)
    timed = [best]
    if tries_bfloat16:
        timed.append(time("bfloat16", best.jit_compile))
        best = _faster(best, timed[-1])
    if tries_xla:
        timed.append(time(best.precision, True))
        best = _faster(best, timed[-1])
    return Choice(best.precision, best.jit_compile, "the fastest of those timed, with finite losses", tuple(timed))


def _faster(best: Timing, rival: Timing) -> Timing:
    return rival if _cost(best) > LEAST_GAIN * _cost(rival) else best


def _cost(timing: Timing) -> float:
    return timing.step_ms if timing.step_ms is not None and timing.is_finite else math.inf
