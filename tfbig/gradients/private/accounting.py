"""What a private run costs: epsilon from a mechanism and its steps, and the noise that a target epsilon needs.

The analysis is dp-accounting's; this module says which event a run is, and asks quickly. Privacy loss
distributions (PLD; Koskela et al. 2020, Doroshenko et al. 2022) are the default and the tighter, Renyi DP (RDP;
Mironov 2017, Mironov et al. 2019) stands beside them. In the tree: below gradients/private, used by its statement
and ledger, and by training; the mechanisms are in mechanism.py. Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import get_args

from tfbig.errors import UsageError
from tfbig.gradients.private.mechanism import Accountant, Mechanism, Noise, Sampling, dp_accounting

MAX_EPSILON = 1e6  # Above it inf is reported: no reader learns more from the digits, and PLD's grids overflow.
_MAX_TARGET = 1000.0
_MAX_NOISE_MULTIPLIER = 1e6
_MIN_PLD_DELTA = 1e-12  # PLD cuts tails off at 1e-15 a composition; near that its epsilon jumps to inf.
_FINEST_GRID = 1e-4  # dp-accounting's own default.
_COARSE = 4  # How much wider the grid is while searching: a quarter of the time, 0.3 % more epsilon at most.
_NO_TREES_IN_PLD = "The pld accountant does not know tree noise, which is analysed with RDP; use accountant rdp."


def epsilon(mechanism: Mechanism, num_steps: int, *, delta: float, accountant: Accountant = "pld") -> float:
    """The epsilon that a run has spent after some steps, in the mechanism's own neighbouring relation.

    Args:
        mechanism: The run.
        num_steps: Steps taken, from 0.
        delta: Above 0 and below 1; for `pld` at least 1e-12.
        accountant: One of `mechanism.accountants`.

    Returns:
        An upper bound; 0 for no steps, inf for no noise or above 1e6.

    Raises:
        UsageError: delta is out of range, or the accountant does not know the mechanism.
    """
    _check(delta, accountant)
    _check_known(mechanism, accountant)
    return _spent(mechanism, num_steps, delta, accountant, 1)


def least_delta(accountant: Accountant) -> float:
    """The smallest delta that an accountant resolves; 0 for `rdp`, which takes any above it."""
    return _MIN_PLD_DELTA if accountant == "pld" else 0.0


def pld_grid(mechanism: Mechanism, num_steps: int, *, delta: float) -> float:
    """The grid's spacing (value_discretization_interval) that `epsilon` uses for PLD; see `grid_interval`."""
    event = mechanism.event(num_steps)
    rough = _rdp_epsilon(event, delta)
    return grid_interval(rough, sum(count for _, count in _singles(event, 1)) or 1)


def accountant_for(events: Sequence[dp_accounting.DpEvent]) -> Accountant:
    """The tightest accountant that knows all of the events: `pld`, or `rdp` where there is tree noise."""
    return "pld" if all(dp_accounting.pld.PLDAccountant(_relation()).supports(event) for event in events) else "rdp"


def composed_epsilon(events: Sequence[dp_accounting.DpEvent], *, delta: float, accountant: Accountant) -> float:
    """The epsilon of several runs on the same examples together.

    Guarantees: the bound is for the joint release of all runs. They are composed in the zero-out relation, whose
    neighbour leaves one example out of every step (weight 0), and which every mechanism here has: with Poisson
    sampling an example left out and an absent one give the same distribution, also where a moving norm counts
    examples, so its add-or-remove analysis holds unchanged, and mixed runs compose without a loss. With shuffled
    batches and a fixed norm, leaving out is a gradient of zero; a moving norm is refused there. Each run's
    settings are taken as chosen without looking at the private data or at the outcome of earlier runs.

    Args:
        events: As `Mechanism.event` gives them, in any order.
        delta: Above 0 and below 1; for `pld` at least 1e-12.
        accountant: `pld`, or `rdp` where an event has tree noise; see `accountant_for`.

    Raises:
        UsageError: delta is out of range, or the accountant does not know an event.
    """
    _check(delta, accountant)
    if accountant == "pld" and accountant_for(events) != "pld":
        raise UsageError(_NO_TREES_IN_PLD)
    counts: dict[dp_accounting.DpEvent, int] = {}
    for event in events:
        for single, count in _singles(event, 1):
            counts[single] = counts.get(single, 0) + count
    # Sorted, so that the same runs in another order give the same last digit.
    return _epsilon(tuple(sorted(counts.items(), key=repr)), delta, accountant, 1)


