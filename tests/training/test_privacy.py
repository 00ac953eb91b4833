"""The privacy of a run: the target is kept, the budget is never passed, and what is charged is what is taken."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf

from tfbig.errors import DivergedError, GateError, UsageError
from tfbig.gradients.private.accounting import epsilon
from tfbig.gradients.private.ledger import BudgetLedger
from tfbig.training import privacy
from tfbig.training.callbacks import DivergenceGuard, Ledger
from tfbig.training.privacy import BudgetGuard, BudgetSpent, Privacy, PrivacyMeter, plan_privacy
from tfbig.training.private_state import PrivateState

STATE = PrivateState("run", 7)
DELTA = 1e-5


def _plan(state: PrivateState = STATE, **changed: object) -> Privacy:
    settings = {
        "num_examples": 1000, "batch_size": 100, "num_steps": 20, "sampling": "poisson", "noise": "gaussian",
        "target_epsilon": None, "noise_multiplier": 1.0, "delta": DELTA, "accountant": "rdp", "clip_norm": 1.0,
        "max_epsilon": None,
    }  # fmt: skip
    return plan_privacy(state, **{**settings, **changed})


@pytest.mark.parametrize(
    ("sampling", "noise", "accountant"),
    [
        ("poisson", "gaussian", "pld"),
        ("poisson", "gaussian", "rdp"),
        ("shuffle", "gaussian", "pld"),
        ("shuffle", "tree", "rdp"),
    ],
)
def test_the_target_is_kept_and_used(sampling: str, noise: str, accountant: str) -> None:
    plan = _plan(target_epsilon=3.0, noise_multiplier=None, sampling=sampling, noise=noise, accountant=accountant)
    assert 2.97 <= plan.epsilon(plan.planned_steps) <= 3.0
    assert plan.affordable_steps == plan.planned_steps == 20
    spent = [plan.epsilon(steps) for steps in (0, 1, 10, 11, 20)]
    assert spent[0] == 0 and spent == sorted(spent)
    assert plan.state.mechanism == plan.mechanism


def test_a_run_that_goes_on_keeps_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    began = _plan(target_epsilon=3.0, noise_multiplier=None)
    monkeypatch.setattr(privacy, "calibrate", lambda **_: pytest.fail("calibrated again"))
    goes_on = _plan(began.state, target_epsilon=3.0, noise_multiplier=None)
    assert goes_on.mechanism == began.mechanism and goes_on.state == began.state


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"num_examples": 1001}, "num_examples 1000 then, 1001 now"),
        ({"num_examples": 10_000}, "num_examples 1000 then"),
        ({"batch_size": 50}, "batch_size 100 then, 50 now"),
        ({"noise_multiplier": 2.0}, "noise_multiplier 1.0 then, 2.0 now"),
        ({"sampling": "shuffle"}, "sampling poisson then, shuffle now"),
        ({"sampling": "shuffle", "noise": "tree"}, "noise gaussian then, tree now"),
    ],
)
def test_a_run_goes_on_as_the_mechanism_that_it_began_as(changed: dict[str, object], word: str) -> None:
    began = _plan()
    with pytest.raises(UsageError, match=rf"{word}.*--resume never"):
        _plan(began.state, **changed)


@pytest.mark.parametrize(
    ("sampling", "noise"), [("poisson", "gaussian"), ("shuffle", "gaussian"), ("shuffle", "tree")]
)
@pytest.mark.parametrize("max_epsilon", [4.0, 6.0, 8.0])
def test_one_step_more_would_pass_the_budget(sampling: str, noise: str, max_epsilon: float) -> None:
    plan = _plan(max_epsilon=max_epsilon, num_steps=5000, noise_multiplier=2.5, sampling=sampling, noise=noise)
    steps = plan.affordable_steps
    assert 0 < steps < plan.planned_steps
    # Asked of the accountant itself.
    now, then = (epsilon(plan.mechanism, n, delta=DELTA, accountant="rdp") for n in (steps, steps + 1))
    assert now <= max_epsilon < then
    assert not plan.is_spent(steps - 1) and plan.is_spent(steps) and plan.is_spent(steps + 1)


def test_a_budget_that_the_plan_keeps_to_ends_nothing() -> None:
    whole = _plan()
    for max_epsilon in (None, whole.epsilon(20), 100.0):
        plan = _plan(max_epsilon=max_epsilon)
        assert plan.affordable_steps == 20 and not plan.is_spent(20)


def test_a_budget_below_one_step_says_what_a_step_costs() -> None:
    with pytest.raises(GateError, match=r"max_epsilon 0\.5 is spent before the first step") as refused:
        _plan(max_epsilon=0.5)
    assert refused.value.exit_code == 6
    assert f"{_plan().epsilon(1):.3g}" in str(refused.value)


def test_noise_that_promises_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"1e-05.*promises nothing.*0\.5 to 10"):
        _plan(noise_multiplier=1e-5)
    # Within a budget it may: the first epoch's steps alone are finite.
    assert _plan(noise_multiplier=0.02, max_epsilon=1e4).affordable_steps < 20


@pytest.mark.parametrize(("delta", "warned"), [(1e-3, True), (0.5, True), (0.99e-3, False)])
def test_a_delta_that_publishing_an_example_satisfies_is_said(
    delta: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _plan(delta=delta)
    assert ("not below 1/1000" in caplog.text) is warned


@pytest.mark.parametrize(
    ("sampling", "noise", "warned"),
    [("poisson", "gaussian", False), ("shuffle", "gaussian", True), ("shuffle", "tree", False)],
)
def test_shuffling_says_what_it_costs(
    sampling: str, noise: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _plan(sampling=sampling, noise=noise)
    assert ("no amplification" in caplog.text) is warned


def test_the_meter_adds_what_is_spent_to_each_epoch() -> None:
    plan, ledger = _plan(), Ledger(steps_per_epoch=10)
    meter = PrivacyMeter(plan, ledger)
    for epoch in range(2):
        logs = {"loss": 1.0}
        meter.on_epoch_end(epoch, logs)
        assert logs == {"loss": 1.0, "epsilon": epsilon(plan.mechanism, 10 * (epoch + 1), delta=DELTA,
                                                        accountant="rdp")}  # fmt: skip


def test_the_live_figure_is_of_the_steps_taken_and_is_not_asked_for_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [1000.0], []
    monkeypatch.setattr(privacy.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(privacy, "_epsilon", lambda mechanism, steps, *_: asked.append(steps) or float(steps))
    ledger = Ledger(steps_per_epoch=10, epoch=1)
    meter = PrivacyMeter(_plan(), ledger)
    for ledger.step in range(1, 10):
        assert meter.figures() == {"epsilon": 11.0}
        now[0] += 2.0
    now[0] += 10.0
    assert meter.figures() == {"epsilon": 19.0} and asked == [11, 19]


class _Saver:
    """Counts what it is asked to save."""

    def __init__(self) -> None:
        self.num_saved = 0

    def save(self) -> None:
        self.num_saved += 1


def _stops_at(plan: Privacy, num_epochs: int) -> tuple[int | None, int]:
    """The step at which the guard stops a run, as Keras would call it, and how often it saved."""
    ledger, saver = Ledger(steps_per_epoch=plan.mechanism.steps_per_epoch), _Saver()
    guard = BudgetGuard(plan, ledger, saver)
    try:
        for epoch in range(num_epochs):
            for batch in range(ledger.steps_per_epoch):
                ledger.step += 1
                guard.on_train_batch_end(batch, {})
            ledger.epoch, ledger.step = epoch + 1, 0
            guard.on_epoch_end(epoch, {})
    except BudgetSpent as stop:
        assert f"after {ledger.global_step} of" in str(stop)
        return ledger.global_step, saver.num_saved
    return None, saver.num_saved


@pytest.mark.parametrize("steps", [1, 9, 10, 11, 20, 29])
def test_the_guard_saves_and_stops_at_the_last_step_of_the_budget(steps: int) -> None:
    whole = _plan(num_steps=30)
    plan = _plan(num_steps=30, max_epsilon=whole.epsilon(steps))
    assert plan.affordable_steps == steps
    assert _stops_at(plan, num_epochs=3) == (steps, 1)


def test_the_guard_leaves_a_run_alone_that_ends_within_its_budget() -> None:
    whole = _plan(num_steps=30)
    assert _stops_at(_plan(num_steps=30, max_epsilon=whole.epsilon(30)), num_epochs=3) == (None, 0)


def test_what_diverged_is_offered_what_its_run_may_use() -> None:
    for is_private, remedy in ((True, "--dp.l2_norm_clip"), (False, "--train.clip_norm")):
        guard = DivergenceGuard(is_private=is_private)
        guard.set_model(SimpleNamespace(diverged_at=tf.Variable(3)))
        with pytest.raises(DivergedError, match="at step 3.*--train.learning_rate") as stopped:
            guard.check()
        assert [flag for flag in ("--dp.l2_norm_clip", "--train.clip_norm") if flag in str(stopped.value)] == [remedy]


def _charge(plan: Privacy, path: Path, *, has_begun: bool = False, limit_epsilon: float | None = 50.0) -> None:
    plan.charge(path, run_dir=path.parent / plan.state.run_id, dataset="folder:photos", fingerprint="f",
                limit_epsilon=limit_epsilon, has_begun=has_begun)  # fmt: skip


def _steps(path: Path) -> list[int]:
    return [charge.num_steps for charge in BudgetLedger(path).balance("folder:photos", "f").runs]


def test_a_run_is_charged_once_for_what_it_may_take_and_gives_back_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    plan = _plan(num_steps=30, max_epsilon=_plan(num_steps=30).epsilon(17))
    _charge(plan, path)
    assert _steps(path) == [17]
    before = path.read_bytes()
    _charge(plan, path, has_begun=True)
    assert path.read_bytes() == before
    plan.settle(path, 12)
    assert _steps(path) == [12]
    # Another run of the same data is another charge, at the limit that the ledger has.
    _charge(_plan(PrivateState("other", 8)), path, limit_epsilon=None)
    assert _steps(path) == [12, 20]
    balance = BudgetLedger(path).balance("folder:photos", "f")
    assert (balance.limit_epsilon, balance.delta) == (50.0, DELTA)


def test_a_run_that_goes_on_needs_its_charge(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    with pytest.raises(GateError, match="missing"):
        _charge(_plan(), path, has_begun=True)
    assert not path.exists()
    _charge(_plan(PrivateState("other", 8)), path)
    before = path.read_bytes()
    with pytest.raises(GateError, match="charge"):
        _charge(_plan(), path, has_begun=True)
    assert path.read_bytes() == before


def test_what_is_kept_of_a_run_does_not_hold_its_secret(tmp_path: Path) -> None:
    secret = 2**127 + 987654321987654321
    plan = _plan(PrivateState("run", secret))
    described = {"trained_variables": ["logits/kernel"], "engine": "tapped"}
    plan = Privacy(**{**{name: getattr(plan, name) for name in plan.__dataclass_fields__}, "described": described})
    path = tmp_path / "ledger.json"
    _charge(plan, path)
    record = json.dumps(plan.record(13, ledger=path))
    for shown in (repr(plan), record, path.read_text()):
        assert str(secret) not in shown and f"{secret:x}" not in shown
    content = json.loads(record)
    assert (content["steps"], content["planned_steps"], content["epsilon"]) == (13, 20, plan.epsilon(13))
    assert content["ledger"] == str(path) and plan.record(13, ledger=None)["ledger"] is None
