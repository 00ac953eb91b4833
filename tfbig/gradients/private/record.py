"""The content of dp.json: what a private run promises, in figures that anyone can recompute, and what it does not.

What has to be said beside an epsilon follows Ponomareva et al. 2023, "How to DP-fy ML", section 5.3. In the tree:
above gradients/private's accounting, used by training and the model card. Imports no TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import metadata

from tfbig.gradients.private.accounting import epsilon, least_delta, pld_grid
from tfbig.gradients.private.mechanism import Accountant, Adjacency, Mechanism
from tfbig.gradients.private.statement import epsilon_in_words

UNIT = "one training example"
NOT_PRIVATE_FILES = {
    "metrics.jsonl": "the loss and metrics on the training examples",
    "tensorboard/": "the loss and metrics on the training examples",
    "checkpoints/": (
        "exact metrics on the training examples and, until the run has ended, the secret: whoever has it can subtract "
        "the noise"
    ),
    "evaluation.json": "figures computed on examples without noise",
    "predictions.csv": "names and labels of examples",
    "report.html": "names, labels and pictures of examples",
    "data_manifest.json": "exact counts, names of files, and a hash of all examples",
    "audit.json": "membership figures computed on the training examples without noise",
    "audit.html": "the same",
}
UNCOUNTED_RUNS = "The choice of settings: runs on this data that were compared to choose them are not counted."
_LEDGER_HOLDS = "a hash of the contents of all examples"
_NEIGHBOURS = {
    "add_or_remove_one": "adding or removing one training example",
    "replace_special": "replacing one training example by one whose gradient is zero",
}


def privacy_record(
    mechanism: Mechanism,
    *,
    num_steps: int,
    planned_steps: int,
    delta: float,
    l2_norm_clip: float,
    accountant: Accountant,
    trained_variables: Sequence[str],
    engine: str,
    adaptive_clipping: Mapping[str, float] | None = None,
    chosen_on_validation: Sequence[str] = (),
    drawn_splits: Sequence[str] = (),
    is_limited: bool = False,
    public_parts: Sequence[str] = (),
    ledger: str | None = None,
) -> dict[str, object]:
    """The content of dp.json: what was promised after `num_steps`, and all that is needed to recompute it.

    Args:
        mechanism: The run.
        num_steps: Steps taken.
        planned_steps: Steps that were planned; the noise may have been calibrated for them.
        delta: Above 0 and below 1.
        l2_norm_clip: Largest L2 norm of one example's gradient, above 0; where it adapts, that of the first step.
        accountant: Whose epsilon is `epsilon`.
        trained_variables: Paths of the variables that were trained, and that the promise is about.
        engine: How per-example gradients were clipped.
        adaptive_clipping: Its parameters where the clip norm adapts. The mechanism's noise multiplier is then that
            of the sum and the count together.
        chosen_on_validation: What the validation split decided ("early stopping", "the best epoch"); empty where
            it decided nothing.
        drawn_splits: Of "validation" and "test", those that were drawn from the private data and not given.
        is_limited: Whether the training split is a draw of some of its examples.
        public_parts: What the promise takes to be public ("the pretrained backbone", "the normalisation statistics").
        ledger: Where the dataset's budget over runs is kept; None where it is not.

    Returns:
        A dict for JSON; an infinite epsilon is the text "inf", which Python's float reads.

    Guarantees: `epsilon` is that of the sampler that was used: with `shuffle` no amplification is credited, and no
    figure in the record credits any.
    """
    spent = epsilon(mechanism, num_steps, delta=delta, accountant=accountant)
    return {
        "epsilon": _for_json(spent),
        "delta": delta,
        "unit": UNIT,
        "adjacency": mechanism.adjacency,
        "accountant": accountant,
        **{
            f"epsilon_{name}": _for_json(epsilon(mechanism, num_steps, delta=delta, accountant=name))
            for name in mechanism.accountants
            if name == accountant or delta >= least_delta(name)
        },
        "noise_multiplier": mechanism.noise_multiplier,
        "noise": mechanism.noise,
        "l2_norm_clip": l2_norm_clip,
        "clipping": "fixed" if adaptive_clipping is None else "adaptive",
        "clipping_parameters": dict(adaptive_clipping or {}),
        "sampling": mechanism.sampling,
        "sampling_probability": mechanism.sampling_probability,
        "num_examples": mechanism.num_examples,
        "batch_size": mechanism.batch_size,
        "steps_per_epoch": mechanism.steps_per_epoch,
        "steps": num_steps,
        "planned_steps": planned_steps,
        "engine": engine,
        "trained_variables": list(trained_variables),
        "ledger": ledger,
        "not_covered": [
            *_not_covered(mechanism, delta),
            *_draw_gaps(chosen_on_validation, drawn_splits, is_limited),
            *_outside_gaps(public_parts, ledger),
        ],
        "not_private_files": {**NOT_PRIVATE_FILES, **({} if ledger is None else {ledger: _LEDGER_HOLDS})},
        "statement": _statement(
            mechanism,
            num_steps,
            delta,
            (epsilon_in_words(spent), accountant.upper()),
            f"{l2_norm_clip:g}" + ("" if adaptive_clipping is None else " at first, adapted from step to step"),
        ),
        "dp_accounting": metadata.version("dp-accounting"),
        "recompute": recomputation(mechanism, num_steps, delta=delta, accountant=accountant),
    }


def recomputation(mechanism: Mechanism, num_steps: int, *, delta: float, accountant: Accountant) -> str:
    """A Python program that prints the epsilon with dp-accounting alone.

    Args:
        mechanism: The run.
        num_steps: Steps taken.
        delta: Above 0 and below 1.
        accountant: One of `mechanism.accountants`.
    """
    grid = pld_grid(mechanism, num_steps, delta=delta) if accountant == "pld" else None
    return program(mechanism.event(num_steps), adjacency=mechanism.adjacency, delta=delta, grid=grid)


def program(event: object, *, adjacency: Adjacency, delta: float, grid: float | None) -> str:
    """A Python program that prints the epsilon of an event with dp-accounting alone.

    Args:
        event: Of dp-accounting.
        adjacency: The neighbouring relation.
        delta: Above 0 and below 1.
        grid: The step of the grid that PLD takes; None for RDP.
    """
    relation = f"NeighboringRelation.{adjacency.upper()}"
    accountant, chosen = "rdp", f"rdp.RdpAccountant(neighboring_relation={relation})"
    if grid is not None:
        accountant, chosen = "pld", f"pld.PLDAccountant({relation}, {grid!r})"
    return (
        f"from dp_accounting import NeighboringRelation, {accountant}\n"
        "from dp_accounting.dp_event import *\n"
        f"event = {event!r}\n"
        f"print({chosen}.compose(event).get_epsilon({delta!r}))\n"
    )


def _for_json(value: float) -> float | str:
    return value if math.isfinite(value) else "inf"


def _statement(mechanism: Mechanism, num_steps: int, delta: float, spent: tuple[str, str], clip: str) -> str:
    run = (
        f"{num_steps} steps over {mechanism.num_examples} training examples, {mechanism.batch_size} examples a step "
        f"({mechanism.sampling.capitalize()} sampling); each example's gradient clipped to L2 norm {clip}; "
        f"{mechanism.noise} noise of {mechanism.noise_multiplier:g} times that norm."
    )
    value, accountant = spent
    if value == "inf":
        return f"{run} No privacy is promised: with this little noise epsilon is infinite."
    promise = (
        f"The run is ({value}, {delta:g})-differentially private for {UNIT}, by {accountant} accounting: "
        f"{_NEIGHBOURS[mechanism.adjacency]} changes the probability of any outcome by a factor of at most "
        f"exp({value}), but for a probability of {delta:g}. It covers the trained variables after every step, not the "
        "last one alone."
    )
    return f"{run} {promise} {_CREDIT[mechanism.sampling, mechanism.noise]}"


_CREDIT = {
    ("poisson", "gaussian"): (
        "Amplification by sampling is credited, since each step draws each example independently; it holds against "
        "whoever does not learn which examples a step drew."
    ),
    ("shuffle", "gaussian"): (
        "Batches were shuffled and not drawn independently, so no amplification by sampling is credited: each epoch "
        "that has begun counts as one release of each example's gradient. Poisson sampling costs far less at the same "
        "noise."
    ),
    ("shuffle", "tree"): (
        "Noise was added along a binary tree that is restarted at each epoch (DP-FTRL), which needs no amplification "
        "by sampling, and none is credited."
    ),
}


def _not_covered(mechanism: Mechanism, delta: float) -> list[str]:
    gaps = []
    if mechanism.noise_multiplier == 0:
        gaps.append("Anything: no noise was added.")
    if delta * mechanism.num_examples >= 1:
        gaps.append(
            f"delta {delta:g} is not below 1/{mechanism.num_examples}: publishing one example outright, drawn at "
            "random, would satisfy it too."
        )
    return [
        *gaps,
        "The loss and metrics on the training examples: they are exact, without noise.",
        f"The number of training examples ({mechanism.num_examples}), the names of the classes and their counts: they "
        "are taken to be public.",
        "Several examples of one person, or copies of one example: the unit is one training example.",
        "The noise is drawn in floating point from a counter-based generator, not from an ideal Gaussian; and the "
        "promise ends where the secret, which checkpoints/ hold until the run has ended, is known.",
    ]


def _draw_gaps(chosen_on_validation: Sequence[str], drawn_splits: Sequence[str], is_limited: bool) -> list[str]:
    gaps = []
    drawn = [f"the {role} split" for role in drawn_splits] + ["what --data.limit keeps"] * is_limited
    if drawn:
        gaps.append(
            f"The draw of {' and '.join(drawn)}: taken as fixed. Without one example the same seed would draw others "
            "too, and the promise compares training splits that differ in one example alone; give validation and test "
            "of their own, and no --data.limit, where this matters."
        )
    if chosen_on_validation:
        origin = "that was drawn from the private data" if "validation" in drawn_splits else "that was given"
        gaps.append(
            f"{_listed(chosen_on_validation)}: chosen on a validation split {origin}, whose examples have no promise."
        )
    return gaps


def _outside_gaps(public_parts: Sequence[str], ledger: str | None) -> list[str]:
    gaps = []
    if public_parts:
        gaps.append(f"{_listed(public_parts)}: not trained here, and taken to be public.")
    if ledger is None:
        gaps.append(UNCOUNTED_RUNS)
    else:
        gaps.append(
            "Runs on this data outside of the ledger; and the ledger's composition takes each run's settings as "
            "chosen without looking at the outcome of the runs before it."
        )
    return gaps


def _listed(names: Sequence[str]) -> str:
    text = " and ".join(names)
    return text[:1].upper() + text[1:]
