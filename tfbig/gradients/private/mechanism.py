"""What one private run does to the data, as an accountant sees it, and what is credited to each way of drawing batches.

- `poisson`: each example is in each step's batch with probability q = B/N, independently of everything else.
  Subsampling amplifies. Relation: add or remove one example.
- `shuffle`: each example is in one batch an epoch, in an order that is NOT taken to be secret. No amplification:
  an epoch is one release of a Gaussian. Relation: one example is left out of every step (weight 0), which is to
  replace it by one whose gradient is zero ("zero-out", dp-accounting's REPLACE_SPECIAL), because removing it would
  shift every batch after it.
- `shuffle` with `tree` noise (DP-FTRL; Kairouz et al. 2021, appendix D): the same relation, which is the only one
  dp-accounting analyses it under, and RDP only.

In the tree: below gradients/private, used by its accounting. Imports no TensorFlow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from tfbig.errors import UsageError
from tfbig.stand_ins import stand_in

if TYPE_CHECKING:
    import dp_accounting
else:
    # It brings SciPy, and most runs are not private.
    dp_accounting = stand_in("dp_accounting")

Accountant: TypeAlias = Literal["pld", "rdp"]
Adjacency: TypeAlias = Literal["add_or_remove_one", "replace_special"]
Sampling: TypeAlias = Literal["poisson", "shuffle"]
Noise: TypeAlias = Literal["gaussian", "tree"]
# Of what noise.py draws from a secret; whatever changes that gets another number. 1 drew each variable by itself, 2 the
# small ones together.
NOISE_LAYOUT = 3


@dataclass(frozen=True)
class Mechanism:
    """What one run does to the data, as an accountant sees it.

    Args:
        noise_multiplier: sigma, the noise's standard deviation over the clip norm; for `tree` that of one node.
            0 gives epsilon = inf.
        num_examples: N, examples in the training split.
        batch_size: B, examples a step; with Poisson sampling the expected number.
        sampling: How batches are drawn; see above for what is credited to each.
        noise: `gaussian` draws independently a step; `tree` is DP-FTRL, restarted at each epoch, and needs `shuffle`.

    Raises:
        UsageError: A value is out of range, or `tree` with Poisson sampling.
    """

    noise_multiplier: float
    num_examples: int
    batch_size: int
    sampling: Sampling
    noise: Noise = "gaussian"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise UsageError(
                f"noise_multiplier must be >= 0 and finite, got {self.noise_multiplier}; typical values are 0.5 to 5."
            )
        if self.num_examples < 1 or self.batch_size < 1:
            raise UsageError(
                "A private run needs at least one training example and a batch of at least one, got "
                f"{self.num_examples} examples and batch_size {self.batch_size}."
            )
        for name, value, choices in (("sampling", self.sampling, Sampling), ("noise", self.noise, Noise)):
            if value not in get_args(choices):
                raise UsageError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}.")
        if self.noise == "tree" and self.sampling != "shuffle":
            raise UsageError(
                "Tree noise needs each example at most once an epoch, got sampling poisson; use sampling shuffle "
                "with noise tree, or noise gaussian with sampling poisson."
            )

    @property
    def sampling_probability(self) -> float:
        """B/N, at most 1: with Poisson sampling each example's chance a step, else its share of an epoch's steps."""
        return min(1.0, self.batch_size / self.num_examples)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that cover every example once; with Poisson sampling, on average about once."""
        return -(-self.num_examples // self.batch_size)

    @property
    def adjacency(self) -> Adjacency:
        """Which datasets count as neighbours in this mechanism's epsilon."""
        return "add_or_remove_one" if self.sampling == "poisson" else "replace_special"

    @property
    def accountants(self) -> tuple[Accountant, ...]:
        """The accountants that know this mechanism, the tightest first."""
        return ("rdp",) if self.noise == "tree" else ("pld", "rdp")

    def event(self, num_steps: int) -> dp_accounting.DpEvent:
        """The run's first `num_steps` steps in dp-accounting's terms.

        Guarantees: an epoch that has begun counts as a whole with shuffled Gaussian noise, since its examples may
        be any; with tree noise it counts with the nodes that its steps so far can have completed.
        """
        if num_steps < 0:
            raise ValueError(f"num_steps must be >= 0, got {num_steps}.")
        if num_steps == 0:
            return dp_accounting.NoOpDpEvent()
        gaussian = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling == "poisson":
            step = dp_accounting.PoissonSampledDpEvent(self.sampling_probability, gaussian)
            return dp_accounting.SelfComposedDpEvent(step, num_steps)
        if self.noise == "gaussian":
            return dp_accounting.SelfComposedDpEvent(gaussian, -(-num_steps // self.steps_per_epoch))
        whole, rest = divmod(num_steps, self.steps_per_epoch)
        epochs = [(self.steps_per_epoch, whole), (rest, 1)]
        trees = [
            dp_accounting.SelfComposedDpEvent(_tree(self.noise_multiplier, steps), count)
            for steps, count in epochs
            if steps and count
        ]
        return trees[0] if len(trees) == 1 else dp_accounting.ComposedDpEvent(tuple(trees))


def _tree(noise_multiplier: float, num_steps: int) -> dp_accounting.DpEvent:
    return dp_accounting.SingleEpochTreeAggregationDpEvent(noise_multiplier, num_steps)
