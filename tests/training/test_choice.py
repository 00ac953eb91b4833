"""`auto` stands for the fastest candidate that stays finite, and for the defaults where nothing may be timed."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tfbig.config import RunConfig, RuntimeConfig
from tfbig.training.choice import (
    MOST_S,
    TIMED_STEPS,
    WARM_UP_STEPS,
    Choice,
    Precision,
    Timing,
    choose,
    has_enough,
    recorded,
    timed_steps,
    unmeasured,
)

BOTH = RunConfig(runtime=RuntimeConfig(precision="auto", jit_compile="auto"))
Times = dict[tuple[str, bool], float | None]


def _chosen(times: Times, config: RunConfig = BOTH, **allowed: bool) -> Choice:
    """A time below 0 is a loss that is not finite; None is a candidate that fails."""

    def time(precision: Precision, jit_compile: bool) -> Timing:
        step_ms = times[precision, jit_compile]
        failed = step_ms is None
        return Timing(
            precision, jit_compile, None if failed else abs(step_ms), is_finite=not failed and step_ms > 0
        )

    return choose(config, time, **{"has_bfloat16": True, "has_xla": True, **allowed})


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({("float32", False): 10, ("bfloat16", False): 5, ("bfloat16", True): 9}, ("bfloat16", False)),
        ({("float32", False): 10, ("bfloat16", False): 12, ("float32", True): 6}, ("float32", True)),
        ({("float32", False): 10, ("bfloat16", False): 5, ("bfloat16", True): 4}, ("bfloat16", True)),
        ({("float32", False): 10, ("bfloat16", False): 9.8, ("float32", True): 9.9}, ("float32", False)),
        ({("float32", False): 10, ("bfloat16", False): -1, ("float32", True): None}, ("float32", False)),
        ({("float32", False): None, ("bfloat16", False): 5, ("bfloat16", True): None}, ("bfloat16", False)),
        ({("float32", False): -10, ("bfloat16", False): -5, ("float32", True): -5}, ("float32", False)),
    ],
    ids=["half", "compiled", "both", "a tie", "not finite", "the default fails", "none is finite"],
)
def test_the_fastest_that_stays_finite_is_kept(times: Times, expected: tuple[str, bool]) -> None:
    choice = _chosen(times)
    assert (choice.precision, choice.jit_compile) == expected
    assert len(choice.timed) == 3


def test_what_is_given_is_not_chosen() -> None:
    fast: Times = {("float32", False): 10, ("bfloat16", False): 1, ("float32", True): 1, ("bfloat16", True): 0.1}
    given = dataclasses.replace(BOTH, runtime=RuntimeConfig(precision="auto", jit_compile=True))
    choice = _chosen(fast, given)
    assert [(t.precision, t.jit_compile) for t in choice.timed] == [("float32", True), ("bfloat16", True)]
    given = dataclasses.replace(BOTH, runtime=RuntimeConfig(precision="float32", jit_compile="auto"))
    assert {timing.precision for timing in _chosen(fast, given).timed} == {"float32"}


def test_what_the_hardware_lacks_is_not_timed() -> None:
    fast: Times = {("float32", False): 10, ("bfloat16", False): 1, ("float32", True): 1}
    assert _chosen(fast, has_bfloat16=False).precision == "float32"
    assert not _chosen(fast, has_xla=False).jit_compile
    neither = _chosen(fast, has_bfloat16=False, has_xla=False)
    assert (neither.precision, neither.jit_compile, neither.timed) == ("float32", False, ())


def _taken(durations: list[float]) -> list[float]:
    """When steps of these seconds end, as many as are allowed; the building began at 0."""
    ends = [0.0]
    for duration in durations:
        ends.append(ends[-1] + duration)
        if has_enough(ends):
            break
    return ends


def test_the_warm_up_is_not_timed_and_the_steps_after_it_are() -> None:
    assert WARM_UP_STEPS == 2
    ends = _taken([100.0, 7.0, *range(1, 20)])
    assert timed_steps(ends) == [1.0, 2.0, 3.0, 4.0, 5.0][:TIMED_STEPS]


@pytest.mark.parametrize("step_s", [MOST_S / 3, MOST_S, 100 * MOST_S])
def test_slow_steps_are_fewer_but_one_is_always_timed(step_s: float) -> None:
    ends = _taken([1000.0, *[step_s] * 50])
    timed = timed_steps(ends)
    assert timed and timed == [step_s] * len(timed)
    # No step begins once the time is over.
    assert ends[-2] - ends[1] < MOST_S


def test_a_record_gives_the_choice_again() -> None:
    choice = _chosen({("float32", False): 10, ("bfloat16", False): 5, ("bfloat16", True): 9})
    record = json.loads(json.dumps(choice.record()))
    assert recorded(record, BOTH) == choice
    assert recorded(None, BOTH) is None
    assert recorded({**record, "precision": "float16"}, BOTH) is None
    given = dataclasses.replace(BOTH, runtime=RuntimeConfig(precision="float32", jit_compile="auto"))
    assert recorded(record, given) is None


def test_a_choice_takes_the_place_of_auto_alone() -> None:
    config = dataclasses.replace(BOTH, runtime=dataclasses.replace(BOTH.runtime, seed=7))
    settled = Choice("bfloat16", True, "").applied(config)
    assert settled.runtime == RuntimeConfig(precision="bfloat16", jit_compile=True, seed=7)
    assert unmeasured(config, "").applied(config).runtime == RuntimeConfig(seed=7)
