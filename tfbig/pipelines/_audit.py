"""`python -m tfbig audit RUN`: does a run keep its promise, and does its network give its training examples away?

The run's data, network and gradient rule are built again from its own files. Made-up examples then go through the
rule (gradients/private/canaries.py, audit.py), and the trained network's losses are compared between the examples
that it saw and others (evaluation/membership.py). Nothing is trained, and the run's secret is never used.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tfbig.config import RunConfig
from tfbig.errors import EnvironmentFault, GateError
from tfbig.gradients.private.audit import Check
from tfbig.pipelines._audited_run import (
    Claim,
    read_claim,
    refuse_other_data,
    refuse_other_promise,
    refuse_unfinished,
    state_for_audit,
    task_of,
)
from tfbig.pipelines._choice import settled_before
from tfbig.pipelines._command_line import parse
from tfbig.pipelines._runtime import runtime_of
from tfbig.startup import import_tensorflow
from tfbig.training.run_directory import RunDirectory, open_run
from tfbig.training.task import Task

if TYPE_CHECKING:
    import numpy as np

    from tfbig.data.index_plan import IndexPlan
    from tfbig.data.sampling import Plan, PoissonPlan
    from tfbig.data.splits import Split
    from tfbig.training.assembly import Assembly

log = logging.getLogger(__name__)


def audit(run_dir: Path, *, num_canaries: int, seed: int, num_steps: int | None = None) -> dict[str, object]:
    """Audits a finished run, and writes audit.json and audit.html into its folder.

    Args:
        run_dir: The run's folder.
        num_canaries: At least 20; unused where the run is not private.
        seed: Draws the canaries, who takes part, the noise, and the resamples of the intervals.
        num_steps: Looks at the first steps only, against what they claim; None for all.

    Returns:
        The command line's last line; `consistent` is False where the claim is contradicted.

    Raises:
        UsageError: Not a finished run, or its settings no longer work.
        DataError: Its data or dp.json is missing, damaged or changed.
        GateError: dp.json claims less than its own figures give.
        EnvironmentFault: Its checkpoints are missing or damaged.
    """
    refuse_unfinished(run_dir)
    with open_run(run_dir) as run:
        task = task_of(run)
        config = settled_before(parse(task, ["--config", str(run.path / "config.yaml")]), run)
        claim = read_claim(run) if config.dp.is_private else None
        content = _audited(task, config, run, claim, num_canaries=num_canaries, seed=seed, num_steps=num_steps)
    return content


def _audited(
    task: Task,
    config: RunConfig,
    run: RunDirectory,
    claim: Claim | None,
    *,
    num_canaries: int,
    seed: int,
    num_steps: int | None,
) -> dict[str, object]:
    import_tensorflow(show_log=logging.getLogger().isEnabledFor(logging.DEBUG))
    from tfbig.evaluation.audit_report import NOT_PRIVATE, write_audit_report
    from tfbig.evaluation.membership import membership_figures, roc_points
    from tfbig.training.assembly import assemble

    # One device, whatever the run had: canaries need no more.
    with runtime_of(config, strategy="none") as strategy:
        splits = task.load(config)
        refuse_other_data(run, splits.manifest.get("fingerprint"))
        assembly = assemble(task, config, splits, strategy, state_for_audit(run, seed) if claim else None)
        found: dict[str, object] = {}
        checks: list[Check] = []
        if claim is not None and assembly.privacy is not None:
            promised, trained = (dataclasses.asdict(m) for m in (claim.mechanism, assembly.privacy.mechanism))
            refuse_other_promise(run, promised=promised, trained=trained)
            checks, found = _run_canaries(assembly, config, claim, num_canaries, seed, num_steps)
        trained_steps = _restored(assembly, config, run)
        if claim is not None:
            refuse_other_promise(run, promised={"steps": claim.steps}, trained={"steps": trained_steps})
        losses = _losses(assembly)
    membership = membership_figures(losses["train"], losses["test"], seed=seed)
    if "validation" in losses:
        membership["validation"] = membership_figures(losses["train"], losses["validation"], seed=seed)
    bound = max((check.epsilon_lower_bound for check in checks), default=None)
    content: dict[str, object] = {
        "claimed_epsilon": None if claim is None else _for_json(claim.epsilon),
        "delta": None if claim is None else claim.delta,
        "epsilon_lower_bound": bound,
        "consistent": not any(check.is_violated for check in checks),
        "verdict": _verdict(checks, claim),
        "seed": seed,
        "canaries": found,
        "membership": membership,
        "not_private": list(NOT_PRIVATE),
    }
    run.write_json("audit.json", content)
    write_audit_report(run.path, audit=content, curve=roc_points(losses["train"], losses["test"]))
    return {"run_dir": str(run.path), **content}


def print_audit(content: dict[str, object]) -> None:
    """A summary on stderr and one JSON object as the last line of stdout.

    Raises:
        GateError: The claim is contradicted.
    """
    membership = cast(dict[str, dict[str, float]], content["membership"])
    auc, advantage, rare = (membership[name] for name in ("auc", "advantage", "tpr_at_1_fpr"))
    lines = [
        str(content["verdict"]),
        f"Membership by the loss: AUC {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}), advantage "
        f"{advantage['value']:.3f} (chance alone: up to {membership['advantage_by_chance']:.3f}), true positives at "
        f"1 % false ones {100 * rare['value']:.1f} %.",
    ]
    control = cast(dict[str, dict[str, float]], membership.get("validation") or {}).get("auc")
    if control is not None:
        lines.append(
            f"Against the validation split instead of the test split: AUC {control['value']:.3f} "
            f"({control['low']:.3f} to {control['high']:.3f})."
        )
    lines.append(f"{content['run_dir']}/audit.html shows it; its membership figures are not private.")
    print("\n".join(lines), file=sys.stderr)
    names = ("run_dir", "claimed_epsilon", "delta", "epsilon_lower_bound", "consistent")
    print(json.dumps({
        **{name: content[name] for name in names},
        "membership_auc": auc["value"],
        "membership_advantage": advantage["value"],
        "membership_tpr_at_1_fpr": rare["value"],
        "membership_auc_validation": None if control is None else control["value"],
    }, ensure_ascii=False))  # fmt: skip
    if not content["consistent"]:
        raise GateError(str(content["verdict"]))


def _run_canaries(
    assembly: Assembly, config: RunConfig, claim: Claim, num_canaries: int, seed: int, num_steps: int | None
) -> tuple[list[Check], dict[str, object]]:
    """The checks, and what audit.json says of them."""
    from tfbig.gradients.private.accounting import epsilon
    from tfbig.gradients.private.audit import CONFIDENCE, check_claims, telling_steps
    from tfbig.gradients.private.canaries import run_canaries
    from tfbig.gradients.private.rule import PrivateRule

    learner = assembly.learner
    rule = cast(PrivateRule, learner.rule)
    steps = min(num_steps or claim.steps, claim.steps)
    early = telling_steps(claim.mechanism, steps, num_canaries=num_canaries // 2, delta=claim.delta)
    log.info("sending %d canaries through %d steps of the run's rule", num_canaries, steps)
    scores = run_canaries(
        rule,
        assembly.objective.losses,
        learner.network,
        labels=assembly.splits.train.labels,
        num_canaries=num_canaries,
        plan=_plan(assembly, num_canaries),
        checkpoints=sorted({early, steps}),
        clip_norm=lambda: float(rule.bound.norm()),
        expected_batch=config.data.batch_size,
        physical_batch_size=assembly.physical_batch_size,
        set_step=learner.optimizer.iterations.assign,
        is_plan_secret=config.dp.sampling == "poisson",
        seed=seed,
    )
    claims = {
        count: epsilon(claim.mechanism, count, delta=claim.delta, accountant=claim.accountant)
        for count in (early, steps)
    }
    if steps == claim.steps:
        claims[steps] = claim.epsilon
    checks = check_claims(scores.scores, scores.included, claims=claims, delta=claim.delta)
    return checks, {
        "num_canaries": sum(len(included) for included in scores.included.values()),
        "steps": steps,
        "confidence": CONFIDENCE,
        "clipped_share": scores.clipped_share,
        "checks": [check.as_json() for check in checks],
    }


def _plan(assembly: Assembly, num_canaries: int) -> Plan:
    """The run's own plan, over several times as many examples where there are more canaries."""
    from tfbig.data.views import ViewPlan

    drawn = assembly.plan.plan if isinstance(assembly.plan, ViewPlan) else assembly.plan
    plan = cast("PoissonPlan | IndexPlan", drawn)
    times = -(-num_canaries // plan.num_examples)
    return dataclasses.replace(plan, num_examples=times * plan.num_examples, batch_size=times * plan.batch_size)


def _restored(assembly: Assembly, config: RunConfig, run: RunDirectory) -> int:
    """Puts the trained weights into the network, and says after how many steps."""
    from tfbig.training.fit import restore_final

    num_steps = restore_final(assembly, config, run).global_step
    if not num_steps:
        raise EnvironmentFault(f"{run.checkpoints} holds no checkpoint, so there is nothing to audit; put one back.")
    return num_steps


def _losses(assembly: Assembly) -> dict[str, np.ndarray]:
    """Split -> each example's loss by the trained network."""
    splits = assembly.splits
    named: Sequence[tuple[str, Split | None]] = (
        ("train", splits.train), ("test", splits.test), ("validation", splits.validation),
    )  # fmt: skip
    log.info("computing the trained network's losses")
    return {name: _split_losses(assembly, split) for name, split in named if split is not None and len(split)}


def _split_losses(assembly: Assembly, split: Split) -> np.ndarray:
    import numpy as np
    import tensorflow as tf

    from tfbig.data.batches import batches
    from tfbig.data.index_plan import IndexPlan
    from tfbig.data.splits import Batch, Features

    @tf.function(reduce_retracing=True)
    def losses(x: Features, y: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        return assembly.objective.losses(assembly.network, Batch(x, y, weight), training=False)[0]

    plan = IndexPlan(len(split), assembly.physical_batch_size, shuffle=False)
    return np.concatenate([losses(*batch).numpy()[batch[2].numpy() > 0] for batch in batches(split, plan)])


def _verdict(checks: Sequence[Check], claim: Claim | None) -> str:
    if claim is None:
        return "The run was not trained privately, so it claims no epsilon."
    if math.isinf(claim.epsilon):
        return "The run claims an infinite epsilon, which nothing can contradict."
    violated = [check for check in checks if check.is_violated]
    if violated:
        worst = max(violated, key=lambda check: check.epsilon_lower_bound - check.claimed_epsilon)
        return (
            f"The run's claim is contradicted: after {worst.steps} steps it claims epsilon "
            f"{worst.claimed_epsilon:.3g} at delta {claim.delta:g}, but {worst.num_correct} of {worst.num_guesses} "
            f"guesses about {worst.canaries} canaries were right, which shows at least "
            f"{worst.epsilon_lower_bound:.3g} with 95 % confidence; clipping, noise or sampling is broken."
        )
    bound = max(check.epsilon_lower_bound for check in checks)
    text = (
        f"Consistent: the run claims epsilon {claim.epsilon:.3g} at delta {claim.delta:g}, and its canaries show at "
        f"least {bound:.3g} with 95 % confidence."
    )
    if all(check.largest_provable <= check.claimed_epsilon for check in checks):
        most = max(check.largest_provable for check in checks)
        text += (
            f" No number of right guesses could have shown more than {most:.3g}, so this audit cannot contradict the "
            "claim; give more --canaries, if the network trains enough variables for them."
        )
    return text


def _for_json(value: float) -> float | str:
    return value if math.isfinite(value) else "inf"
