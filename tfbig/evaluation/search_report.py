"""A search on the page: its trials as lines across their settings, what each setting decided, and a table.

Made from search.json. Used by report.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from tfbig.evaluation.page import section, table

_LEFT, _TOP, _HEIGHT, _BETWEEN = 62, 34, 210, 150
_MAX_ROWS = 100


def search_section(search: Mapping[str, object]) -> str:
    """The section of a search; empty where there was none.

    Args:
        search: The content of search.json.
    """
    trials, parameters = _rows(search.get("trials")), _rows(search.get("parameters"))
    done = [trial for trial in trials if isinstance(trial.get("score"), float)]
    if not done or not parameters:
        return ""
    num_failed = len(trials) - len(done)
    note = (
        f"{len(trials)} trials by {search.get('tuner')} search, {num_failed} of them failed; the lower the loss on the "
        f"validation examples, the better. Trial {search.get('best')} is the best: its network is judged on this page, "
        "alone of all on the test split, so that the choice among the trials has not seen the test examples. The "
        "choice has seen the validation examples: the best trial's loss on them is too low by what its luck was."
    )
    chart = parallel_chart(parameters, trials)
    return section("Search", chart, _importances(search), _table(search, trials), note=note)


def parallel_chart(parameters: Sequence[Mapping[str, object]], trials: Sequence[Mapping[str, object]]) -> str:
    """Parallel coordinates: an axis a setting, the score at the right, a line a trial, the best one on top.

    Args:
        parameters: Each with name, kind (log, linear or choice) and values (the bounds, or the choices).
        trials: Each with number, values by name, and score; one that failed has a score of None and no end.

    Returns:
        An svg element.
    """
    scores = sorted(score for trial in trials if isinstance(score := trial.get("score"), float))
    score_axis = {"name": "validation loss", "kind": _spread(scores), "values": [scores[0], scores[-1]]}
    axes = [*parameters, score_axis]
    parts = [_axis(axis, _LEFT + _BETWEEN * index) for index, axis in enumerate(axes)]
    for trial in sorted(trials, key=lambda trial: _worst_first(trial.get("score"))):
        parts.append(_line(parameters, score_axis, trial, scores))
    width, height = _LEFT + _BETWEEN * (len(axes) - 1) + 70, _TOP + _HEIGHT + 24
    return (
        f'<div class="scroll"><svg class="chart" viewBox="0 0 {width} {height}" style="min-width:{0.7 * width:.0f}px;'
        f'max-width:{1.15 * width:.0f}px" role="img" aria-label="Settings and validation loss of each trial">'
        f"{''.join(parts)}</svg></div>"
    )


def _worst_first(score: object) -> float:
    return -score if isinstance(score, float) else -math.inf


def _spread(scores: Sequence[float]) -> str:
    return "log" if scores[0] > 0 and scores[-1] / scores[0] > 8 else "linear"


def _place(axis: Mapping[str, object], value: object) -> float:
    """How high on its axis a value is, 0 to 1."""
    values = axis["values"]
    if not isinstance(values, list):
        return 0.5
    if axis["kind"] == "choice":
        return values.index(value) / max(1, len(values) - 1) if value in values else 0.5
    low, high, here = (float(number) for number in (values[0], values[-1], value))  # type: ignore[arg-type]
    if axis["kind"] == "log":
        low, high, here = math.log(low), math.log(high), math.log(here)
    return (here - low) / (high - low) if high > low else 0.5


def _y(share: float) -> float:
    return _TOP + _HEIGHT * (1 - share)


def _axis(axis: Mapping[str, object], x: float) -> str:
    values = axis["values"] if isinstance(axis["values"], list) else []
    ticks = list(values)
    if axis["kind"] != "choice":
        low, high = float(values[0]), float(values[-1])
        ticks = [low, math.sqrt(low * high) if axis["kind"] == "log" else (low + high) / 2, high]
    texts = "".join(
        f'<text class="tick" x="{x - 7}" y="{_y(_place(axis, tick)):.1f}" text-anchor="end" '
        f'dominant-baseline="central">{escape(_shown(tick))}</text>'
        for tick in ticks
    )
    return (
        f'<path class="axis" d="M{x} {_TOP}V{_TOP + _HEIGHT}"/>{texts}'
        f'<text class="axis-name" x="{x}" y="{_TOP - 16}" text-anchor="middle">{escape(str(axis["name"]))}</text>'
    )


def _line(
    parameters: Sequence[Mapping[str, object]],
    score_axis: Mapping[str, object],
    trial: Mapping[str, object],
    scores: Sequence[float],
) -> str:
    values, score = trial["values"], trial.get("score")
    if not isinstance(values, Mapping):
        return ""
    points = [(_LEFT + _BETWEEN * i, _y(_place(axis, values.get(axis["name"])))) for i, axis in enumerate(parameters)]
    kind, width, title = "var(--miss)", 1.2, f"trial {trial['number']} failed: {trial.get('reason', '')}"
    strength, dashes = 0.9, ' stroke-dasharray="3 3"'
    if isinstance(score, float):
        points.append((_LEFT + _BETWEEN * len(parameters), _y(_place(score_axis, score))))
        # From the best to the worst the lines fade.
        rank = scores.index(score) / max(1, len(scores) - 1)
        kind, strength, dashes = ("var(--accent)", 1.0 - 0.85 * rank, "")
        width, title = (3.0 if rank == 0 else 1.5), f"trial {trial['number']}: {score:.4g}"
    path = "".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return (
        f'<path d="{path}" fill="none" stroke="{kind}" stroke-width="{width}" stroke-opacity="{strength:.2f}"{dashes}>'
        f"<title>{escape(title)}</title></path>"
    )


def _importances(search: Mapping[str, object]) -> str:
    rows = []
    found = sorted(_rows(search.get("importance")), key=lambda row: -_float(row.get("share")))
    for row in found:
        share, chance = row.get("share"), row.get("chance")
        if not isinstance(share, float) or not isinstance(chance, float):
            rows.append([escape(str(row["name"])), "–", "–", "too few trials to say"])
            continue
        verdict = "yes" if share > chance else "not more than chance gives"
        meter = f'<span class="meter"><b style="width:{100 * share:.0f}%"></b></span>{share:.2f}'
        rows.append([escape(str(row["name"])), meter, f"{chance:.2f}", verdict])
    about = (
        '<p class="soft">Importance is the share of the variance of the ranks of the losses that a setting alone '
        "explains (a parabola over a range, the mean of each choice); combinations of settings are not seen, failed "
        "trials are left out. A setting without any influence stays below the figure under chance in 19 of 20 searches "
        "of this size.</p>"
    )
    return f"<h3>Importance</h3>{about}" + table(["setting", "importance", "chance", "an influence?"], rows)


def _table(search: Mapping[str, object], trials: Sequence[Mapping[str, object]]) -> str:
    names = [str(parameter["name"]) for parameter in _rows(search.get("parameters"))]
    head = ["trial", *(name.split(".")[-1] for name in names), "validation loss", "accuracy", "seconds"]
    rows = []
    for trial in sorted(trials, key=lambda trial: -_worst_first(trial.get("score")))[:_MAX_ROWS]:
        values = trial["values"] if isinstance(trial["values"], Mapping) else {}
        score, facts = trial.get("score"), trial.get("facts")
        accuracy = facts.get("validation_accuracy") if isinstance(facts, Mapping) else None
        rows.append([
            str(trial["number"]),
            *(escape(_shown(values.get(name))) for name in names),
            f"{score:.4g}" if isinstance(score, float) else f"failed: {escape(str(trial.get('reason', '')))}",
            f"{accuracy:.3f}" if isinstance(accuracy, float) else "–",
            f"{_float(trial.get('seconds')):.1f}",
        ])  # fmt: skip
    return "<h3>Trials</h3>" + table(head, rows, numeric=[0, len(head) - 1])


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "none" if value is None else str(value)


def _rows(value: object) -> list[Mapping[str, object]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
