"""MODEL_CARD.md, made only from a run's files: what was not measured says so.

Sections after Mitchell et al. 2019, Model Cards for Model Reporting (arXiv 1810.03993). The last writer of
a run; record.py reads the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfbig.evaluation.evaluate import encodable
from tfbig.evaluation.record import METRIC_TITLES, RunRecord, counted, figure, mapping, read_record
from tfbig.training.run_directory import RunDirectory

_NOT_MEASURED = "not measured"
_NOT_STATED = "not stated"


def write_model_card(run_dir: Path) -> Path:
    """Writes the card of a run.

    Args:
        run_dir: Holds any of config.yaml, environment.json, status.json, metrics.jsonl, evaluation.json,
            data_manifest.json, dp.json.

    Returns:
        The path of MODEL_CARD.md.

    Raises:
        DataError: A file of the run cannot be read.
        EnvironmentFault: The folder cannot be written.
    """
    record = read_record(run_dir)
    sections = {
        "Details": _details(record),
        "Intended use": _intended_use(record),
        "Data": _data(record),
        "Metrics": _metrics(record),
        "Classes": _classes(record),
        "Privacy": _privacy(record),
        "Limits": _limits(record),
        "Reproduce": _reproduce(record),
    }
    text = [f"# Model card: {_plain(record.name)}", "", "Written by tfbig from the files of the run alone."]
    for title, lines in sections.items():
        text += ["", f"## {title}", "", *lines]
    RunDirectory(run_dir).write_text("MODEL_CARD.md", encodable("\n".join(text) + "\n"))
    return run_dir / "MODEL_CARD.md"


def _plain(value: object) -> str:
    """Text that Markdown shows as it is, in a table cell too."""
    one_line = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", one_line)


def _stated(value: object, otherwise: str = _NOT_STATED) -> str:
    return otherwise if value is None or value == "" else _plain(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _details(record: RunRecord) -> list[str]:
    packages = mapping(record.environment.get("packages"))
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    last: Mapping[str, object] = record.history[-1] if record.history else {}
    trained = f"{counted(last.get('epoch'), 'epoch')}, {counted(last.get('step'), 'step')}" if last else _NOT_MEASURED
    devices = record.environment.get("devices")
    return _table(["what", "value"], [
        ["job", _stated(record.job)],
        ["backbone", _stated(record.setting("model.backbone"))],
        ["adaptation", _stated(record.setting("adapt.mode"))],
        ["trained", trained],
        ["training time", f"{figure(last.get('seconds'), digits=0)} s" if "seconds" in last else _NOT_MEASURED],
        ["state of the run", _stated(record.status.get("state"))],
        ["started", _stated(record.status.get("started"))],
        ["finished", _stated(record.status.get("finished"))],
        ["tfbig", _stated(record.environment.get("tfbig"))],
        ["Python", _stated(record.environment.get("python"))],
        ["packages", _stated(versions)],
        ["platform", _stated(record.environment.get("platform"))],
        ["devices", _stated(", ".join(map(str, devices)) if isinstance(devices, list) else None)],
        ["licence", _NOT_STATED],
    ])


def _class_names(record: RunRecord) -> list[str]:
    rows = record.evaluation.get("per_class")
    if isinstance(rows, list):
        return [str(mapping(row).get("name")) for row in rows]
    names = record.manifest.get("class_names")
    return list(map(str, names)) if isinstance(names, list) else []


def _intended_use(record: RunRecord) -> list[str]:
    names = _class_names(record)
    if not names:
        return [f"What it tells apart: {_NOT_STATED}.", f"Who it is for: {_NOT_STATED}."]
    shown = ", ".join(map(_plain, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return [
        f"To tell apart {len(names)} classes: {shown}.",
        "",
        f"Inputs like those of its data, {_stated(record.setting('data.source'))}; "
        f"how it does on others: {_NOT_MEASURED}.",
        "",
        f"Who it is for, and what it must not be used for: {_NOT_STATED}.",
    ]


def _data(record: RunRecord) -> list[str]:
    splits = mapping(record.manifest.get("splits"))
    lines = [f"Source: {_stated(record.setting('data.source'))}. Licence: {_NOT_STATED}.", ""]
    if not splits:
        return [*lines, f"Counts, duplicates and unreadable files: {_NOT_MEASURED}."]
    rows = []
    for role, split in splits.items():
        counts = [count for count in record.counts()[role].values() if isinstance(count, int)]
        spread = f"{min(counts)} to {max(counts)}" if counts else _NOT_MEASURED
        facts = mapping(split)
        rows.append([_plain(role), _stated(facts.get("examples"), _NOT_MEASURED), spread, _stated(facts.get("origin"))])
    lines += _table(["split", "examples", "examples a class", "origin"], rows)
    if not record.privacy:
        # Of a private run nobody may learn it: whoever knows all examples but one could try the last one on it.
        lines += ["", f"Fingerprint: {_stated(record.manifest.get('fingerprint'))}."]
    warnings = [f"- {_plain(warning)}" for warning in record.data_warnings()]
    return [*lines, "", *(warnings or ["No identical files across splits and no unreadable ones were found."])]


def _metrics(record: RunRecord) -> list[str]:
    if not record.metrics:
        return [f"Accuracy: {_NOT_MEASURED}.", f"All other figures: {_NOT_MEASURED}."]
    interval = mapping(record.evaluation.get("interval"))
    rows = []
    for name, metric in record.metrics.items():
        low, high = metric.get("low"), metric.get("high")
        spread = f"{figure(low)} to {figure(high)}" if low is not None else _NOT_MEASURED
        remark = metric.get("reason") or metric.get("note") or ""
        rows.append([_plain(METRIC_TITLES.get(name, name)), figure(metric.get("value")), spread, _plain(remark)])
    return [
        f"On {_stated(record.evaluation.get('num_examples'), 'an unknown number of')} examples of the test split. "
        f"Intervals: 95 %, {_stated(interval.get('resamples'))} bootstrap resamples of the examples.",
        "",
        *_table(["figure", "value", "95 % interval", "remark"], rows),
        "",
        f"Spread over training again with other seeds: {_NOT_MEASURED}.",
    ]


def _classes(record: RunRecord) -> list[str]:
    rows = record.evaluation.get("per_class")
    if not isinstance(rows, list):
        return [f"Figures a class: {_NOT_MEASURED}."]
    columns = ("precision", "recall", "f1", "auroc")
    return _table(
        ["class", "examples", *columns],
        [
            [_plain(row.get("name")), _plain(row.get("support")), *(figure(row.get(column)) for column in columns)]
            for row in map(mapping, rows)
        ],
    )


def _privacy(record: RunRecord) -> list[str]:
    if not record.privacy:
        return ["Trained without differential privacy. How much it reveals of single training examples: not measured."]
    facts = record.privacy
    shown = (
        "epsilon", "delta", "unit", "adjacency", "accountant", "epsilon_rdp", "noise_multiplier", "noise",
        "l2_norm_clip", "clipping", "sampling", "sampling_probability", "batch_size", "steps", "engine", "ledger",
    )  # fmt: skip
    variables = facts.get("trained_variables")
    num_variables = counted(len(variables), "variable") if isinstance(variables, list) else _NOT_STATED
    not_covered = facts.get("not_covered")
    gaps = [f"- {_plain(gap)}" for gap in not_covered] if isinstance(not_covered, list) else [f"- {_NOT_STATED}"]
    files = ", ".join(map(_plain, mapping(facts.get("not_private_files"))))
    return [
        _stated(facts.get("statement")),
        "",
        *_table(["what", "value"], [
            [_plain(name), _stated(facts[name], "none" if name == "ledger" else _NOT_STATED)]
            for name in shown if name in facts
        ]),
        "",
        f"Covered: {num_variables}, which dp.json names, and whatever is computed from them. Not covered:",
        "",
        *gaps,
        "",
        f"Files of the run that are not private: {files or _NOT_STATED}. This card states exact counts.",
    ]


def _limits(record: RunRecord) -> list[str]:
    lines = [
        f"- Other data than the test split, such as another camera, place or time: {_NOT_MEASURED}.",
        f"- Groups of people or circumstances within the data: {_NOT_MEASURED}.",
        f"- Inputs that belong to none of the classes: {_NOT_MEASURED}.",
        f"- Inputs made to mislead it: {_NOT_MEASURED}.",
    ]
    rows = record.evaluation.get("per_class")
    found = map(mapping, rows) if isinstance(rows, list) else ()
    scored = [row for row in found if isinstance(row.get("recall"), float)]
    if scored:
        weakest = min(scored, key=lambda row: float(str(row["recall"])))
        lines.insert(0, f"- Lowest recall: {figure(weakest['recall'])}, for {_plain(weakest.get('name'))}.")
    if record.status.get("state") not in ("done", None):
        lines.insert(0, f"- The run is {_plain(record.status['state'])}: the figures may be of an unfinished network.")
    return lines


def _reproduce(record: RunRecord) -> list[str]:
    if not record.config or not record.module:
        return [f"Command: {_NOT_STATED}."]
    return [
        "With config.yaml of this run, the same data and the same versions:",
        "",
        "```",
        f"python -m {record.module} --config config.yaml --run_dir runs/again",
        "```",
        "",
        f"Seed: {_stated(record.setting('runtime.seed'))}.",
    ]
