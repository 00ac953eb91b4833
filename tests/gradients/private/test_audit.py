"""The bound is the paper's and holds; the audit sees the bugs that would make a promise false, and only those."""

import math
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfbig.data.index_plan import IndexPlan
from tfbig.data.sampling import PoissonPlan
from tfbig.data.splits import Batch
from tfbig.gradients.private.accounting import epsilon
from tfbig.gradients.private.audit import (
    Check,
    check_claims,
    count_correct,
    epsilon_lower_bound,
    p_value,
    telling_steps,
)
from tfbig.gradients.private.canaries import CanaryScores, run_canaries
from tfbig.gradients.private.clipping import Clipped, Engine, Losses
from tfbig.gradients.private.mechanism import Mechanism
from tfbig.gradients.private.rule import PrivateRule, private
from tfbig.objectives.supervised import classification


def bound(m: int, r: int, v: int, delta: float, confidence: float = 0.95) -> float:
    return epsilon_lower_bound(num_canaries=m, num_guesses=r, num_correct=v, delta=delta, confidence=confidence)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "published"), [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)]
)
def test_the_bounds_of_the_paper(m: int, r: int, v: int, delta: float, published: float) -> None:
    """Its appendix D, and figure 11 (which cuts the last digit off)."""
    assert bound(m, r, v, delta) == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize(("r", "v"), [(20, 20), (100, 75), (500, 480), (40, 21)])
