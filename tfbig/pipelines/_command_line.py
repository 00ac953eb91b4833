"""The command line of every job: dotted flags over the configuration's dataclasses.

Precedence: defaults < recipes (--config, left to right) < flags. Imports no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
import types
import typing
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, Namespace

from tfbig.config import RunConfig
from tfbig.errors import UsageError
from tfbig.recipes import find_recipe, read_recipe
from tfbig.suggest import closest
from tfbig.training.task import Task

_WIDTH = 120
_TEXT_COLUMN = 42
_OF_THE_SESSION = ("run_dir", "resume", "dry_run")
_EVERYDAY = frozenset(
    "data.source data.dir data.batch_size data.limit data.image_size data.on_bad data.class_weights model.backbone "
    "model.hidden_units model.dropout adapt.mode adapt.unfreeze_last train.epochs train.learning_rate "
    "train.optimizer train.early_stopping_patience train.ema_decay runtime.strategy runtime.precision runtime.seed "
    "dp.target_epsilon dp.noise_multiplier dp.delta dp.l2_norm_clip runtime.offline export.dir run_dir resume "
    "dry_run".split()
)


@dataclass(frozen=True)
class Flag:
    """One setting, as the command line knows it."""

    name: str
    type: object
    default: object
    text: str

    @property
    def is_switch(self) -> bool:
        """Whether the flag alone means true."""
        return bool in (self.type, *typing.get_args(self.type))

    @property
    def kind(self) -> str:
        """Its type in a user's words."""
        return _kind(self.type)


def parse(task: Task, arguments: Sequence[str]) -> RunConfig:
    """The configuration that a command line asks for.

    Args:
        task: Whose flags these are.
        arguments: What follows the job's name; without --help, --print_config and --debug.

    Raises:
        UsageError: An unknown or impossible flag, recipe or value; the message names it.
    """
    known = {flag.name: flag for flag in flags(task)}
    recipes, given = _separate_recipes(list(arguments), known)
    settings: dict[str, object] = {}
    for recipe in recipes:
        settings |= _checked_recipe(task, recipe, known)
    line = [f"--{name}={_as_text(value)}" for name, value in settings.items()] + given
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    for flag in known.values():
        parser.add_argument(f"--{flag.name}", type=flag.type, default=flag.default)
    try:
        return _build(task, parser.parse_args(line))
    except ArgumentError as error:
        raise UsageError(_sentence(str(error), known, line)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def flags(task: Task) -> Iterator[Flag]:
    """Every flag of a job, in the order of --help."""
    top = []
    for group in dataclasses.fields(RunConfig):
        kind = _group_type(task, group.name)
        if kind is None:
            top.append(group)
        else:
            yield from _flags_of(kind, f"{group.name}.", task)
    texts = _texts(RunConfig)
    types_of = typing.get_type_hints(RunConfig)
    for item in top:
        yield Flag(item.name, types_of[item.name], item.default, texts[item.name])


def help_text(task: Task, summary: str, *, everything: bool) -> str:
    """What --help prints: the everyday flags, or all of them."""
    usage = f"usage: python -m {_module_name(task)} [--config RECIPE] [--GROUP.FLAG VALUE] ..."
    lines = [usage, "", summary, ""]
    lines += ["examples:", *(f"  {example}" for example in task.examples), ""]
    group = ""
    for flag in flags(task):
        if not everything and flag.name not in _EVERYDAY and not flag.name.startswith("options."):
            continue
        if (flag.name.split(".")[0] if "." in flag.name else "run") != group:
            group = flag.name.split(".")[0] if "." in flag.name else "run"
            lines.append(f"{group}:")
        default = "" if flag.default is None or flag.is_switch else f" [{flag.default}]"
        value = "" if flag.type is bool else f" {flag.kind}"
        lines.append(_row(f"--{flag.name}{value}", flag.text + default))
    lines += [
        "also:",
        _row("--config RECIPE", "A recipe's name or a YAML file; of several the last wins, and flags win over all."),
        _row("--print_config", "Print the resolved configuration as YAML and stop."),
        _row("--help, --help_all", "The everyday flags, or every flag."),
        _row("--debug", "Show tracebacks."),
    ]
    return "\n".join(lines)


def _row(flag: str, text: str) -> str:
    first, others = f"  {flag}".ljust(_TEXT_COLUMN), " " * _TEXT_COLUMN
    return textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def to_yaml(task: Task, config: RunConfig) -> str:
    """A configuration as a recipe that gives it again."""
    tree = {"job": task.name, **json.loads(json.dumps(dataclasses.asdict(config)))}
    for name in _OF_THE_SESSION:
        tree.pop(name)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _module_name(task: Task) -> str:
    """A job that is not part of tfbig is run by its own module's name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else f"tfbig.pipelines.{task.name}"


def _group_type(task: Task, name: str) -> type | None:
    kind: type = task.options if name == "options" else typing.get_type_hints(RunConfig)[name]
    return kind if dataclasses.is_dataclass(kind) else None


def _flags_of(kind: type, prefix: str, task: Task) -> Iterator[Flag]:
    texts, types_of = _texts(kind), typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        name = prefix + item.name
        yield Flag(name, types_of[item.name], task.defaults.get(name, item.default), texts.get(item.name, ""))


def _texts(kind: type) -> dict[str, str]:
    parsed = docstring_parser.parse(kind.__doc__ or "")
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parsed.params}


def _build(task: Task, parsed: Namespace) -> RunConfig:
    values: dict[str, object] = {}
    for group in dataclasses.fields(RunConfig):
        kind = _group_type(task, group.name)
        content = parsed[group.name]
        values[group.name] = content if kind is None else kind(**vars(content))
    return RunConfig(**values)  # type: ignore[arg-type]


def _separate_recipes(arguments: list[str], known: dict[str, Flag]) -> tuple[list[Path], list[str]]:
    """The recipes, and the flags as --name=value. A path given to --resume brings that run's own configuration."""
    recipes: list[Path] = []
    resumed: list[Path] = []
    given: list[str] = []
    while arguments:
        word = arguments.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"Settings are given as --group.flag VALUE, got {word!r} on its own; see --help.")
        name, equals, value = word[2:].partition("=")
        if name != "config" and name not in known:
            raise UsageError(f"There is no flag --{name}; --help lists them.{_nearest_flag(name, known)}")
        if not equals:
            value = _value_of(name, arguments, known)
        if name == "config":
            recipes.append(find_recipe(value))
            continue
        if name == "resume" and value not in ("auto", "never"):
            resumed = [_stored_config(Path(value).expanduser())]
            given.insert(0, f"--run_dir={value}")
        given.append(f"--{name}={value}")
    if resumed and len({word for word in given if word.startswith("--run_dir=")}) > 1:
        raise UsageError("--resume PATH goes on in that folder; leave out --run_dir, or give the same folder.")
    return resumed + recipes, given


