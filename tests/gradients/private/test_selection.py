"""What a search over private runs costs, against dp-accounting itself."""

import dp_accounting
import numpy as np
import pytest
from dp_accounting import dp_event, pld, rdp

from tfbig.errors import UsageError
from tfbig.gradients.private.accounting import epsilon
from tfbig.gradients.private.ledger import BudgetLedger
from tfbig.gradients.private.mechanism import Mechanism
from tfbig.gradients.private.selection import Selection, calibrated, draw_num_trials

MECHANISM = Mechanism(2.0, 2000, 100, "poisson")
STEPS = 200


def test_a_random_search_is_repeat_and_select() -> None:
    trial = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(2.0)), STEPS
    )
    event = dp_event.RepeatAndSelectDpEvent(trial, 20.0, 1.0)
    expected = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    selection = Selection(MECHANISM, STEPS, 20.0)
    assert selection.accountant == "rdp"
    assert selection.epsilon(1e-5) == pytest.approx(expected.compose(event).get_epsilon(1e-5), rel=1e-9)


def test_a_search_costs_more_than_a_run_and_a_random_one_less_than_all_its_trials() -> None:
    one = epsilon(MECHANISM, STEPS, delta=1e-5)
    drawn = Selection(MECHANISM, STEPS, 20.0).epsilon(1e-5)
    all_of_them = Selection(MECHANISM, STEPS, None, 20).epsilon(1e-5)
    assert one < drawn < 4 * one
    assert drawn < all_of_them
    assert Selection(MECHANISM, STEPS, 40.0).epsilon(1e-5) > drawn


def test_all_trials_composed_are_one_long_run() -> None:
    selection = Selection(MECHANISM, STEPS, None, 5)
    assert selection.accountant == "pld"
    assert selection.epsilon(1e-5) == pytest.approx(epsilon(MECHANISM, 5 * STEPS, delta=1e-5), rel=1e-6)
    direct = pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL).compose(selection.event)
    assert selection.epsilon(1e-5) == pytest.approx(direct.get_epsilon(1e-5), rel=1e-2)


@pytest.mark.parametrize("mean", [20.0, None])
def test_noise_is_calibrated_to_the_search_as_a_whole(mean: float | None) -> None:
    found = calibrated(Selection(MECHANISM, STEPS, mean, 0 if mean else 4), target_epsilon=3.0, delta=1e-5)
    assert 0.985 * 3 < found.epsilon(1e-5) <= 3
    with pytest.raises(UsageError, match="raise the target"):
        calibrated(Selection(MECHANISM, STEPS, 20.0), target_epsilon=1e-9, delta=1e-5)


def test_the_number_of_trials_is_geometric() -> None:
    drawn = np.array([draw_num_trials(5) for _ in range(20000)])
    assert drawn.min() == 1
    assert drawn.mean() == pytest.approx(5, rel=0.05)
    assert (drawn == 1).mean() == pytest.approx(0.2, abs=0.02)
    assert (drawn > 10).mean() == pytest.approx(0.8**10, abs=0.02)


def test_a_ledger_composes_a_search_with_runs(tmp_path) -> None:
    ledger = BudgetLedger(tmp_path / "ledger.json")

    def charge(run_id: str, mean_trials: float | None) -> float:
        return ledger.reserve(
            run_id=run_id, run_dir="runs/x", dataset="photos", fingerprint="f", mechanism=MECHANISM, num_steps=STEPS,
            limit_epsilon=50, limit_delta=1e-5, mean_trials=mean_trials,
        ).spent_epsilon  # fmt: skip

    run, both = charge("run", None), charge("search", 20.0)
    assert run < both
    assert both > Selection(MECHANISM, STEPS, 20.0).epsilon(1e-5)
    # Again, from the file: nothing more is charged, and another kind of search is refused.
    assert charge("search", 20.0) == both
    with pytest.raises(UsageError):
        charge("search", 30.0)
