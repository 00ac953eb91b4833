"""What a run wrote down about itself: its files, read once, and the facts that page and card share.

A file that is missing is an empty record, never a guess. Used by report.py and model_card.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tfbig.errors import DataError

# The order in which figures are shown, and what a person calls them.
METRIC_TITLES = {
    "accuracy": "Accuracy",
    "exact_match": "Exact match",
    "balanced_accuracy": "Balanced accuracy",
    "top5_accuracy": "Top-5 accuracy",
    "micro_f1": "Micro F1",
    "macro_f1": "Macro F1",
    "auroc": "AUROC",
    "loss": "Loss",
    "expected_calibration_error": "Calibration error",
}


@dataclass(frozen=True)
class RunRecord:
    """The files of a run directory; what is not there is empty.

    Args:
        name: The folder's name.
        config: config.yaml.
        environment: environment.json.
        status: status.json.
        history: metrics.jsonl, one entry an epoch.
        evaluation: evaluation.json.
        manifest: data_manifest.json.
        privacy: dp.json.
        search: search.json, where the run is a search; its best settings are in `config`.
    """

    name: str
    config: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    status: Mapping[str, object] = field(default_factory=dict)
    history: Sequence[Mapping[str, object]] = ()
    evaluation: Mapping[str, object] = field(default_factory=dict)
    manifest: Mapping[str, object] = field(default_factory=dict)
    privacy: Mapping[str, object] = field(default_factory=dict)
    search: Mapping[str, object] = field(default_factory=dict)

    def setting(self, flag: str) -> object:
        """The value of a dotted flag such as data.source; None where config.yaml has none."""
        return lookup(self.config, flag)

    @property
    def job(self) -> str | None:
        """The job's name; None where config.yaml does not say it."""
        job = self.config.get("job")
        return None if job is None else str(job)

    @property
    def module(self) -> str | None:
        """What `python -m` runs the job by; None where that is not known."""
        module = self.environment.get("module")
        return None if module is None else str(module)

    @property
    def metrics(self) -> dict[str, dict[str, object]]:
        """Name -> value, low, high, in the order to show them."""
        found = mapping(self.evaluation.get("metrics"))
        order = [*METRIC_TITLES, *(name for name in found if name not in METRIC_TITLES)]
        return {name: dict(mapping(found[name])) for name in order if name in found}

    def counts(self) -> dict[str, dict[str, object]]:
        """Split -> class -> examples."""
        splits = mapping(self.manifest.get("splits"))
        return {role: dict(mapping(mapping(facts).get("per_class"))) for role, facts in splits.items()}

    def privacy_warnings(self) -> list[str]:
        """What a reader of a private run's figures has to know."""
        if not self.privacy:
            return []
        return [
            f"Trained with differential privacy, epsilon {self.privacy.get('epsilon')} at delta "
            f"{self.privacy.get('delta')}: that covers the network, not this page. Figures on the training examples, "
            "counts, and what is shown of single examples are exact; do not publish them."
        ]

    def data_warnings(self) -> list[str]:
        """One sentence for each thing in the data that a reader of the figures has to know."""
        duplicates = mapping(self.manifest.get("duplicates"))
        warnings = []
        for pair, count in mapping(duplicates.get("across")).items():
            if count:
                one, other = pair.split("/")
                warnings.append(f"{counted(count, 'example')} of {other} with the same content as one of {one}.")
        warnings += [
            f"{counted(count, 'example')} of {role} with the same content as another one of {role}."
            for role, count in mapping(duplicates.get("within")).items()
            if count
        ]
        unreadable = mapping(self.manifest.get("unreadable"))
        if unreadable.get("count"):
            reasons = mapping(unreadable.get("reasons"))
            first = "".join(f", such as {name} ({reason})" for name, reason in list(reasons.items())[:1])
            warnings.append(f"{counted(unreadable['count'], 'unreadable file')} left out{first}.")
        ignored = mapping(self.manifest.get("ignored"))
        if ignored.get("count"):
            warnings.append(f"{counted(ignored['count'], 'file')} ignored that cannot be an example.")
        return warnings


def read_record(run_dir: Path) -> RunRecord:
    """Reads what a run directory holds.

    Raises:
        DataError: A file is there and cannot be read.
    """
    search = _read(run_dir / "search.json", json.loads)
    return RunRecord(
        name=run_dir.resolve().name,
        config=_with_settings(_read(run_dir / "config.yaml", yaml.safe_load), mapping(search.get("settings"))),
        environment=_read(run_dir / "environment.json", json.loads),
        status=_read(run_dir / "status.json", json.loads),
        history=_read_lines(run_dir / "metrics.jsonl"),
        evaluation=_read(run_dir / "evaluation.json", json.loads),
        manifest=_read(run_dir / "data_manifest.json", json.loads),
        privacy=_read(run_dir / "dp.json", json.loads),
        search=search,
    )


def _with_settings(config: Mapping[str, object], settings: Mapping[str, object]) -> Mapping[str, object]:
    """The configuration of the network that a search chose."""
    changed = dict(config)
    for flag, value in settings.items():
        group, _, name = flag.partition(".")
        changed[group] = {**mapping(changed.get(group)), name: value}
    return changed


def lookup(tree: Mapping[str, object], flag: str) -> object:
    """The value at a dotted path; None where there is none."""
    value: object = tree
    for part in flag.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def mapping(value: object) -> Mapping[str, object]:
    """The value where it is a mapping, an empty one otherwise."""
    return value if isinstance(value, Mapping) else {}


def figure(value: object, *, digits: int = 3) -> str:
    """A measured number as text, "not measured" where there is none."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "not measured"


def counted(count: object, noun: str) -> str:
    """A number of things: 1 epoch, 2 epochs."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def leaves(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """The dotted flags of a nested configuration and their values."""
    flat: list[tuple[str, object]] = []
    for name, value in tree.items():
        flat += leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return flat


def _read(path: Path, parse: Callable[[str], object]) -> Mapping[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    try:
        content = parse(text)
    except (ValueError, yaml.YAMLError) as error:
        raise _unreadable(path, error) from error
    if content is not None and not isinstance(content, Mapping):
        raise DataError(f"{path} must hold names and values, but holds a {type(content).__name__}; make it again.")
    return content or {}


def _read_lines(path: Path) -> list[Mapping[str, object]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(mapping(json.loads(line)))
        except ValueError as error:
            raise _unreadable(path, error) from error
    return rows


def _unreadable(path: Path, error: Exception) -> DataError:
    sentence = " ".join(str(error).split())
    return DataError(f"{path} cannot be read ({sentence}); remove it to go without it, or run the evaluation again.")
