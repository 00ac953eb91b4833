"""The privacy of one run: what is planned, what is spent after each step, and where the budget ends.

Made by assembly.py for a private run; a callback shows it live and stops the run in time. The figures are those of
gradients/private/accounting.py.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import keras

from tfbig.errors import GateError, Interrupted, UsageError
from tfbig.gradients.private.accounting import MAX_EPSILON, affordable_steps, calibrate, epsilon
from tfbig.gradients.private.ledger import BudgetLedger
from tfbig.gradients.private.mechanism import Accountant, Mechanism, Noise, Sampling
from tfbig.gradients.private.record import privacy_record
from tfbig.training.callbacks import Ledger, Saver
from tfbig.training.private_state import PrivateState

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_FIGURES = 20.0
NOT_PRIVATE = (
    "Not private: the figures on the training examples are exact. The promise of dp.json covers the network alone."
)


class BudgetSpent(Interrupted):
    """The next step would pass the run's own budget; all is saved, and what is trained can be used."""


@dataclass(frozen=True)
class Privacy:
    """What a private run promises.

    Args:
        mechanism: The run, as an accountant sees it.
        delta: Of the promise.
        accountant: Whose epsilon it is.
        clip_norm: Of the first step.
        planned_steps: Steps of the whole run.
        affordable_steps: Steps that the run's budget allows, at most those planned.
        state: The run's secret and name.
        described: What dp.json says beside the figures: trained_variables, engine, adaptive_clipping,
            chosen_on_validation, drawn_splits, is_limited and public_parts, as `privacy_record` takes them.
    """

    mechanism: Mechanism
    delta: float
    accountant: Accountant
    clip_norm: float
    planned_steps: int
    affordable_steps: int
    state: PrivateState
    described: Mapping[str, object] = field(default_factory=dict)

    def epsilon(self, num_steps: int) -> float:
        """What is spent after some steps."""
        return _epsilon(self.mechanism, num_steps, self.delta, self.accountant)

    def is_spent(self, num_steps: int) -> bool:
        """Whether the budget ends here, before the plan does."""
        return self.affordable_steps < self.planned_steps and num_steps >= self.affordable_steps

    def charge(
        self,
        ledger: Path,
        *,
        run_dir: Path,
        dataset: str,
        fingerprint: str,
        limit_epsilon: float | None,
        has_begun: bool,
    ) -> None:
        """Charges the steps to come to a dataset's budget.

        Args:
            ledger: File of the budgets.
            run_dir: Of the run.
            dataset: The source of the data, by the one name that all spellings share.
            fingerprint: Of its whole content; empty where it is not known.
            limit_epsilon: The dataset's limit, where it is charged for the first time.
            has_begun: Whether the run goes on, and so has a charge already.

        Raises:
            GateError: The dataset's budget does not allow it.
        """
        BudgetLedger(ledger).reserve(
            run_id=self.state.run_id,
            run_dir=str(run_dir),
            dataset=dataset,
            fingerprint=fingerprint,
            mechanism=self.mechanism,
            num_steps=self.affordable_steps,
            limit_epsilon=limit_epsilon,
            limit_delta=None if limit_epsilon is None else self.delta,
            already_charged=has_begun,
        )

    def settle(self, ledger: Path, num_steps: int) -> None:
        """Gives back what the finished run did not use."""
        BudgetLedger(ledger).settle(self.state.run_id, num_steps)

    def record(self, num_steps: int, *, ledger: Path | None) -> dict[str, object]:
        """The content of dp.json after some steps."""
        return privacy_record(
            self.mechanism,
            num_steps=num_steps,
            planned_steps=self.planned_steps,
            delta=self.delta,
            l2_norm_clip=self.clip_norm,
            accountant=self.accountant,
            ledger=None if ledger is None else str(ledger),
            **self.described,  # type: ignore[arg-type]
        )


_epsilon = functools.lru_cache(maxsize=64)(
    lambda mechanism, num_steps, delta, accountant: epsilon(
        mechanism, num_steps, delta=delta, accountant=accountant
    )
)


