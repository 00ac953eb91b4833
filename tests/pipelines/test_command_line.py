"""The command line: precedence, nearest names, and a sentence for each mistake."""

from pathlib import Path

import pytest

from tfbig.errors import UsageError
from tfbig.pipelines._command_line import flags, help_text, parse, to_yaml
from tfbig.pipelines.image_finetune import TASK
from tfbig.resources import recipe_paths
from tfbig.training.conflicts import CONFLICTS, check_conflicts


def _recipe(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_win_over_recipes_and_later_recipes_over_earlier(tmp_path: Path) -> None:
    first = _recipe(tmp_path, "train: {epochs: 3, learning_rate: 1e-2, momentum: 0.5}", "first.yaml")
    second = _recipe(tmp_path, "train: {epochs: 4, learning_rate: 2e-2}", "second.yaml")
    config = parse(TASK, ["--train.epochs", "5", "--config", first, "--config", second])
    assert (config.train.epochs, config.train.learning_rate, config.train.momentum) == (5, 0.02, 0.5)
    assert config.train.optimizer == "adamw"


@pytest.mark.parametrize("name", sorted(recipe_paths()))
def test_every_recipe_loads_and_comes_back_from_its_own_yaml(name: str, tmp_path: Path) -> None:
    config = parse(TASK, ["--config", name])
    check_conflicts(config)
    again = _recipe(tmp_path, to_yaml(TASK, config))
    assert parse(TASK, ["--config", again]) == config


def test_switches_need_no_value() -> None:
    assert parse(TASK, ["--runtime.offline", "--dry_run"]).runtime.offline
    assert not parse(TASK, ["--runtime.offline", "false"]).runtime.offline
    assert parse(TASK, ["--train.profile_steps", "[2,4]"]).train.profile_steps == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.epoch", "3"], "--train.epochs"),
        (["--epochs", "3"], "--train.epochs"),
        (["--optoins.augment", "flip"], "--options.augment"),
        (["--dp.epsilon", "3"], "--dp.target_epsilon or --dp.max_epsilon"),
        (["--config", "cifar10_hbu"], "cifar10_hub"),
        (["--train.epochs", "-1"], "at least 1"),
        (["--train.epochs", "many"], "INT"),
        (["--train.epochs"], "needs a value"),
        (["epochs"], "on its own"),
        (["--data.on_bad", "ignore"], "fail|skip"),
        (["--options.label_smoothing", "1"], "below 1"),
        (["--train.learning_rate", "nan"], "must be a finite NUMBER"),
        (["--train.clip_norm", "-inf"], "must be a finite NUMBER"),
        (["--runtime.precision", "float16"], "float32|bfloat16"),
        (["--resume", "nowhere"], "config.yaml"),
        (["--data.image_size", "1000000000"], "between 8 and 65536 pixels, got 1000000000"),
        (["--adapt.backbone_lr_scale", "1e300"], "above 0 and at most 1000"),
        (["--train.weight_decay", "1e300"], "between 0 and 1e38"),
        (["--run_dir", "runs/\udcff"], "run_dir must be the name of a folder in UTF-8"),
        (["--run_dir", "runs/\0"], "run_dir must be the name of a folder in UTF-8"),
        (["--export.dir", "served/\udcff"], "export.dir must be the name of a folder in UTF-8"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(TASK, arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train:\n\tepochs: 3\n", "tab"),
        ("train:\n  epochs: 3\n  epochs: 4\n", "twice"),
        ("train: {epoch: 3}", "train.epochs"),
        ("train: {epochs: [", "line 1"),
        ("just text", "must hold settings"),
        ("job: text_finetune\ntrain: {epochs: 3}", "text_finetune"),
        ("train: {epochs: many}", "INT"),
    ],
)
def test_a_wrong_recipe_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        parse(TASK, ["--config", _recipe(tmp_path, text)])
    assert words in str(caught.value)


def test_every_flag_has_help() -> None:
    everything = help_text(TASK, "", everything=True)
    for flag in flags(TASK):
        assert flag.text, f"--{flag.name} has no text"
        assert f"--{flag.name} " in everything or f"--{flag.name}\n" in everything


@pytest.mark.parametrize(
    "arguments",
    [
        ["--adapt.mode", "head", "--adapt.unfreeze_last", "2"],
        ["--adapt.mode", "head", "--adapt.backbone_lr_scale", "0.1"],
        ["--adapt.mode", "lora", "--model.backbone", "scratch:convnet"],
        ["--adapt.mode", "head", "--adapt.statistics", "updated"],
        ["--adapt.mode", "full", "--adapt.cached_views", "4", "--options.augment", "flip"],
        ["--adapt.mode", "head", "--adapt.cached_views", "4"],
        ["--adapt.mode", "head", "--adapt.cached_views", "4", "--options.augment", "flip,mixup"],
        ["--runtime.jit_compile", "--runtime.strategy", "mirrored"],
        ["--runtime.precision", "auto", "--tune.max_trials", "4"],
        ["--dp.l2_norm_clip", "2"],
        ["--dp.target_epsilon", "3", "--data.class_weights", "balanced"],
        ["--dp.target_epsilon", "3", "--options.augment", "flip,mixup"],
        ["--dp.target_epsilon", "3", "--train.clip_norm", "1"],
        ["--dp.target_epsilon", "3", "--dp.mechanism", "tree"],
        ["--dp.target_epsilon", "3", "--dp.mechanism", "tree", "--dp.sampling", "shuffle", "--dp.accountant", "pld"],
        ["--dp.target_epsilon", "3", "--dp.sampling", "shuffle", "--dp.clip_quantile", "0.5"],
        ["--dp.target_epsilon", "3", "--train.profile_steps", "[1, 2]"],
        ["--dp.target_epsilon", "3", "--dp.ledger_epsilon", "8"],
    ],
)
def test_impossible_pairs_are_refused_with_a_remedy(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="[Ll]eave|give|take"):
        check_conflicts(parse(TASK, arguments))


def test_each_conflict_is_tested() -> None:
    assert len(CONFLICTS) == len(test_impossible_pairs_are_refused_with_a_remedy.pytestmark[0].args[1])
