"""Canaries: made-up examples that go through a gradient rule, and scores that say which of them took part.

The rule that is audited is called as in training, step after step, on the examples that the run's own plan draws;
what it gives out is all that the scores see. Two kinds, together in one run (Steinke et al. 2023, arXiv 2305.08846,
has both):

- `input` canaries are inputs with labels whose gradients the network and the engine compute and clip, so that an
  error there shows. They are random and far out of the usual range, so that their gradients exceed the bound.
- `direction` canaries add a vector of exactly the clipping norm to the sum, each along its own coordinates, so that
  none hides another. They are the strongest test of noise, sampling and accounting, and know nothing of clipping.

The weights stay where they are: what a run promises holds for every sequence of weights. The rest of the data is
empty, which the promise covers too, and so no private example is read. Letters in shapes: M canaries of one kind,
D coordinates of the gradient. Above canary_kinds.py, beside audit.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfbig.data.sampling import Plan
from tfbig.data.splits import Batch, Features
from tfbig.gradients.private.canary_kinds import DirectionCanaries, InputCanaries, flat
from tfbig.gradients.private.clipping import Losses
from tfbig.gradients.private.rule import with_penalties
from tfbig.gradients.rule import GradientRule

# Each kind leaves most of the gradient free of it, or the two could not be told apart.
_COORDINATES_AN_INPUT = 4
_COORDINATES_A_DIRECTION = 2
# Each costs two backward passes of its own.
_MAX_INPUTS = 1000


@dataclass(frozen=True)
class CanaryScores:
    """What an auditor has after a run.

    Args:
        included: Kind of canaries -> (M,) booleans: whether each took part.
        scores: Kind -> number of steps -> (M,), larger where a canary seems to have taken part.
        clipped_share: Share of the input canaries whose gradient is at least as long as the bound.
    """

    included: Mapping[str, np.ndarray]
    scores: Mapping[str, Mapping[int, np.ndarray]]
    clipped_share: float


def run_canaries(
    rule: GradientRule,
    losses: Losses,
    network: keras.Model,
    *,
    labels: np.ndarray,
    num_canaries: int,
    plan: Plan,
    checkpoints: Sequence[int],
    clip_norm: Callable[[], float],
    expected_batch: int,
    physical_batch_size: int,
    set_step: Callable[[int], object],
    is_plan_secret: bool,
    seed: int,
) -> CanaryScores:
    """Runs a rule on canaries once, up to the last checkpoint.

    Guarantees: a canary that takes no part changes nothing of what the rule or the scores see; whether one takes
    part is drawn from `seed`, independently of all that the rule draws; the scores use the rule's gradients, the
    weights and, where it is no secret, the plan.

    Args:
        rule: What is audited, on one device.
        losses: An Objective's, as the rule is called with in training.
        network: Trained in its trainable variables; is not changed.
        labels: (N, ...) of the training split, of which only shape and type are used.
        num_canaries: Of both kinds together, at least 2: half of each, as far as the gradient has room for them.
        plan: Over at least as many examples; the first ones are the canaries.
        checkpoints: Numbers of steps after which to score.
        clip_norm: The bound of the coming step.
        expected_batch: What the rule divides by.
        physical_batch_size: The rule takes a multiple of it.
        set_step: Tells the rule which step comes, from 0.
        is_plan_secret: Whether the promise rests on nobody knowing who was drawn, as with Poisson sampling; if not,
            a canary is looked for only in the steps that draw it.
        seed: Draws the canaries and who takes part.

    Raises:
        ValueError: Too few canaries, or a plan over fewer examples.
    """
    num_coordinates = sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)
    num_inputs = min(num_canaries // 2, _MAX_INPUTS, max(1, num_coordinates // _COORDINATES_AN_INPUT))
    num_directions = min(num_canaries - num_canaries // 2, max(1, num_coordinates // _COORDINATES_A_DIRECTION))
    num_used = num_inputs + num_directions
    if num_canaries < 2 or plan.num_examples < num_used:
        raise ValueError(
            f"Expected at least 2 canaries and a plan over as many examples, got {num_canaries} canaries and "
            f"{plan.num_examples} examples."
        )
    rng = np.random.default_rng(seed)
    included = rng.random(num_used) < 0.5  # Input canaries first.
    inputs = InputCanaries(losses, network, labels, num_canaries=num_inputs, clip_norm=clip_norm(), rng=rng)
    directions = DirectionCanaries(num_directions, num_coordinates, rng)
    inputs.separated_from(directions)
    observe = _observer(rule, losses, network, inputs, directions, expected_batch=expected_batch)

    total, scores = np.zeros(num_used), {}
    for step in range(max(checkpoints)):
        indices, weight = plan.indices(*divmod(step, plan.steps_per_epoch))
        planned = indices[(weight > 0) & (indices < num_used)]
        drawn = np.zeros(num_used, np.float32)
        np.add.at(drawn, planned[included[planned]], 1.0)
        set_step(step)
        batch = inputs.batch(drawn[:num_inputs], physical_batch_size)
        seen = observe(*batch, drawn[num_inputs:], np.float32(clip_norm())).numpy()
        if is_plan_secret:
            total += seen
        else:
            total[planned] += seen[planned]
        if step + 1 in checkpoints:
            scores[step + 1] = total.copy()
    parts = {"input": slice(0, num_inputs), "direction": slice(num_inputs, num_used)}
    return CanaryScores(
        included={kind: included[part] for kind, part in parts.items()},
        scores={kind: {steps: found[part] for steps, found in scores.items()} for kind, part in parts.items()},
        clipped_share=inputs.clipped_share,
    )


def _observer(
    rule: GradientRule,
    losses: Losses,
    network: keras.Model,
    inputs: InputCanaries,
    directions: DirectionCanaries,
    *,
    expected_batch: int,
) -> Callable[..., tf.Tensor]:
    """(x, y, weight, how often each direction is drawn, the bound) -> (M + M,) scores of one step."""
    # What the rule adds without any example, so that it hides nobody.
    zeros = [tf.zeros(variable.shape) for variable in network.trainable_variables]
    offset = flat(with_penalties(zeros, network), network)
    drawn_spec, scalar = tf.TensorSpec([None], tf.float32), tf.TensorSpec([], tf.float32)

    @tf.function(input_signature=[*inputs.spec, drawn_spec, scalar])
    def observe(x: Features, y: tf.Tensor, weight: tf.Tensor, drawn: tf.Tensor, bound: tf.Tensor) -> tf.Tensor:
        gradients = rule(losses, network, Batch(x, y, weight)).gradients
        noisy_sum = (flat(gradients, network) - offset) * (expected_batch / bound) + directions.sum(drawn)  # (D,)
        return tf.concat(inputs.found(noisy_sum, directions), 0)

    return observe