def plan_privacy(
    state: PrivateState,
    *,
    num_examples: int,
    batch_size: int,
    num_steps: int,
    sampling: Sampling,
    noise: Noise,
    target_epsilon: float | None,
    noise_multiplier: float | None,
    delta: float,
    accountant: Accountant,
    clip_norm: float,
    max_epsilon: float | None,
) -> Privacy:
    """The privacy of a run that has not begun, or goes on.

    Args:
        state: Of the run; its noise is kept where the run has begun, and the rest must be as it was.
        num_examples: N of the training split.
        batch_size: Examples a step, expected.
        num_steps: Of the whole run.
        sampling: How batches are drawn.
        noise: Gaussian noise a step, or along a tree.
        target_epsilon: What the noise is calibrated to, where `noise_multiplier` is None and the run has none yet.
        noise_multiplier: Sigma.
        delta: Of the promise.
        accountant: Whose epsilon counts.
        clip_norm: Of the first step.
        max_epsilon: Budget that the run stops before; None for none.

    Raises:
        UsageError: The target cannot be reached, the noise is too little to promise anything, or the run began as
            another mechanism.
        GateError: Not even one step is within the budget.
    """
    sigma = noise_multiplier or (state.mechanism.noise_multiplier if state.mechanism else None)
    if sigma is None:
        sigma = calibrate(
            target_epsilon=cast(float, target_epsilon), delta=delta, num_steps=num_steps, num_examples=num_examples,
            batch_size=batch_size, sampling=sampling, noise=noise, accountant=accountant,
        )  # fmt: skip
        log.info("the noise multiplier is %.5g, calibrated to epsilon %g", sigma, target_epsilon)
    mechanism = Mechanism(sigma, num_examples, batch_size, sampling, noise)
    _refuse_other_mechanism(state.mechanism, mechanism)
    if delta * num_examples >= 1:
        log.warning(
            "--dp.delta %g is not below 1/%d, one over the training examples: publishing one of them outright would "
            "satisfy it; give a smaller one", delta, num_examples,
        )  # fmt: skip
    allowed = num_steps
    if max_epsilon is not None:
        allowed = affordable_steps(
            mechanism, max_epsilon=max_epsilon, delta=delta, num_steps=num_steps, accountant=accountant
        )
        if allowed == 0:
            raise GateError(
                f"--dp.max_epsilon {max_epsilon:g} is spent before the first step, which alone costs "
                f"{epsilon(mechanism, 1, delta=delta, accountant=accountant):.3g}; add noise, or raise it."
            )
        if allowed < num_steps:
            log.warning("--dp.max_epsilon %g ends the run after %d of %d steps", max_epsilon, allowed, num_steps)
    if math.isinf(epsilon(mechanism, allowed, delta=delta, accountant=accountant)):
        # Refused now: no file of figures holds an infinite one.
        raise UsageError(
            f"A noise multiplier of {sigma:g} over {allowed} steps promises nothing, for its epsilon is above "
            f"{MAX_EPSILON:g}; 0.5 to 10 is usual. Train without --dp where no promise is needed."
        )
    if sampling == "shuffle" and noise == "gaussian":
        log.warning(
            "shuffled batches earn no amplification by sampling: epsilon counts each epoch in full; --dp.sampling "
            "poisson costs far less at the same noise"
        )
    state = dataclasses.replace(state, mechanism=mechanism)
    return Privacy(mechanism, delta, accountant, clip_norm, num_steps, allowed, state)


def _refuse_other_mechanism(before: Mechanism | None, now: Mechanism) -> None:
    """One epsilon is told for all steps of a run, so that they must all be of one mechanism."""
    if before is None or before == now:
        return
    names = [field.name for field in dataclasses.fields(now) if getattr(before, field.name) != getattr(now, field.name)]
    changed = ", ".join(f"{name} {getattr(before, name)} then, {getattr(now, name)} now" for name in names)
    raise UsageError(
        f"This private run began otherwise ({changed}), so its steps could not be counted together; put its data and "
        "settings back, choose another --run_dir, or train it anew with --resume never."
    )


class PrivacyMeter(keras.callbacks.Callback):
    """Adds what is spent to each epoch's figures. Comes before whatever keeps them."""

    def __init__(self, privacy: Privacy, ledger: Ledger) -> None:
        super().__init__()
        self._privacy, self._ledger = privacy, ledger
        self._shown: dict[str, float] = {}
        self._shown_at = -_SECONDS_BETWEEN_FIGURES

    def figures(self) -> dict[str, float]:
        """What is spent by now, at most some seconds old."""
        if time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_FIGURES:
            self._shown = {"epsilon": self._privacy.epsilon(self._ledger.global_step)}
            self._shown_at = time.monotonic()
        return self._shown

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """The epoch is over, and its steps are spent."""
        if logs is not None:
            logs["epsilon"] = self._privacy.epsilon((epoch + 1) * self._ledger.steps_per_epoch)


class BudgetGuard(keras.callbacks.Callback):
    """Stops the run at the last step that its budget allows. Comes last, after the Saver."""

    def __init__(self, privacy: Privacy, ledger: Ledger, saver: Saver) -> None:
        super().__init__()
        self._privacy, self._ledger, self._saver = privacy, ledger, saver

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Saves and stops within an epoch; its end is left to `on_epoch_end`."""
        if self._ledger.step < self._ledger.steps_per_epoch:
            self._stop_if_spent()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Saves and stops between epochs."""
        self._stop_if_spent()

    def _stop_if_spent(self) -> None:
        if self._privacy.is_spent(self._ledger.global_step):
            self._saver.save()
            raise BudgetSpent(
                f"Stopped after {self._ledger.global_step} of {self._privacy.planned_steps} steps, the last that "
                f"--dp.max_epsilon allows: epsilon {self._privacy.epsilon(self._ledger.global_step):.4g}."
            )
