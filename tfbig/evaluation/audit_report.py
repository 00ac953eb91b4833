"""audit.html: what the audit of a run found, and what that does and does not mean.

Made from the content of audit.json and the curve of the membership attack. The chart is in charts.py, the frame in
page.py; used by pipelines/_audit.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from tfbig.evaluation import charts
from tfbig.evaluation.page import facts, page, section, table
from tfbig.evaluation.record import counted, mapping
from tfbig.training.run_directory import RunDirectory

NOT_PRIVATE = (
    "The membership figures and their curve are computed on the private training examples without noise: audit.json "
    "and audit.html are not covered by the run's promise, and are not to be published with it.",
    "The canary figures read no private example: canaries are made up, and the rest of the data is left empty.",
    "A lower bound is evidence, not a promise: it says that epsilon is at least so much. That it is low does not show "
    "that a run is private; only a bound above the claim shows something, namely that the claim is wrong.",
)
_KINDS = {"input": "inputs, clipped by the engine", "direction": "directions, added to the clipped sum"}


def write_audit_report(run_dir: Path, *, audit: Mapping[str, object], curve: Sequence[tuple[float, float]]) -> Path:
    """Writes the page.

    Args:
        run_dir: The run's folder.
        audit: The content of audit.json.
        curve: (false, true) positive rates of the membership attack.

    Returns:
        The path of audit.html.

    Raises:
        EnvironmentFault: The folder cannot be written.
    """
    title = f"Audit of {run_dir.resolve().name}"
    notes = "".join(f"<li>{escape(sentence)}</li>" for sentence in NOT_PRIVATE)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(str(audit["verdict"]))}</p>',
        _cards(audit),
        f'<div class="warnings"><b>To know before reading on</b><ul>{notes}</ul></div>',
        _canaries(audit),
        _membership(audit, curve),
    ]
    RunDirectory(run_dir).write_text("audit.html", page(title, body))
    return run_dir / "audit.html"


def _cards(audit: Mapping[str, object]) -> str:
    membership = mapping(audit["membership"])
    figures = {name: mapping(membership[name]) for name in ("auc", "advantage", "tpr_at_1_fpr")}
    cells = [
        ("Claimed epsilon", _number(audit["claimed_epsilon"]), f"delta {_general(audit['delta'])}"),
        ("Lower bound", _number(audit["epsilon_lower_bound"]), "95 % confidence, all checks together"),
        *(
            (name, _number(figure["value"]), f"{_number(figure['low'])} to {_number(figure['high'])}")
            for name, figure in zip(("Membership AUC", "Advantage", "TPR at 1 % FPR"), figures.values(), strict=True)
        ),
    ]
    if audit["claimed_epsilon"] is None:
        cells = cells[2:]
    shown = "".join(
        f'<div class="card"><div class="title">{name}</div><div class="value">{value}</div>'
        f'<div class="range">{detail}</div></div>'
        for name, value, detail in cells
    )
    return f'<div class="cards">{shown}</div>'


def _canaries(audit: Mapping[str, object]) -> str:
    canaries = mapping(audit["canaries"])
    checks = canaries.get("checks")
    if not isinstance(checks, list):
        return ""
    note = (
        f"{canaries['num_canaries']} canaries took part by a fair coin each in one run of the rule that trained this "
        f"network, over {counted(canaries['steps'], 'step')}; whoever sees only the noisy gradients guesses which "
        "(Steinke, Nasr and Jagielski 2023). Too many right guesses contradict the claim. A bound cannot exceed what "
        "it would be were all guesses right; where that is below the claim, the check could not have failed, and more "
        "canaries are needed."
    )
    rows = [
        [
            escape(_KINDS.get(str(check["canaries"]), str(check["canaries"]))), str(check["steps"]),
            f"{check['num_correct']} of {check['num_guesses']}", _number(check["epsilon_lower_bound"]),
            _number(check["largest_provable"]), _number(check["claimed_epsilon"]),
        ]
        for check in checks
    ]  # fmt: skip
    head = ["Canaries", "Steps", "Right guesses", "Epsilon at least", "Were all right", "Claimed"]
    shown = facts([("input canaries whose gradient is clipped", f"{100 * _float(canaries['clipped_share']):.0f} %")])
    return section("Canaries", table(head, rows, numeric=range(1, 6)), shown, note=note)


def _membership(audit: Mapping[str, object], curve: Sequence[tuple[float, float]]) -> str:
    membership = mapping(audit["membership"])
    note = (
        "Whoever knows an example and its loss guesses that the network was trained on it where the loss is below a "
        "threshold. On the dashed line that is guessing. Training and test examples may differ by more than having "
        "been trained on, and the attack then sees that difference too; a validation split that was drawn from the "
        "training data does not have it. Stronger attacks exist, so a low figure proves nothing."
    )
    by_validation = mapping(membership.get("validation"))
    shown = facts([
        ("training examples", membership["num_members"]),
        ("test examples", membership["num_others"]),
        ("mean loss, training", _number(membership["mean_loss_of_members"])),
        ("mean loss, test", _number(membership["mean_loss_of_others"])),
        ("advantage that chance exceeds once in 20 times", _number(membership["advantage_by_chance"])),
        *[("AUC against the validation split", _number(mapping(by_validation.get("auc")).get("value")))][
            : 1 if by_validation else 0
        ],
    ])
    chart = charts.roc_chart(curve, label="Membership inference: true against false positive rate")
    return section("Membership inference", f'<div class="pair"><div>{chart}</div><div>{shown}</div></div>', note=note)


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–" if value is None else escape(str(value))


def _general(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else "–"


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