def _value_of(name: str, arguments: list[str], known: dict[str, Flag]) -> str:
    follows = bool(arguments) and not arguments[0].startswith("--")
    if name in known and known[name].is_switch:
        return arguments.pop(0) if follows and arguments[0].lower() in ("true", "false", "auto") else "true"
    if not follows:
        raise UsageError(f"--{name} needs a value.")
    return arguments.pop(0)


def _stored_config(run_dir: Path) -> Path:
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UsageError(f"--resume must be auto, never or the folder of a run, but {run_dir} holds no config.yaml.")
    return path


def _checked_recipe(task: Task, path: Path, known: dict[str, Flag]) -> dict[str, object]:
    settings = read_recipe(path)
    job = settings.pop("job", task.name)
    for name in ("resume", "dry_run"):
        if name in settings:
            raise UsageError(f"The recipe {path} sets {name}, which belongs on the command line as --{name}.")
    if job != task.name:
        raise UsageError(f"The recipe {path} is for the job {job}, not for {task.name}.")
    for name in settings:
        if name not in known:
            hint = _nearest_flag(name, known)
            raise UsageError(f"The recipe {path} sets {name}, which does not exist; --help lists the flags.{hint}")
    return settings


def _nearest_flag(name: str, known: dict[str, Flag]) -> str:
    """' Did you mean --X?': compares whole names, then last parts, so that --epochs finds --train.epochs."""
    last_parts = {flag.rsplit(".", 1)[-1]: flag for flag in known}
    part = closest(name.rsplit(".", 1)[-1], last_parts)
    found = closest(name, known) or (last_parts[part] if part else None)
    return f" Did you mean --{found}?" if found else ""


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sentence(message: str, known: dict[str, Flag], line: Sequence[str]) -> str:
    """Jsonargparse's complaint about a value, in a sentence."""
    for flag in known.values():
        if f'"{flag.name}"' in message or f"--{flag.name}:" in message:
            came = [word.partition("=")[2] for word in line if word.startswith(f"--{flag.name}=")]
            return f"--{flag.name} must be {flag.kind}, got {came[-1] if came else 'nothing'!r}."
    return " ".join(message.split())


def _kind(of: object) -> str:
    words = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false", types.NoneType: "null"}
    if of in words:
        return words[of]  # type: ignore[index]
    arguments = typing.get_args(of)
    if typing.get_origin(of) is typing.Literal:
        return "|".join(arguments)
    if typing.get_origin(of) is tuple:
        return "[" + ",".join(_kind(part) for part in arguments) + "]"
    return "|".join(_kind(part) for part in arguments if part is not types.NoneType)


def print_help(task: Task, *, everything: bool) -> None:
    """Prints --help."""
    module = sys.modules[task.load.__module__]
    summary = (module.__doc__ or "").strip().split("\n\n")[0]
    print(help_text(task, summary, everything=everything))
