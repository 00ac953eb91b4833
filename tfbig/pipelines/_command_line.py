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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, Namespace

from tfbig.config import RunConfig
from tfbig.errors import UsageError
from tfbig.paths import expanded
from tfbig.recipes import dotted, find_recipe, read_recipe, read_value
from tfbig.search.space import KINDS
from tfbig.suggest import closest
from tfbig.training.task import Task

_WIDTH = 120
_TEXT_COLUMN = 42
_OF_THE_SESSION = ("run_dir", "resume", "dry_run")
_EVERYDAY = frozenset(
    "data.source data.dir data.batch_size data.limit data.image_size data.on_bad data.class_weights model.backbone "
    "model.hidden_units model.dropout adapt.mode adapt.unfreeze_last train.epochs train.learning_rate "
    "train.optimizer train.early_stopping_patience train.ema_decay runtime.strategy runtime.precision runtime.seed "
    "dp.target_epsilon dp.noise_multiplier dp.delta dp.l2_norm_clip tune.max_trials tune.tuner tune.space "
    "runtime.offline export.dir run_dir resume dry_run".split()
)


Space: typing.TypeAlias = dict[str, dict[str, list]]
_SPACE = "tune.space"


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
    space: Space = {}
    for recipe in recipes:
        space, others = _space_taken_out(space, _checked_recipe(task, recipe, known))
        settings |= others
    line = [f"--{name}={_as_text(value)}" for name, value in settings.items()]
    for word in given:
        name, _, value = word[2:].partition("=")
        if _is_of_space(name):
            space, _ = _space_taken_out(space, {name: read_value(value, name)})
        else:
            line.append(word)
    parsed = _parsed([flag for flag in known.values() if flag.name != _SPACE], line)
    parsed[_SPACE] = space or None
    try:
        return _build(task, parsed)
    except ValueError as error:
        raise UsageError(str(error)) from error


def checked_value(task: Task, name: str, value: object) -> str | int | float | bool | None:
    """A value as the flag takes it, whatever its range.

    Args:
        task: Whose flag it is.
        name: The dotted flag; it exists.
        value: As a recipe gives it.

    Raises:
        UsageError: It is of another type.
    """
    flag = next(flag for flag in flags(task) if flag.name == name)
    if not isinstance(value, str | int | float | None):
        # A list, or what YAML takes for a date.
        raise UsageError(f"--{name} must be {flag.kind}, got {str(value)!r}.")
    return _parsed([flag], [f"--{name}={_as_text(value)}"])[name]


def _parsed(known: Sequence[Flag], line: list[str]) -> Namespace:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    for flag in known:
        parser.add_argument(f"--{flag.name}", type=flag.type, default=flag.default)
    try:
        return parser.parse_args(line)
    except ArgumentError as error:
        raise UsageError(_sentence(str(error), {flag.name: flag for flag in known}, line)) from error
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
    if not config.tune.is_search:
        tree.pop("tune")
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
        if name != "config" and name not in known and not _is_of_space(name):
            raise UsageError(f"There is no flag --{name}; --help lists them.{nearest_flag(name, known)}")
        if not equals:
            value = _value_of(name, arguments, known)
        if name == "config":
            recipes.append(find_recipe(value))
            continue
        if name == "resume" and value not in ("auto", "never"):
            resumed = [_stored_config(expanded(value))]
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
        if name not in known and not _is_of_space(name):
            hint = nearest_flag(name, known)
            raise UsageError(f"The recipe {path} sets {name}, which does not exist; --help lists the flags.{hint}")
    return settings


def _is_of_space(name: str) -> bool:
    return name == _SPACE or name.startswith(f"{_SPACE}.")


def _space_taken_out(space: Space, settings: dict[str, object]) -> tuple[Space, dict[str, object]]:
    """The space with what some settings say of it, and the settings that speak of something else.

    A later word on a field takes the place of an earlier one, and null takes the field, or all of them, out.
    """
    others = {name: value for name, value in settings.items() if not _is_of_space(name)}
    found: Space = {}
    for name, value in settings.items():
        if name == _SPACE and value is None:
            space, found = {}, {}
        elif _is_of_space(name):
            if name == _SPACE and not isinstance(value, dict):
                raise UsageError(f"--{_SPACE} must be {{FLAG: {{KIND: [...]}}}}, or null, got {value!r}.")
            for entry, given in dotted({name: value}).items():
                _put(found, entry.removeprefix(f"{_SPACE}."), given)
    merged = {**space, **found}
    return {name: how for name, how in merged.items() if how}, others


def _put(space: Space, entry: str, value: object) -> None:
    """Adds one such as train.learning_rate.log; one without a last part of its kind is left for the check."""
    if value is None:
        space[entry] = {}
        return
    name, _, kind = entry.rpartition(".")
    if kind not in KINDS and name.count(".") != 1:
        name, kind = entry, "a value without its kind"
    if name in space:
        raise UsageError(f"tune.space has {name} twice, as {next(iter(space[name]))} and as {kind}; give one.")
    space[name] = {kind: value}  # type: ignore[dict-item]


def nearest_flag(name: str, known: Mapping[str, Flag]) -> str:
    """' Did you mean --X?' for a flag that does not exist.

    Flags of its group that end with its last part come first (--dp.epsilon: --dp.target_epsilon or --dp.max_epsilon);
    then whole names are compared, and then last parts, so that --epochs finds --train.epochs.
    """
    group, _, last = name.rpartition(".")
    longer = [flag for flag in known if flag.startswith(f"{group}.") and flag.endswith(f"_{last}")]
    last_parts = {flag.rsplit(".", 1)[-1]: flag for flag in known}
    part = closest(last, last_parts)
    found = closest(name, known) or (last_parts[part] if part else None)
    near = longer or ([found] if found else [])
    return f" Did you mean {' or '.join(f'--{flag}' for flag in near)}?" if near else ""


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sentence(message: str, known: dict[str, Flag], line: Sequence[str]) -> str:
    """Jsonargparse's complaint about a value, in a sentence."""
    for flag in known.values():
        if f'"{flag.name}"' in message or f"--{flag.name}:" in message:
            came = [word.partition("=")[2] for word in line if word.startswith(f"--{flag.name}=")]
            finite = "a finite " if came and came[-1].lower().lstrip("+-.") in ("nan", "inf", "infinity") else ""
            return f"--{flag.name} must be {finite}{flag.kind}, got {came[-1] if came else 'nothing'!r}."
    return " ".join(message.split())


def _kind(of: object) -> str:
    words = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false", types.NoneType: "null"}
    if of in words:
        return words[of]  # type: ignore[index]
    arguments = typing.get_args(of)
    if typing.get_origin(of) is typing.Literal:
        return "|".join(arguments)
    if typing.get_origin(of) is Mapping:
        return "{FLAG: {KIND: [...]}}"
    if typing.get_origin(of) is tuple:
        return "[" + ",".join(_kind(part) for part in arguments) + "]"
    return "|".join(_kind(part) for part in arguments if part is not types.NoneType)


def print_help(task: Task, *, everything: bool) -> None:
    """Prints --help."""
    module = sys.modules[task.load.__module__]
    summary = (module.__doc__ or "").strip().split("\n\n")[0]
    print(help_text(task, summary, everything=everything))
