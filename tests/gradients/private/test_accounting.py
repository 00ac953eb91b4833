"""Accounting: dp-accounting's own figures, no amplification without Poisson sampling, noise that meets its target."""

import logging
import math
import subprocess
import sys
from dataclasses import replace

import dp_accounting
import pytest
from dp_accounting import pld, rdp

from tfbig.errors import UsageError
from tfbig.gradients.private.accounting import (
    accountant_for,
    affordable_steps,
    calibrate,
    composed_epsilon,
    epsilon,
    pld_grid,
)
from tfbig.gradients.private.mechanism import Mechanism

DELTA = 1e-5
POISSON = Mechanism(1.1, 50_000, 500, "poisson")
SHUFFLE = replace(POISSON, sampling="shuffle")
TREE = Mechanism(10.0, 50_000, 500, "shuffle", "tree")
_SPECIAL = dp_accounting.NeighboringRelation.REPLACE_SPECIAL


def _direct(event: dp_accounting.DpEvent, accountant: str) -> float:
    """Dp-accounting as its documentation calls it: add or remove one, default grid and orders."""
    known = {"pld": pld.PLDAccountant, "rdp": rdp.RdpAccountant}
    return known[accountant]().compose(event).get_epsilon(DELTA)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize(
    ("sigma", "batch_size", "num_steps"),
    [(1.1, 500, 2000), (0.6, 500, 1000), (0.45, 2_500, 100), (4.0, 5_000, 5_000), (0.8, 50, 50_000), (2.0, 50_000, 10)],
)
def test_poisson_agrees_with_dp_accounting(sigma: float, batch_size: int, num_steps: int, accountant: str) -> None:
    step = dp_accounting.PoissonSampledDpEvent(batch_size / 50_000, dp_accounting.GaussianDpEvent(sigma))
    direct = _direct(dp_accounting.SelfComposedDpEvent(step, num_steps), accountant)
    run = Mechanism(sigma, 50_000, batch_size, "poisson")
    assert run.adjacency == "add_or_remove_one"
    assert epsilon(run, num_steps, delta=DELTA, accountant=accountant) == pytest.approx(direct, rel=5e-4)


@pytest.mark.parametrize(("run", "accountant", "known"), [
    (POISSON, "pld", 2.160), (POISSON, "rdp", 2.381), (SHUFFLE, "pld", 24.92),
])  # fmt: skip
def test_the_worked_example(run: Mechanism, accountant: str, known: float) -> None:
    assert epsilon(run, 2000, delta=DELTA, accountant=accountant) == pytest.approx(known, rel=5e-4)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_shuffled_batches_get_no_amplification(accountant: str) -> None:
    def spent(run: Mechanism, num_steps: int) -> float:
        return epsilon(run, num_steps, delta=DELTA, accountant=accountant)

    gaussian = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(1.1), 20)
    assert spent(SHUFFLE, 2000) == pytest.approx(_direct(gaussian, accountant), rel=5e-4)
    assert SHUFFLE.adjacency == "replace_special"
    # An epoch costs the same however it is cut into batches, and all of it from its first step on.
    assert spent(replace(SHUFFLE, batch_size=50), 20_000) == spent(SHUFFLE, 2000)
    assert spent(SHUFFLE, 1901) == spent(SHUFFLE, 2000) < spent(SHUFFLE, 2001)
    # A last batch that is not full is a step of its epoch like the others.
    ragged = Mechanism(1.1, 1050, 100, "shuffle")
    assert ragged.steps_per_epoch == 11
    assert spent(ragged, 11) == spent(ragged, 1) < spent(ragged, 12)


def test_a_tree_is_a_gaussian_that_each_example_meets_once_a_level() -> None:
    def gaussians(*levels: int) -> float:
        events = [dp_accounting.GaussianDpEvent(10.0 / math.sqrt(level)) for level in levels]
        return _direct(dp_accounting.ComposedDpEvent(tuple(events)), "rdp")

    def spent(num_steps: int) -> float:
        return epsilon(TREE, num_steps, delta=DELTA, accountant="rdp")

    assert spent(100) == pytest.approx(gaussians(7))  # 64 <= 100 < 128: seven levels
    assert spent(300) == pytest.approx(gaussians(7, 7, 7))
    assert spent(303) == pytest.approx(gaussians(7, 7, 7, 2))  # the fourth epoch's three steps: two levels
    assert spent(3) == pytest.approx(gaussians(2))
    assert (TREE.adjacency, TREE.accountants) == ("replace_special", ("rdp",))