def calibrate(
    *,
    target_epsilon: float,
    delta: float,
    num_steps: int,
    num_examples: int,
    batch_size: int,
    sampling: Sampling,
    noise: Noise,
    accountant: Accountant,
) -> float:
    """The least noise multiplier that keeps a run of `num_steps` within the target, rounded up to five digits.

    RDP finds the neighbourhood, coarse privacy loss distributions the place, and the accountant itself has the
    last word: what is returned has been evaluated with it.

    Args:
        target_epsilon: Above 0 and at most 1000.
        delta: Above 0 and below 1; for `pld` at least 1e-12.
        num_steps: Steps of the whole run, at least 1.
        num_examples: See Mechanism, as the next three.
        batch_size: B.
        sampling: How batches are drawn.
        noise: The kind of noise.
        accountant: The one whose epsilon must meet the target.

    Guarantees: `epsilon` of the result is at most `target_epsilon`, and above 0.99 of it where that can be.

    Raises:
        UsageError: A value is out of range, or no noise multiplier up to 1e6 reaches the target.
    """
    _check(delta, accountant)
    if not 0 < target_epsilon <= _MAX_TARGET:
        raise UsageError(
            f"target_epsilon must be above 0 and at most {_MAX_TARGET:g}, got {target_epsilon}; typical values are "
            "0.5 to 10. For noise without a promise set a noise multiplier instead."
        )
    if num_steps < 1:
        raise UsageError(f"Noise is calibrated for at least one step, got num_steps {num_steps}; train longer.")
    run = Mechanism(1.0, num_examples, batch_size, sampling, noise)
    _check_known(run, accountant)

    def spent(by: Accountant, coarseness: int) -> Callable[[float], float]:
        return lambda sigma: _spent(replace(run, noise_multiplier=sigma), num_steps, delta, by, coarseness)

    # RDP's orders end at 1024, which leaves it a floor of about this size; PLD has none there.
    floor = 2 * math.log(1 / delta) / 1023
    found: float | None
    if accountant == "rdp":
        found = least_sigma(spent("rdp", 1), target_epsilon, guess=1.0, least_share=0.998)
    else:
        found = least_sigma(spent("rdp", 1), max(target_epsilon, floor), guess=1.0, least_share=0.9) or 1.0
        found = least_sigma(spent("pld", _COARSE), target_epsilon, guess=found, least_share=0.996) or found
        found = least_sigma(spent("pld", 1), target_epsilon, guess=found, least_share=0.991)
    if found is None:
        raise UsageError(
            f"No noise multiplier up to {_MAX_NOISE_MULTIPLIER:g} keeps {num_steps} steps within epsilon "
            f"{target_epsilon:g} at delta {delta:g} by {accountant}; raise the target, train fewer steps"
            + (", or use the pld accountant." if accountant == "rdp" and noise == "gaussian" else ".")
        )
    return found


