"""report.html: one self-contained page that tells a person how good the network is and where it fails.

Made from an evaluation and the run's own files; numbers of the page are those of evaluation.json. Letters
in shapes: N examples, C classes. The charts are in charts.py, the frame in page.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from tfbig.evaluation import charts
from tfbig.evaluation.evaluate import Evaluation, encodable, joined
from tfbig.evaluation.page import facts, page, section, table, thumbnail
from tfbig.evaluation.record import METRIC_TITLES, RunRecord, counted, leaves, mapping, read_record
from tfbig.evaluation.search_report import search_section
from tfbig.training.run_directory import RunDirectory

_NUM_WORST = 16
_NUM_PAIRS = 10
# Above this many classes tables start with the worst instead of keeping the classes' order.
_MAX_IN_ORDER = 30
# More rows than this nobody reads, and ten thousand of them make a page of megabytes.
_MAX_LISTED = 1000
# A confusion matrix of up to this many classes leaves room for a table beside it.
_MAX_BESIDE = 12
_SHARES = ("accuracy", "exact_match", "balanced_accuracy", "top5_accuracy")
_NOT_CURVES = ("epoch", "step", "seconds", "learning_rate")


def write_report(
    run_dir: Path,
    *,
    evaluation: Evaluation,
    pictures: Callable[[int], bytes] | None,
    history: Sequence[Mapping[str, object]],
) -> Path:
    """Writes the page.

    Args:
        run_dir: The run's folder; config.yaml, environment.json, status.json and data_manifest.json are read
            from it where they are there.
        evaluation: Of the test split.
        pictures: Index of an example -> its encoded picture; None where the examples are no pictures.
        history: One entry an epoch, as in metrics.jsonl.

    Returns:
        The path of report.html.

    Raises:
        DataError: A file of the run cannot be read.
        EnvironmentFault: The folder cannot be written.
    """
    record = read_record(run_dir)
    title = f"{record.job or record.name} on {record.setting('data.source') or 'its data'}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(_summary(record, evaluation, history))}</p>',
        _cards(evaluation.report),
        _warnings(record, evaluation.report),
        _curves(history),
        search_section(record.search),
        _confusion(evaluation.report),
        _worst(evaluation, pictures),
        _calibration(evaluation.report),
        _per_class(evaluation.report),
        _data(record),
        section("Configuration", facts(leaves(record.config))),
        section("Environment", facts(leaves(record.environment))),
        f"<footer>{escape(_footer(evaluation.report))}</footer>",
    ]
    RunDirectory(run_dir).write_text("report.html", encodable(page(title, body)))
    return run_dir / "report.html"


def _rows(value: object) -> list[Mapping[str, object]]:
    return [mapping(row) for row in value] if isinstance(value, list) else []


def _summary(record: RunRecord, evaluation: Evaluation, history: Sequence[Mapping[str, object]]) -> str:
    num_classes = evaluation.probabilities.shape[1]
    parts = [f"{len(evaluation.labels):,} test examples of {num_classes} classes"]
    if record.setting("model.backbone"):
        parts.append(f"backbone {record.setting('model.backbone')}, mode {record.setting('adapt.mode')}")
    if history:
        parts.append(counted(len(history), "epoch"))
    if record.status.get("state") not in (None, "done", "running"):
        parts.append(f"the run is {record.status['state']}")
    if record.status.get("finished"):
        parts.append(f"finished {record.status['finished']}")
    return " · ".join(map(str, parts))


def _footer(report: Mapping[str, object]) -> str:
    interval = mapping(report.get("interval"))
    return (
        f"Intervals hold 95 % of {interval.get('resamples')} bootstrap resamples of the test examples; they say "
        "nothing about other data, or about training again. Loss is in nats."
    )


def _cards(report: Mapping[str, object]) -> str:
    metrics = mapping(report.get("metrics"))
    return f'<div class="cards">{"".join(_card(n, mapping(metrics[n])) for n in METRIC_TITLES if n in metrics)}</div>'


def _card(name: str, metric: Mapping[str, object]) -> str:
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    detail, bar, shown = escape(str(metric.get("reason", ""))), "", "–"
    if isinstance(value, float):
        shown = _figure(name, value)
    if isinstance(value, float) and isinstance(low, float) and isinstance(high, float):
        detail = f"{_figure(name, low).removesuffix(' %')} to {_figure(name, high)}"
        bar = "" if name in ("loss", "expected_calibration_error") else charts.interval_bar(value, low, high)
    return (
        f'<div class="card"><div class="title">{METRIC_TITLES[name]}</div><div class="value">{shown}</div>{bar}'
        f'<div class="range">{detail}</div></div>'
    )


def _figure(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name in _SHARES else f"{value:.3f}"


def _warnings(record: RunRecord, report: Mapping[str, object]) -> str:
    sentences = record.privacy_warnings() + record.data_warnings()
    for name, metric in mapping(report.get("metrics")).items():
        note = mapping(metric).get("note") or mapping(metric).get("reason")
        if note:
            sentences.append(f"{METRIC_TITLES.get(name, name)}: {note}.")
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<div class="warnings"><b>To know before reading on</b><ul>{items}</ul></div>' if items else ""


def _curves(history: Sequence[Mapping[str, object]]) -> str:
    names = [name for row in history for name in row if name not in _NOT_CURVES]
    bases = dict.fromkeys(name.removeprefix("val_") for name in names)
    best = min(_points(history, "val_loss"), key=lambda point: point[1], default=None)
    drawn = []
    for base in bases:
        lines = {"training": _points(history, base), "validation": _points(history, f"val_{base}")}
        label = f"{base.replace('_', ' ').capitalize()} by epoch"
        chart = charts.line_chart(lines, label=label, mark=best[0] if best else None)
        drawn.append(f"<div><h3>{escape(label)}</h3>{chart}</div>" if chart else "")
    if not any(drawn):
        return ""
    legend = '<div class="legend"><span><i></i>training</span><span><i class="a"></i>validation</span></div>'
    note = f"The dotted line marks epoch {best[0]:g}, with the lowest validation loss, {best[1]:.4g}." if best else ""
    return section("Learning curves", legend, f'<div class="pair">{"".join(drawn)}</div>', note=note)


def _points(history: Sequence[Mapping[str, object]], name: str) -> list[charts.Point]:
    points = []
    for row in history:
        epoch, value = row.get("epoch"), row.get(name)
        if isinstance(epoch, int) and isinstance(value, (int, float)) and math.isfinite(value):
            points.append((float(epoch), float(value)))
    return points


def _confusion(report: Mapping[str, object]) -> str:
    counts, cells = charts.drawn_confusions(report), report.get("confusions")
    classes = _rows(report.get("per_class"))
    names = [str(row["name"]) for row in classes]
    if counts is None and isinstance(cells, list):
        pairs = _pairs(np.asarray(cells), classes)
        return section("Confusion matrix", pairs, note="Too many classes to draw; evaluation.json has all confusions.")
    if counts is None:
        return ""
    note = (
        "Rows are the true classes, columns what the network said. Blue is right, orange is wrong; the stronger the "
        "colour, the larger the share of the row."
    )
    true, said = np.nonzero(counts)
    pairs = _pairs(np.stack([true, said, counts[true, said]], axis=1), classes)
    chart = charts.confusion_chart(counts, names)
    if pairs and len(names) <= _MAX_BESIDE:
        return section("Confusion matrix", f'<div class="pair"><div>{chart}</div><div>{pairs}</div></div>', note=note)
    return section("Confusion matrix", chart, pairs, note=note)


def _pairs(cells: np.ndarray, classes: Sequence[Mapping[str, object]]) -> str:
    """The most frequent mistakes, of (K, 3) cells of the confusion matrix: true, predicted, count."""
    misses = cells[cells[:, 0] != cells[:, 1]]
    rows = []
    for true, said, count in misses[np.argsort(-misses[:, 2], kind="stable")[:_NUM_PAIRS]]:
        one, other = classes[true], classes[said]
        share = f"{100 * count / int(str(one['support'])):.1f} %"
        rows.append([escape(str(one["name"])), escape(str(other["name"])), str(count), share])
    if len(classes) == 2 or not rows:
        return ""
    head = ["True", "Predicted", "Examples", "Share of true"]
    return f'<h3 class="below">Most confused</h3>{table(head, rows, numeric=(2, 3))}'


def _worst(evaluation: Evaluation, pictures: Callable[[int], bytes] | None) -> str:
    losses, targets, decisions = evaluation.losses, evaluation.targets, evaluation.decisions
    names = [str(row["name"]) for row in _rows(evaluation.report.get("per_class"))]
    worst = [int(i) for i in np.argsort(-losses, kind="stable")[:_NUM_WORST]]
    num_wrong = int((targets != decisions).any(axis=1).sum())
    note = (
        f"The {len(worst)} examples with the highest loss. {num_wrong:,} of {len(losses):,} test examples are wrong; "
        "predictions.csv has them all."
    )
    title = "Worst mistakes" if num_wrong else "Hardest examples"
    cells = []
    for i in worst:
        said = escape(_classes(decisions[i], names))
        verdict = f'<span class="{"right" if (targets[i] == decisions[i]).all() else "wrong"}">{said}</span>'
        cells.append((i, escape(_classes(targets[i], names)), verdict, evaluation.probabilities[i].max()))
    if pictures is None:
        rows = [
            [escape(str(evaluation.names[i])), true, said, f"{p:.3f}", f"{losses[i]:.3f}"] for i, true, said, p in cells
        ]
        head = ["Example", "True", "Predicted", "Probability", "Loss"]
        return section(title, table(head, rows, numeric=(3, 4)), note=note)
    cards = "".join(
        f'<figure><div class="picture">{thumbnail(pictures, i)}</div><figcaption><div>{said} {100 * p:.1f} %</div>'
        f'<div>true {true}</div><div class="file">{escape(str(evaluation.names[i]))}</div></figcaption></figure>'
        for i, true, said, p in cells
    )
    return section(title, f'<div class="gallery">{cards}</div>', note=note)


def _classes(chosen: np.ndarray, names: Sequence[str]) -> str:
    return joined(chosen, names, between=", ") or "no class"


def _calibration(report: Mapping[str, object]) -> str:
    bins = _rows(report.get("calibration"))
    legend = (
        '<div class="legend"><span><i class="a"></i>share that is right</span>'
        '<span><i class="b"></i>beyond what was said</span><span><i class="m"></i>missing to it</span></div>'
    )
    note = (
        "Across: the probability that the network gave its answer. Up: how often such answers are right. On the dashed "
        "line its probabilities can be taken at their word. Below: how many answers fall in each bin."
    )
    chart = charts.calibration_chart(bins)
    text = f'<div><p class="soft">{escape(note)}</p>{legend}</div>'
    return section("Calibration", f'<div class="pair">{text}<div>{chart}</div></div>')


def _per_class(report: Mapping[str, object]) -> str:
    classes = _rows(report.get("per_class"))
    note = ""
    if len(classes) > _MAX_IN_ORDER:
        classes.sort(key=lambda row: (row["f1"] is None, row["f1"]))
        note = "Lowest F1 first."
    if len(classes) > _MAX_LISTED:
        note = f"The {_MAX_LISTED} with the lowest F1, of {len(classes):,}; evaluation.json has them all."
    rows = []
    for row in classes[:_MAX_LISTED]:
        f1 = row["f1"]
        meter = f'<span class="meter"><b style="width:{100 * f1:.0f}%"></b></span>' if isinstance(f1, float) else ""
        rows.append([
            escape(str(row["name"])), f"{row['support']:,}", _or_dash(row["precision"]), _or_dash(row["recall"]),
            meter + _or_dash(f1), _or_dash(row["auroc"]),
        ])
    head = ["Class", "Examples", "Precision", "Recall", "F1", "AUROC"]
    return section("Classes", table(head, rows, numeric=range(1, 6)), note=note)


def _or_dash(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "–"


def _data(record: RunRecord) -> str:
    counts = record.counts()
    if not counts:
        return ""
    splits = mapping(record.manifest.get("splits"))
    totals = [f"{mapping(facts).get('examples', 0):,}" for facts in splits.values()]
    origins = [escape(str(mapping(facts).get("origin", ""))) for facts in splits.values()]
    classes = list(dict.fromkeys(name for per_class in counts.values() for name in per_class))
    if len(classes) > _MAX_IN_ORDER:
        rows = [["examples of the smallest class", *(str(min(c.values())) for c in counts.values())],  # type: ignore
                ["examples of the largest class", *(str(max(c.values())) for c in counts.values())]]  # type: ignore
    else:
        rows = [[escape(name), *(f"{per_class.get(name, 0):,}" for per_class in counts.values())] for name in classes]
    rows += [["<b>all</b>", *(f"<b>{total}</b>" for total in totals)], ["origin", *origins]]
    return section("Data", table(["Class", *counts], rows, numeric=range(1, len(counts) + 1)))