@pytest.mark.parametrize("run", [POISSON, SHUFFLE, TREE, replace(POISSON, batch_size=80_000)])
def test_epsilon_grows_with_steps_and_falls_with_noise(run: Mechanism) -> None:
    accountant = run.accountants[0]
    assert epsilon(run, 0, delta=DELTA, accountant=accountant) == 0.0
    values = [epsilon(run, steps, delta=DELTA, accountant=accountant) for steps in (1, 150, 333, 2000)]
    assert values == sorted(values) and 0 < values[0] < values[-1] < math.inf
    noisier = replace(run, noise_multiplier=2 * run.noise_multiplier)
    assert epsilon(noisier, 333, delta=DELTA, accountant=accountant) < values[2]
    assert epsilon(run, 333, delta=1e-7, accountant=accountant) > values[2]
    for name in run.accountants:
        assert epsilon(replace(run, noise_multiplier=0.0), 1, delta=DELTA, accountant=name) == math.inf
        assert epsilon(replace(run, noise_multiplier=1e-9), 1, delta=DELTA, accountant=name) == math.inf


def test_drawing_everything_is_a_plain_gaussian() -> None:
    everything = Mechanism(2.0, 100, 400, "poisson")
    assert everything.sampling_probability == 1.0
    gaussian = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(2.0), 10)
    assert epsilon(everything, 10, delta=DELTA) == pytest.approx(_direct(gaussian, "pld"), rel=5e-4)


def test_little_noise_is_accounted_in_little_time() -> None:
    # dp-accounting's default grid takes half a minute for this, and agrees.
    loud = Mechanism(0.1, 100, 10, "poisson")
    spent = epsilon(loud, 100, delta=DELTA)
    assert spent == pytest.approx(1200.6, rel=5e-4)
    assert pld_grid(loud, 100, delta=DELTA) > 1e-2


def test_composition_of_runs() -> None:
    def together(*events: dp_accounting.DpEvent) -> float:
        return composed_epsilon(events, delta=DELTA, accountant=accountant_for(events))

    halves = [POISSON.event(1000), POISSON.event(1000)]
    assert together(*halves) == pytest.approx(epsilon(POISSON, 2000, delta=DELTA))
    mixed = [POISSON.event(1000), SHUFFLE.event(100), replace(POISSON, noise_multiplier=2.0).event(300)]
    assert together(*mixed) == together(*reversed(mixed))
    assert max(map(together, mixed)) < together(*mixed) < sum(map(together, mixed))
    assert accountant_for(mixed) == "pld"
    with_tree = [*mixed, TREE.event(250)]
    assert accountant_for(with_tree) == "rdp"
    by_hand = rdp.RdpAccountant(neighboring_relation=_SPECIAL)
    for event in with_tree:
        by_hand.compose(event)
    assert together(*with_tree) == pytest.approx(by_hand.get_epsilon(DELTA))
    assert together() == 0.0


@pytest.mark.parametrize(
    ("sampling", "noise", "accountant", "target"),
    [
        ("poisson", "gaussian", "pld", 0.01),
        ("poisson", "gaussian", "pld", 1.0),
        ("poisson", "gaussian", "pld", 8.0),
        ("poisson", "gaussian", "pld", 150.0),
        ("poisson", "gaussian", "rdp", 3.0),
        ("shuffle", "gaussian", "pld", 3.0),
        ("shuffle", "tree", "rdp", 3.0),
    ],
)
def test_calibrated_noise_meets_its_target_from_below(
    sampling: str, noise: str, accountant: str, target: float
) -> None:
    data = {"num_examples": 50_000, "batch_size": 500, "sampling": sampling, "noise": noise}
    sigma = calibrate(target_epsilon=target, delta=DELTA, num_steps=1000, accountant=accountant, **data)
    spent = epsilon(Mechanism(sigma, **data), 1000, delta=DELTA, accountant=accountant)
    assert 0.99 * target < spent <= target
    assert sigma == float(f"{sigma:.5g}")