def affordable_steps(
    mechanism: Mechanism, *, max_epsilon: float, delta: float, num_steps: int, accountant: Accountant
) -> int:
    """The most steps, up to `num_steps`, whose epsilon is at most `max_epsilon`.

    Args:
        mechanism: The run.
        max_epsilon: The budget, above 0; inf is no budget.
        delta: Above 0 and below 1; for `pld` at least 1e-12.
        num_steps: Steps that are planned.
        accountant: One of `mechanism.accountants`.

    Returns:
        0 where not even one step fits.

    Raises:
        UsageError: A value is out of range, or the accountant does not know the mechanism.
    """
    if not max_epsilon > 0:
        raise UsageError(f"max_epsilon must be above 0, got {max_epsilon}; typical values are 0.5 to 10.")
    _check(delta, accountant)
    _check_known(mechanism, accountant)

    def within(coarseness: int) -> Callable[[int], bool]:
        return lambda steps: _spent(mechanism, steps, delta, accountant, coarseness) <= max_epsilon

    fits = within(1)
    if fits(num_steps):
        return num_steps
    if accountant == "rdp":
        return _most(fits, 0, num_steps)
    low = _most(within(_COARSE), 0, num_steps)
    if not fits(low):
        return _most(fits, 0, low)
    stride = max(1, low // 500)
    while low + stride < num_steps and fits(low + stride):
        low, stride = low + stride, 2 * stride
    return _most(fits, low, min(low + stride, num_steps))


def _most(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number that fits, where `low` does and `high` does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _check(delta: float, accountant: Accountant) -> None:
    if accountant not in get_args(Accountant):
        raise UsageError(f"accountant must be one of {', '.join(get_args(Accountant))}, got {accountant!r}.")
    if not 0 < delta < 1:
        raise UsageError(
            f"delta must be above 0 and below 1, got {delta}; typical values are a tenth of one over the number of "
            "examples, or less."
        )
    if delta < least_delta(accountant):
        raise UsageError(
            f"The pld accountant resolves delta down to {_MIN_PLD_DELTA:g}, got {delta:g}; use accountant rdp, or a "
            "larger delta."
        )


def _check_known(mechanism: Mechanism, accountant: Accountant) -> None:
    if accountant not in mechanism.accountants:
        raise UsageError(_NO_TREES_IN_PLD)


def _spent(mechanism: Mechanism, num_steps: int, delta: float, accountant: Accountant, coarseness: int) -> float:
    return _epsilon(tuple(_singles(mechanism.event(num_steps), 1)), delta, accountant, coarseness)


def _singles(event: dp_accounting.DpEvent, count: int) -> Iterator[tuple[dp_accounting.DpEvent, int]]:
    """The event taken apart into single mechanisms and how often each is applied."""
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        yield from _singles(event.event, event.count * count)
    elif isinstance(event, dp_accounting.ComposedDpEvent):
        for part in event.events:
            yield from _singles(part, count)
    elif not isinstance(event, dp_accounting.NoOpDpEvent):
        yield event, count


@functools.lru_cache(maxsize=4096)
def _epsilon(
    counts: tuple[tuple[dp_accounting.DpEvent, int], ...], delta: float, accountant: Accountant, coarseness: int
) -> float:
    if not counts:
        return 0.0
    parts = [dp_accounting.SelfComposedDpEvent(single, count) for single, count in counts]
    event = parts[0] if len(parts) == 1 else dp_accounting.ComposedDpEvent(tuple(parts))
    rough = _rdp_epsilon(event, delta)
    if not rough <= MAX_EPSILON:
        return math.inf
    if accountant == "rdp":
        return rough
    grid = grid_interval(rough, sum(count for _, count in counts)) * coarseness
    return float(dp_accounting.pld.PLDAccountant(_relation(), grid).compose(event).get_epsilon(delta))


def grid_interval(rough_epsilon: float, num_compositions: int) -> float:
    """The spacing of the grid on which PLD keeps the privacy loss.

    1e-4, dp-accounting's default, up to an epsilon of about 2; above, as wide as leaves epsilon's first three digits
    alone, since time and memory grow with epsilon over the spacing. Rounding to the grid is pessimistic, so any
    spacing gives an upper bound. Measured: the excess is at most about 0.35 * num_compositions * spacing ** 2.
    """
    if not rough_epsilon <= MAX_EPSILON:
        return _FINEST_GRID
    widest = min(1e-4 * rough_epsilon, math.sqrt(5e-4 * rough_epsilon / num_compositions))
    if widest <= _FINEST_GRID:
        return _FINEST_GRID
    power = 10.0 ** math.floor(math.log10(widest))
    return next(digit * power for digit in (5, 2, 1) if digit * power <= widest or digit == 1)


def _relation() -> dp_accounting.NeighboringRelation:
    return dp_accounting.NeighboringRelation.REPLACE_SPECIAL


def _rdp_epsilon(event: dp_accounting.DpEvent, delta: float) -> float:
    with _without_order_warnings():
        accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=_relation())
        return float(accountant.compose(event).get_epsilon(delta))


@contextlib.contextmanager
def _without_order_warnings() -> Iterator[None]:
    """RDP leaves an order out where its series does not converge: still a bound, and nothing a user can act on."""

    def wanted(line: logging.LogRecord) -> bool:
        return "Excluding this order" not in line.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def least_sigma(spent: Callable[[float], float], target: float, *, guess: float, least_share: float) -> float | None:
    """A sigma with five digits whose epsilon is at most `target` and, within 60 tries, above `least_share` of it.

    Args:
        spent: Sigma -> epsilon, falling.
        target: Above 0.
        guess: Where to begin, above 0.
        least_share: Of the target, below 1.

    Returns:
        None where no sigma up to 1e6 is enough.
    """
    low = high = _rounded_up(guess)
    at_low = at_high = spent(high)
    if least_share * target < at_high <= target:
        return high
    factor = 1.1
    while at_high > target:
        if high >= _MAX_NOISE_MULTIPLIER:
            return None
        low, at_low, high = high, at_high, _rounded_up(min(high * factor, _MAX_NOISE_MULTIPLIER))
        at_high, factor = spent(high), factor**1.5
    while at_low <= target:
        high, at_high, low = low, at_low, _rounded_up(low / factor)
        at_low, factor = spent(low), factor**1.5
    for attempt in range(60):
        if at_high > least_share * target or high - low < 2e-5 * high:
            break
        middle = _between((low, at_low), (high, at_high), target * (1 + least_share) / 2, halve=attempt % 3 == 2)
        at_middle = spent(middle)
        if at_middle <= target:
            high, at_high = middle, at_middle
        else:
            low, at_low = middle, at_middle
    return high


def _between(low: tuple[float, float], high: tuple[float, float], aim: float, *, halve: bool) -> float:
    """Where a power law through two points (sigma, epsilon) meets `aim`; their middle where there is no such law."""
    share = 0.5
    if not halve and high[1] > 0 and math.isfinite(low[1]):
        share = math.log(low[1] / aim) / math.log(low[1] / high[1])
    sigma = low[0] * (high[0] / low[0]) ** min(max(share, 0.02), 0.98)
    return min(_rounded_up(sigma), high[0])


def _rounded_up(sigma: float) -> float:
    spacing = 10.0 ** (math.floor(math.log10(sigma)) - 4)
    return float(f"{math.ceil(sigma / spacing - 1e-6) * spacing:.5g}")
