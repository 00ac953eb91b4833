"""What DP-SGD with given settings would promise: the counterpart of TF Privacy's compute_dp_sgd_privacy_statement.

The same figures as version 0.9.0, by the same definitions, in our words; what one run of tfbig promises is in
record.py. In the tree: above gradients/private's accounting. Imports no TensorFlow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tfbig.errors import UsageError
from tfbig.gradients.private.accounting import composed_epsilon
from tfbig.gradients.private.mechanism import Accountant, Mechanism, Sampling, dp_accounting


@dataclass(frozen=True)
class PrivacyFigures:
    """The epsilons of a privacy statement; None where one is not given.

    Args:
        once_per_epoch: Each example occurs once an epoch, in any order: no amplification.
        poisson: With Poisson sampling; None for shuffled batches, which it does not describe.
        user_once_per_epoch: As the first, for all examples of one user together; inf where no bound is found.
        user_poisson: As the second, for one user.
    """

    once_per_epoch: float
    poisson: float | None
    user_once_per_epoch: float | None = None
    user_poisson: float | None = None


def privacy_figures(
    *,
    number_of_examples: int,
    batch_size: int,
    num_epochs: float,
    noise_multiplier: float,
    delta: float,
    used_microbatching: bool = False,
    max_examples_per_user: int | None = None,
    accountant: Accountant = "rdp",
    sampling: Sampling = "poisson",
) -> PrivacyFigures:
    """The figures of TF Privacy's compute_dp_sgd_privacy_statement, for the sampler that was used.

    Args:
        number_of_examples: N.
        batch_size: B, at most N.
        num_epochs: Passes over the data, above 0; may be fractional.
        noise_multiplier: sigma, at least 0.
        delta: Above 0 and below 1.
        used_microbatching: Means of several examples were clipped, not single ones, which doubles the sensitivity;
            tfbig never does that.
        max_examples_per_user: At least 1; with it the figures for a whole user are given, by group privacy (Vadhan
            2017, lemma 2.2). RDP only, as in TF Privacy.
        accountant: `rdp`, as TF Privacy's default, or `pld`.
        sampling: With `shuffle` no figure that credits amplification is given.

    Raises:
        UsageError: A value is out of range.
    """
    if not (0 < num_epochs < math.inf):
        raise UsageError(f"num_epochs must be above 0, got {num_epochs}; typical values are 1 to 100.")
    if max_examples_per_user is not None and max_examples_per_user < 1:
        raise UsageError(f"max_examples_per_user must be at least 1, got {max_examples_per_user}.")
    run = Mechanism(noise_multiplier / (2 if used_microbatching else 1), number_of_examples, batch_size, "poisson")
    gaussian = dp_accounting.GaussianDpEvent(run.noise_multiplier)
    drawn = dp_accounting.PoissonSampledDpEvent(run.sampling_probability, gaussian)
    events = [dp_accounting.SelfComposedDpEvent(gaussian, math.ceil(num_epochs))]
    if sampling == "poisson":
        events.append(dp_accounting.SelfComposedDpEvent(drawn, math.ceil(num_epochs / run.sampling_probability)))
    examples = [composed_epsilon([event], delta=delta, accountant=accountant) for event in events]
    users: list[float] = []
    if max_examples_per_user is not None and accountant == "rdp":
        users = [_user_epsilon(event, delta, max_examples_per_user) for event in events]
    padded = [*examples, None][:2], [*users, None, None][:2]
    return PrivacyFigures(examples[0], padded[0][1], *padded[1])


def _user_epsilon(event: dp_accounting.DpEvent, user_delta: float, num_examples: int) -> float:
    """A bound for `num_examples` examples together, by group privacy.

    The example-level delta is sought that Vadhan 2017, the last line but one of lemma 2.2's proof, turns into
    `user_delta`.
    """

    def example_epsilon(log_delta: float) -> float:
        example_delta = math.exp(log_delta)
        return composed_epsilon([event], delta=example_delta, accountant="rdp") if example_delta > 0 else math.inf

    def excess(log_delta: float) -> float:
        single = example_epsilon(log_delta)
        if single == 0:
            return log_delta + math.log(num_examples) - math.log(user_delta)
        return log_delta + _log_expm1(num_examples * single) - _log_expm1(single) - math.log(user_delta)

    if num_examples == 1:
        return example_epsilon(math.log(user_delta))
    high = math.log(user_delta)
    low = high - math.log(10)
    while (gap := excess(low)) > 0:
        # What is too much by `gap` stays too much until delta has fallen by at least that.
        high, low = low - gap, low - gap - math.log(10)
        if not math.isfinite(low) or not math.isfinite(excess(low)):
            return math.inf
    from scipy import optimize

    return num_examples * example_epsilon(optimize.brentq(excess, low, high))


def _log_expm1(x: float) -> float:
    return x + math.log(-math.expm1(-x))


def privacy_statement(
    *,
    number_of_examples: int,
    batch_size: int,
    num_epochs: float,
    noise_multiplier: float,
    delta: float,
    used_microbatching: bool = False,
    max_examples_per_user: int | None = None,
    accountant: Accountant = "rdp",
    sampling: Sampling = "poisson",
) -> str:
    """What TF Privacy's compute_dp_sgd_privacy_statement says, in our words; the arguments are privacy_figures'."""
    figures = privacy_figures(
        number_of_examples=number_of_examples,
        batch_size=batch_size,
        num_epochs=num_epochs,
        noise_multiplier=noise_multiplier,
        delta=delta,
        used_microbatching=used_microbatching,
        max_examples_per_user=max_examples_per_user,
        accountant=accountant,
        sampling=sampling,
    )
    per_user = "any number of" if max_examples_per_user is None else f"at most {max_examples_per_user}"
    lines = [
        f"DP-SGD over {number_of_examples} examples, {batch_size} a step, for {num_epochs:g} epochs, with noise "
        f"multiplier {noise_multiplier:g}; clipped by {'microbatch' if used_microbatching else 'example'}; a user may "
        f"have {per_user} examples.",
        "The promise covers every checkpoint's weights, not the final model's alone.",
        f"Adding or removing one example, at delta {delta:g}, by {accountant.upper()} accounting:",
        *_figure_lines(figures.once_per_epoch, figures.poisson),
    ]
    if figures.user_once_per_epoch is not None:
        lines.append(f"Adding or removing one user, at delta {delta:g}, by {accountant.upper()} and group privacy:")
        lines += _figure_lines(figures.user_once_per_epoch, figures.user_poisson)
    elif max_examples_per_user is None:
        lines.append("Nothing is promised to a user as a whole, whose number of examples has no bound.")
    else:
        lines.append("The figures for a user as a whole are computed by rdp alone; ask for accountant rdp.")
    if sampling == "shuffle":
        lines.append("Batches were shuffled: no figure for Poisson sampling is given, because none would hold.")
    return "\n".join(lines) + "\n"


def _figure_lines(once_per_epoch: float, poisson: float | None) -> list[str]:
    lines = [f"  epsilon, each example once an epoch in any order: {epsilon_in_words(once_per_epoch)}"]
    if poisson is not None:
        lines.append(f"  epsilon, each step's batch drawn by Poisson sampling: {epsilon_in_words(poisson)}")
    return lines


def epsilon_in_words(value: float) -> str:
    """Three decimals, rounded up: an epsilon is an upper bound."""
    return f"{math.ceil(value * 1000 - 1e-9) / 1000:.3f}" if math.isfinite(value) else "inf"
