"""The space of a search: read from recipes and flags, and refused in a sentence before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tfbig.config import TuneConfig
from tfbig.errors import UsageError
from tfbig.pipelines._command_line import parse, to_yaml
from tfbig.pipelines._search_space import check_search, parameters
from tfbig.pipelines.image_finetune import TASK
from tfbig.search.space import Parameter, with_values
from tfbig.training.conflicts import check_conflicts

RATE = ["--tune.max_trials", "5", "--tune.space.train.learning_rate.log", "[1e-5, 1e-2]"]


def _space(*arguments: str) -> tuple[Parameter, ...]:
    config = parse(TASK, list(arguments))
    check_search(TASK, config)
    return parameters(TASK, config)


def _recipe(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_space_is_read_from_a_recipe_nested_or_dotted(tmp_path: Path) -> None:
    dotted = "{train.learning_rate: {log: [1e-5, 1e-2]}, model.hidden_units: {choice: [null, 64]}, "
    dotted += "train.epochs: {linear: [1, 4]}}"
    nested = "{train: {learning_rate: {log: [1e-5, 1e-2]}, epochs: {linear: [1, 4]}}, "
    nested += "model: {hidden_units: {choice: [null, 64]}}}"
    dotted = _recipe(tmp_path, f"tune: {{max_trials: 5, space: {dotted}}}", "a.yaml")
    nested = _recipe(tmp_path, f"tune: {{max_trials: 5, space: {nested}}}", "b.yaml")
    expected = {
        Parameter("train.learning_rate", "log", (1e-5, 1e-2)),
        Parameter("model.hidden_units", "choice", (None, 64)),
        Parameter("train.epochs", "linear", (1, 4), is_whole=True),
    }
    assert set(_space("--config", dotted)) == set(_space("--config", nested)) == expected


def test_a_later_word_on_a_field_wins_and_null_takes_it_out(tmp_path: Path) -> None:
    recipe = ["--config", _recipe(tmp_path, "tune: {max_trials: 5, space: {train.learning_rate: {log: [1e-5, 1e-2]}, "
              "model.dropout: {linear: [0, 0.5]}}}")]  # fmt: skip
    assert [each.name for each in _space(*recipe)] == ["train.learning_rate", "model.dropout"]
    chosen = ["--tune.space.train.learning_rate.choice", "[0.1, 0.2]"]
    changed = _space(*recipe, *chosen, "--tune.space.model.dropout", "null")
    assert changed == (Parameter("train.learning_rate", "choice", (0.1, 0.2)),)
    whole = _space(*recipe, "--tune.space", "{train.momentum: {linear: [0.5, 0.9]}}")
    assert len(whole) == 3
    with pytest.raises(UsageError, match="needs a space"):
        _space(*recipe, "--tune.space", "null")


def test_a_search_comes_back_from_its_own_yaml_and_a_plain_run_does_not_speak_of_one(tmp_path: Path) -> None:
    config = parse(TASK, RATE)
    assert parse(TASK, ["--config", _recipe(tmp_path, to_yaml(TASK, config))]) == config
    assert "\ntune:" not in to_yaml(TASK, parse(TASK, []))


def test_a_trial_is_a_plain_run_with_its_values() -> None:
    config = parse(TASK, [*RATE, "--model.dropout", "0.1"])
    values = {"train.learning_rate": 0.5, "options.label_smoothing": 0.2, "model.hidden_units": None}
    trial = with_values(config, values)
    assert (trial.train.learning_rate, trial.options.label_smoothing, trial.model.dropout) == (0.5, 0.2, 0.1)
    assert trial.tune == TuneConfig()
    assert config.train.learning_rate != 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tune.space.train.learning_rat.log", "[1e-5, 1e-2]"], "--train.learning_rate"),
        (["--tune.space.dropout.linear", "[0, 0.5]"], "--model.dropout"),
        (["--tune.space.train.learning_rate.log", "[1e-2, 1e-5]"], "LOW below HIGH"),
        (["--tune.space.train.learning_rate.log", "[1e-2]"], "two numbers"),
        (["--tune.space.train.learning_rate.lgo", "[1e-5, 1e-2]"], "'log'"),
        (["--tune.space.train.learning_rate", "[1e-5, 1e-2]"], "{log: [LOW, HIGH]}"),
        (["--tune.space.train.learning_rate.log", "much"], "must be a list"),
        (["--tune.space.train.learning_rate.log", "[1e-5, much]"], "NUMBER"),
        (["--tune.space.train.learning_rate.log", "[0, 1e-2]"], "above 0"),
        (["--tune.space.train.weight_decay.log", "[0, 1e-2]"], "LOW above 0"),
        (["--tune.space.model.dropout.linear", "[0, 1.5]"], "below 1"),
        (["--tune.space.train.epochs.linear", "[1.5, 3]"], "INT"),
        (["--tune.space.train.optimizer.choice", "[sgd, adam]"], "adamw|sgd"),
        (["--tune.space.train.optimizer.choice", "[sgd, sgd]"], "twice"),
        (["--tune.space.train.optimizer.choice", "[]"], "must be a list"),
        (["--tune.space.options.augment.choice", "[[flip], 2]"], "TEXT"),
        (["--tune.space.train.learning_rate.log", "[2026-01-01, 1]"], "NUMBER, got '2026-01-01'"),
        (["--tune.space", "[1, 2]"], "or null"),
        (["--tune.space.train.momentum.linear", "[0.5, 0.9"], "written as in a recipe"),
        (["--tune.space.train.momentum", "{linear: [0, 0.5], choice: [0.9]}"], "twice"),
        (["--tune.space.data.limit.choice", "[30, 60]"], "judged on the same"),
        (["--tune.space.runtime.seed.choice", "[0, 1]"], "judged on the same"),
        (["--tune.space.export.dir.choice", "[a, b]"], "as a whole"),
        (["--tune.space.tune.executions.choice", "[1, 2]"], "as a whole"),
        (["--tune.space.train.epochs.linear", "[1, 3]", "--tune.tuner", "hyperband"], "sets each trial's epochs"),
        (["--tune.tuner", "hyperband", "--train.epochs", "100"], "at least --tune.max_trials 148"),
        (["--tune.tuner", "hyperband", "--train.epochs", "9", "--tune.max_trials", "30", "--tune.space",
          "{train.learning_rate: {choice: [0.1, 0.2]}, train.warmup_steps: {linear: [0, 2]}}"], "the space has 6"),
        (["--dp.target_epsilon", "4", "--tune.space.options.augment.choice", "[flip, 'flip,mixup']"], "mixup"),
        (["--dp.target_epsilon", "4", "--tune.space.data.class_weights.choice", "[none, balanced]"], "balanced"),
        (["--tune.space.dp.target_epsilon.choice", "[1, 8]"], "for the search as a whole"),
        (["--tune.space.dp.noise_multiplier.choice", "[null, 8]"], "for the search as a whole"),
        (["--tune.space.runtime.precision.choice", "[auto, float32]"], "time each trial"),
        (["--tune.tuner", "hyperban"], "random|hyperband|bayesian"),
        (["--tune.max_trials", "0"], "at least 1"),
        (["--tune.executions", "0"], "between 1"),
        (["--tune.max_trials", "null"], "--tune.max_trials"),
        (["--dp.target_epsilon", "3", "--tune.space.data.batch_size.choice", "[64, 128]"], "cost the same"),
    ],
)
def test_a_wrong_space_is_named(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        config = parse(TASK, [*RATE, *arguments])
        check_conflicts(config)
        check_search(TASK, config)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_space_is_refused_before_tensorflow_is_imported(tmp_path: Path) -> None:
    watched = (
        "import sys\n"
        "from tfbig.pipelines._main import main\n"
        "from tfbig.pipelines.image_finetune import TASK\n"
        f"code = main(TASK, {[*RATE, '--tune.space.train.learning_rat.log', '[1e-5, 1e-2]']!r})\n"
        "sys.exit(99 if {'tensorflow', 'keras', 'keras_tuner'} & set(sys.modules) else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Did you mean --train.learning_rate?" in done.stderr
    assert not list(tmp_path.iterdir())