def test_without_delta_it_is_the_inversion_of_clopper_and_pearson(r: int, v: int) -> None:
    accuracy = stats.beta.ppf(0.05, v, r - v + 1)
    expected = max(0.0, math.log(accuracy / (1 - accuracy)))
    assert bound(1000, r, v, 0.0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("true_epsilon", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("r", [30, 200])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_randomised_response_is_rarely_bounded_above_its_epsilon(true_epsilon: float, r: int, delta: float) -> None:
    """Exactly, over all numbers of right guesses. Delta is spent once on each coin, and once on all together."""
    accuracy = math.exp(true_epsilon) / (1 + math.exp(true_epsilon))
    is_above = np.array([bound(r, r, v, delta) > true_epsilon for v in range(r + 1)])
    by_each = stats.binom.pmf(np.arange(r + 1), r, delta + (1 - delta) * accuracy)
    together = (1 - delta) * stats.binom.pmf(np.arange(r + 1), r, accuracy)
    together[-1] += delta
    for probabilities in (by_each, together):
        assert probabilities[is_above].sum() <= 0.05
    if delta == 0:
        # Not by being blind: the bound is as tight as steps of one guess allow.
        one_more = np.append(is_above[1:], True)
        assert by_each[one_more].sum() > 0.05


def test_guesses_with_abstention_keep_the_confidence() -> None:
    """The Laplace mechanism has a known epsilon; only the clearest scores are guessed."""
    rng, true_epsilon, num_above = np.random.default_rng(0), 1.0, 0
    for _ in range(400):
        included = rng.random(200) < 0.5
        scores = included + rng.laplace(scale=1 / true_epsilon, size=200)
        v = count_correct(scores, included, num_in=30, num_out=30)
        num_above += bound(200, 60, v, 0.0) > true_epsilon
    assert num_above / 400 <= 0.05


def test_more_right_guesses_prove_more_and_delta_less() -> None:
    bounds = [bound(300, 100, v, 1e-5) for v in range(0, 101, 5)]
    assert bounds == sorted(bounds) and bounds[0] == 0 and bounds[-1] > 3
    assert bound(300, 100, 95, 1e-3) < bound(300, 100, 95, 1e-5) < bound(300, 100, 95, 0.0)
    with pytest.raises(ValueError, match="right guesses"):
        p_value(num_canaries=10, num_guesses=5, num_correct=6, epsilon=1.0, delta=0.0)
    with pytest.raises(ValueError, match="at most 3 guesses"):
        count_correct(np.zeros(3), np.zeros(3, bool), num_in=2, num_out=2)


def test_all_checks_together_keep_the_confidence() -> None:
    """Four checks of a mechanism at its very limit; without sharing the 5 % a tenth of the runs would be accused."""
    rng, true_epsilon, num_accused = np.random.default_rng(0), 1.0, 0
    accuracy = math.exp(true_epsilon) / (1 + math.exp(true_epsilon))
    for _ in range(250):
        included = {kind: rng.random(100) < 0.5 for kind in ("input", "direction")}
        # Randomised response, in an order that chance decides.
        said = {kind: coins == (rng.random(100) < accuracy) for kind, coins in included.items()}
        scores = {kind: {1: coins + 0.1 * rng.random(100)} for kind, coins in said.items()}
        checks = check_claims(scores, included, claims={1: true_epsilon}, delta=0.0)
        num_accused += any(check.is_violated for check in checks)
    assert num_accused / 250 <= 0.05


class Planted:
    """An engine that does not clip each example; `scale` says what it does instead to the sum."""

    name = "planted"

    def __init__(self, engine: Engine, scale: Callable[[list[tf.Tensor], tf.Tensor, tf.Tensor], tf.Tensor]) -> None:
        self._engine, self._scale = engine, scale

    def __call__(
        self, losses: Losses, network: keras.Model, batch: Batch, clip_norm: tf.Tensor, *, training: bool
    ) -> Clipped:
        whole = self._engine(losses, network, batch, tf.constant(1e9), training=training)
        factor = self._scale(whole.sums, tf.reduce_sum(batch.weight), clip_norm)
        return whole._replace(sums=[factor * total for total in whole.sums])


def clip_of_the_mean(sums: list[tf.Tensor], count: tf.Tensor, clip_norm: tf.Tensor) -> tf.Tensor:
    return clip_norm / tf.maximum(tf.linalg.global_norm(sums) / tf.maximum(count, 1.0), clip_norm)


NUM_CANARIES, NUM_STEPS, CLIP, DELTA = 1000, 16, 0.5, 1e-5
MECHANISM = Mechanism(9.0, NUM_CANARIES, NUM_CANARIES, "poisson")


def audited(
    plant: str = "", *, noise_multiplier: float = MECHANISM.noise_multiplier, seed: int = 0, shuffled: bool = False
) -> tuple[CanaryScores, list[Check]]:
    """A linear classifier's private rule, whole or with a bug, and the checks of its claim."""
    keras.utils.set_random_seed(seed)
    network = keras.Sequential([keras.layers.Input((500,)), keras.layers.Dense(6)])
    objective, labels, step = classification(6), np.zeros(1, np.int64), tf.Variable(0, dtype=tf.int64)
    noise = {"no noise": 0.0, "a quarter of the noise": noise_multiplier / 4}.get(plant, noise_multiplier)
    rule: PrivateRule = private(
        network, objective.losses, labels=labels, clip_norm=CLIP, noise_multiplier=noise, expected_batch=NUM_CANARIES,
        physical_batch_size=50, secret=seed + 1, step=step.value,
    )  # fmt: skip
    if plant == "the mean is clipped":
        rule.engine = Planted(rule.engine, clip_of_the_mean)
    if plant == "nothing is clipped":
        rule.engine = Planted(rule.engine, lambda sums, count, clip_norm: tf.constant(1.0))
    size = NUM_CANARIES // 4 if shuffled else NUM_CANARIES
    scores = run_canaries(
        rule, objective.losses, network, labels=labels, num_canaries=NUM_CANARIES,
        plan=IndexPlan(NUM_CANARIES, size, seed) if shuffled else PoissonPlan(NUM_CANARIES, size, 50, seed),
        checkpoints=[NUM_STEPS], clip_norm=lambda: CLIP, expected_batch=NUM_CANARIES, physical_batch_size=50,
        set_step=step.assign, is_plan_secret=not shuffled, seed=seed + 2,
    )  # fmt: skip
    claims = {NUM_STEPS: epsilon(MECHANISM, NUM_STEPS, delta=DELTA)}
    return scores, check_claims(scores.scores, scores.included, claims=claims, delta=DELTA)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_right_rule_is_consistent_and_not_because_nothing_is_seen(seed: int) -> None:
    scores, checks = audited(seed=seed)
    assert scores.clipped_share == 1.0
    assert not any(check.is_violated for check in checks)
    assert max(check.epsilon_lower_bound for check in checks) > 0.05
    assert max(check.largest_provable for check in checks) > 1.5 * checks[0].claimed_epsilon


@pytest.mark.parametrize(
    ("bug", "kind"),
    [
        ("no noise", "direction"),
        ("no noise", "input"),
        ("a quarter of the noise", "direction"),
        ("the mean is clipped", "input"),
        ("nothing is clipped", "input"),
    ],
)
def test_a_planted_bug_contradicts_the_claim(bug: str, kind: str) -> None:
    _, checks = audited(bug)
    assert any(check.is_violated for check in checks if check.canaries == kind), checks


@pytest.mark.parametrize("shuffled", [False, True])
def test_scores_count_how_often_a_canary_took_part(shuffled: bool) -> None:
    """Without noise the scores are the counts: as many as planned for those in, none for those out."""
    scores, _ = audited(noise_multiplier=0.0, shuffled=shuffled)
    expected = NUM_STEPS // 4 if shuffled else NUM_STEPS
    for kind, tolerance in (("direction", 0.1), ("input", 0.5)):
        included, found = scores.included[kind], scores.scores[kind][NUM_STEPS]
        assert 0.4 < included.mean() < 0.6
        np.testing.assert_allclose(found[~included], 0, atol=tolerance * expected)
        np.testing.assert_allclose(found[included], expected, atol=tolerance * expected)


def test_an_audit_is_a_function_of_its_seeds() -> None:
    one, again, other = (audited(seed=seed)[0].scores["direction"][NUM_STEPS] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_telling_step_is_where_missing_noise_would_show() -> None:
    """At epsilon 8 three hundred canaries can contradict nothing; after few steps the same run claims less."""
    mechanism = Mechanism(1.621, 3882, 512, "poisson")
    assert epsilon(mechanism, 320, delta=DELTA) > bound(150, 60, 60, DELTA)
    steps = telling_steps(mechanism, 320, num_canaries=150, delta=DELTA)
    assert 1 <= steps < 320
    assert epsilon(mechanism, steps, delta=DELTA) < bound(150, 60, 60, DELTA, 0.99)
    # Where even the first step claims more than so many canaries can prove, there is nothing to look at earlier.
    assert telling_steps(Mechanism(0.61, 1295, 64, "poisson"), 42, num_canaries=150, delta=DELTA) == 42