@pytest.mark.parametrize("run", [POISSON, SHUFFLE, TREE, Mechanism(0.8, 1000, 300, "poisson")])
def test_the_budget_allows_as_many_steps_as_fit_and_not_one_more(run: Mechanism) -> None:
    accountant = run.accountants[0]

    def spent(num_steps: int) -> float:
        return epsilon(run, num_steps, delta=DELTA, accountant=accountant)

    budget = (spent(500) + spent(150)) / 2
    asked = {"delta": DELTA, "num_steps": 500, "accountant": accountant}
    steps = affordable_steps(run, max_epsilon=budget, **asked)
    assert 150 <= steps < 500
    assert spent(steps) <= budget < spent(steps + 1)
    assert affordable_steps(run, max_epsilon=spent(500), **asked) == 500
    assert affordable_steps(run, max_epsilon=spent(1) / 2, **asked) == 0
    assert affordable_steps(run, max_epsilon=math.inf, **asked) == 500


def test_the_budget_is_not_cut_short_where_the_coarse_grid_errs() -> None:
    run = Mechanism(0.9, 1_000_000, 100, "poisson")
    budget = epsilon(run, 40_000, delta=1e-7)
    steps = affordable_steps(run, max_epsilon=budget, delta=1e-7, num_steps=80_000, accountant="pld")
    assert epsilon(run, steps, delta=1e-7) <= budget < epsilon(run, steps + 1, delta=1e-7)


def test_no_noise_affords_no_step() -> None:
    silent = replace(POISSON, noise_multiplier=0.0)
    assert affordable_steps(silent, max_epsilon=8.0, delta=DELTA, num_steps=10, accountant="pld") == 0


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"delta": 0.0}, "delta must be above 0"),
        ({"delta": 1.0}, "delta must be above 0"),
        ({"delta": math.nan}, "delta must be above 0"),
        ({"delta": 1e-14}, "use accountant rdp"),
        ({"accountant": "moments"}, "one of pld, rdp"),
        ({"sampling": "shuffle", "noise": "tree"}, "use accountant rdp"),
        ({"noise": "tree"}, "Tree noise needs"),
        ({"sampling": "sequential"}, "one of poisson, shuffle"),
        ({"target_epsilon": 0.0}, "typical values are 0.5 to 10"),
        ({"target_epsilon": math.inf}, "at most 1000"),
        ({"target_epsilon": math.nan}, "at most 1000"),
        ({"num_steps": 0}, "at least one step"),
        ({"num_examples": 0}, "at least one training example"),
        ({"target_epsilon": 1e-9, "num_steps": 10**6}, "raise the target, train fewer steps"),
    ],
)
def test_refusals_say_what_to_change(changed: dict[str, object], sentence: str) -> None:
    good = {
        "target_epsilon": 3.0, "delta": DELTA, "num_steps": 100, "num_examples": 1000, "batch_size": 100,
        "sampling": "poisson", "noise": "gaussian", "accountant": "pld",
    }  # fmt: skip
    with pytest.raises(UsageError, match=sentence):
        calibrate(**{**good, **changed})


@pytest.mark.parametrize("sigma", [-1.0, math.nan, math.inf])
def test_noise_that_is_none(sigma: float) -> None:
    with pytest.raises(UsageError, match="typical values are 0.5 to 5"):
        Mechanism(sigma, 100, 10, "poisson")


def test_says_nothing_that_a_user_cannot_act_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        epsilon(Mechanism(0.8, 100, 50, "poisson"), 100, delta=DELTA, accountant="rdp")
    assert not caplog.records


def test_imports_no_tensorflow() -> None:
    program = (
        "import sys, tfbig.gradients.private.ledger, tfbig.gradients.private.record\n"
        "sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
