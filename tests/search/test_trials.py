"""A search's trials: proposed the same whoever asks and however often it was interrupted, each run by one process."""

import contextlib
import json
import os
import resource
import signal
from pathlib import Path

import pytest

from tfbig.errors import EnvironmentFault, GateError, UsageError
from tfbig.search.journal import NAME, Journal, has_begun
from tfbig.search.oracle import Oracle
from tfbig.search.space import Parameter, hyperband_bracket
from tfbig.search.trials import MAX_DEATHS, Trials, planned

SPACE = (
    Parameter("train.learning_rate", "log", (1e-4, 1e-1)),
    Parameter("model.dropout", "linear", (0.0, 0.5)),
    Parameter("train.warmup_steps", "linear", (0, 50), is_whole=True),
    Parameter("model.hidden_units", "choice", (None, 64)),
    Parameter("runtime.jit_compile", "choice", (False, True)),
)


def _score(values: dict) -> float:
    return abs(values["train.learning_rate"] - 0.01) + (values["model.dropout"] - 0.2) ** 2


def _oracle(tuner: str) -> Oracle:
    return Oracle(tuner, SPACE, max_trials=30, max_epochs=9, seed=0)


def _trials(folder: Path, tuner: str = "random", max_trials: int = 12) -> Trials:
    return Trials(folder, SPACE, tuner=tuner, max_trials=max_trials, max_epochs=9, seed=0)


def _run_all(trials: Trials, num: int = 10**6) -> None:
    for _ in range(num):
        with contextlib.ExitStack() as held:
            begun = trials.begin(held)
            if begun is None:
                return
            trial, _ = begun
            if trial.number == 3:
                trials.fail(trial, "it diverged")
            else:
                trials.end(trial, score=_score(trial.values), seconds=1.0, facts={})


def _outcome(trials: Trials) -> list[tuple]:
    return [(trial.number, trial.values, trial.state, trial.score) for trial in trials.all]


@pytest.mark.parametrize("tuner", ["random", "hyperband", pytest.param("bayesian", marks=pytest.mark.slow)])
def test_an_oracle_that_is_told_the_same_proposes_the_same(tuner: str) -> None:
    num = 19 if tuner == "bayesian" else 28
    first, told = _oracle(tuner), []
    for number in range(num):
        values = first.ask()
        score = None if number == 5 else _score(values)
        first.tell(number, score)
        told.append((values, score))
    again = _oracle(tuner)
    for number, (values, score) in enumerate(told):
        assert again.ask(values if number < num - 2 else None) == values
        again.tell(number, score)
    if tuner == "hyperband":
        assert {values["train.epochs"] for values, _ in told} == {1, 3, 9}


@pytest.mark.parametrize("max_epochs", [1, 2, 3, 8, 9, 20, 27])
def test_hyperband_trains_to_the_end_within_its_first_bracket_and_not_before_its_last_round(max_epochs: int) -> None:
    rounds = hyperband_bracket(max_epochs)
    oracle = Oracle("hyperband", SPACE, max_trials=999, max_epochs=max_epochs, seed=0)
    epochs = []
    for number in range(sum(rounds)):
        values = oracle.ask()
        oracle.tell(number, _score(values))
        epochs.append(values["train.epochs"])
    assert [epochs.count(each) for each in sorted(set(epochs))] == list(rounds)
    assert max(epochs) == max_epochs


def test_values_are_of_the_space_and_of_its_types() -> None:
    oracle = _oracle("random")
    drawn = [oracle.ask() for _ in range(30)]
    assert all(1e-4 <= values["train.learning_rate"] <= 1e-1 for values in drawn)
    # Evenly over the logarithms: about a third below 1e-3.
    assert 4 <= sum(values["train.learning_rate"] < 1e-3 for values in drawn) <= 17
    assert all(type(values["train.warmup_steps"]) is int for values in drawn)
    assert {values["model.hidden_units"] for values in drawn} == {None, 64}
    assert {values["runtime.jit_compile"] for values in drawn} == {False, True}
    assert len({json.dumps(values) for values in drawn}) == 30


def test_seeds_of_any_size_count_in_full() -> None:
    drawn = [Oracle("random", SPACE, max_trials=3, max_epochs=9, seed=2**127 + low).ask() for low in (0, 0, 2**40)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_each_trial_draws_from_its_own_number_also_where_settings_may_repeat() -> None:
    """What a private search promises needs draws that are independent: neither alike nor told what others drew."""
    independent = Oracle("random", SPACE, max_trials=30, max_epochs=9, seed=0, may_repeat=True)
    drawn = [independent.ask() for _ in range(30)]
    assert len({json.dumps(values) for values in drawn}) == 30
    # In a space this large nothing repeats by chance, so that settings that may not are drawn alike.
    plain = _oracle("random")
    assert drawn == [plain.ask() for _ in range(30)]
    small = Oracle(
        "random", (Parameter("model.hidden_units", "choice", (None, 64)),), max_trials=9, max_epochs=9, seed=0,
        may_repeat=True,
    )  # fmt: skip
    assert len([values for values in (small.ask() for _ in range(9)) if values is not None]) == 9


def test_another_seed_draws_others_and_zero_is_a_seed() -> None:
    draws = [Oracle("random", SPACE, max_trials=3, max_epochs=9, seed=seed).ask() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_small_space_ends_the_search_early(tmp_path: Path) -> None:
    space = (Parameter("train.optimizer", "choice", ("sgd", "adamw")),)
    for tuner in ("random", "hyperband"):
        trials = Trials(tmp_path / tuner, space, tuner=tuner, max_trials=10, max_epochs=1, seed=0)
        while True:
            with contextlib.ExitStack() as held:
                begun = trials.begin(held)
                if begun is None:
                    break
                trials.end(begun[0], score=1.0, seconds=0, facts={})
        assert {trial.values["train.optimizer"] for trial in trials.all} == {"sgd", "adamw"}


@pytest.mark.parametrize("tuner", ["random", "hyperband"])
def test_a_search_that_goes_on_equals_one_that_was_never_stopped(tuner: str, tmp_path: Path) -> None:
    whole = _trials(tmp_path / "whole", tuner)
    _run_all(whole)
    for _ in range(12):
        _run_all(_trials(tmp_path / "parts", tuner), 1)
    parts = _trials(tmp_path / "parts", tuner)
    assert parts.begin(contextlib.ExitStack()) is None
    assert _outcome(parts) == _outcome(whole)
    assert parts.best.number == whole.best.number
    assert parts.all[3].state == "failed"


def test_two_processes_share_the_trials_and_know_of_each_other(tmp_path: Path) -> None:
    one, other = _trials(tmp_path), _trials(tmp_path)
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        begun, taken = one.begin(first), other.begin(second)
        assert (begun[0].number, taken[0].number) == (0, 1)
        other.end(taken[0], score=2.0, seconds=0, facts={})
        one.end(begun[0], score=1.0, seconds=0, facts={})
    _run_all(other)
    one.refresh()
    assert _outcome(one) == _outcome(other)
    assert [trial.number for trial in one.all] == list(range(12))


def test_the_trial_of_a_killed_process_is_run_again_by_another(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        _trials(tmp_path).begin(contextlib.ExitStack())
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    trials = _trials(tmp_path)
    with contextlib.ExitStack() as held:
        assert trials.begin(held)[0].number == 0
    assert len(trials.all) == 1


def test_a_trial_that_always_kills_its_process_fails_and_the_search_goes_on(tmp_path: Path) -> None:
    for _ in range(MAX_DEATHS):
        trials = _trials(tmp_path)
        with contextlib.ExitStack() as held:
            # Neither ended nor paused: as if the process was killed.
            assert trials.begin(held)[0].number == 0
    trials = _trials(tmp_path)
    with contextlib.ExitStack() as held:
        assert trials.begin(held)[0].number == 1
    assert trials.all[0].state == "failed"
    assert "killed" in trials.all[0].reason


@pytest.mark.parametrize(("execution", "deaths"), [("0000", 0), ("0000.1", 0), (None, MAX_DEATHS - 1)])
def test_a_trial_gets_on_in_any_of_its_executions(execution: str | None, deaths: int, tmp_path: Path) -> None:
    for number in range(MAX_DEATHS):
        trials = _trials(tmp_path)
        with contextlib.ExitStack() as held:
            trial, run = trials.begin(held)
            run.write_text("config.yaml", "job: any\n")
            checkpoints = tmp_path / str(execution) / "checkpoints"
            if execution is not None:
                checkpoints.mkdir(parents=True, exist_ok=True)
                (checkpoints / f"step-{number}.npz").touch()
        assert trial.number == 0
    assert trial.deaths == deaths


def test_a_folder_that_is_no_runs_is_said_and_not_waited_for(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        _trials(tmp_path).begin(held)
        (tmp_path / "0000" / "status.json").write_text("{}")
    with pytest.raises(UsageError, match="not a run's"), contextlib.ExitStack() as held:
        _trials(tmp_path).begin(held)


def test_a_plan_that_is_refused_leaves_no_word_and_one_that_is_accepted_stays(tmp_path: Path) -> None:
    def refuse(plan: dict) -> None:
        raise GateError("beyond the budget")

    with pytest.raises(GateError):
        planned(tmp_path, lambda: {"seed": 1}, refuse)
    assert not has_begun(tmp_path)
    assert planned(tmp_path, lambda: {"seed": 2}, lambda plan: None) == {"seed": 2}
    with pytest.raises(GateError):
        planned(tmp_path, lambda: {"seed": 3}, refuse)
    assert planned(tmp_path, lambda: {"seed": 4}, lambda plan: None) == {"seed": 2}
    assert (tmp_path / NAME).stat().st_mode & 0o077 == 0


def test_a_trial_that_is_stopped_on_request_never_counts_as_killed(tmp_path: Path) -> None:
    for _ in range(2 * MAX_DEATHS):
        trials = _trials(tmp_path)
        with contextlib.ExitStack() as held:
            trial, _ = trials.begin(held)
            trials.pause(trial)
            assert trial.number == 0


def test_what_a_kill_leaves_of_a_line_is_cut_off(tmp_path: Path) -> None:
    _run_all(_trials(tmp_path), 2)
    path = tmp_path / NAME
    before = path.read_bytes()
    path.write_bytes(before + b'{"event": "new", "tri')
    trials = _trials(tmp_path)
    _run_all(trials, 1)
    assert path.read_bytes().startswith(before + b'{"event": "new", "trial": 2')
    assert len(trials.all) == 3


def test_a_line_that_the_disk_has_no_room_for_is_no_line(tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk, within the line that is written."""
    _run_all(_trials(tmp_path), 2)
    before = (tmp_path / NAME).read_bytes()
    trials = _trials(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        with pytest.raises(EnvironmentFault, match=r"File too large\); make room"), contextlib.ExitStack() as held:
            trials.begin(held)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # Part of it is on the disk, and does not count.
    assert before < (tmp_path / NAME).read_bytes() < before + b"\xff"
    whole = _trials(tmp_path / "whole")
    for later in (_trials(tmp_path), whole):
        _run_all(later)
    assert _outcome(_caught_up(tmp_path)) == _outcome(whole)


def _caught_up(folder: Path) -> Trials:
    trials = _trials(folder)
    trials.refresh()
    return trials


def test_a_damaged_journal_and_one_of_another_search_are_refused(tmp_path: Path) -> None:
    _run_all(_trials(tmp_path), 2)
    other = Trials(tmp_path, SPACE, tuner="random", max_trials=12, max_epochs=9, seed=5)
    with pytest.raises(UsageError, match="--resume never"):
        other.refresh()
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes().replace(b'"event"', b'"ev', 1))
    with pytest.raises(EnvironmentFault, match="damaged"):
        _trials(tmp_path).refresh()


END = '{"event": "end", "trial": %s, "state": "%s", "score": %s}'


@pytest.mark.parametrize(
    "line",
    ["{}", '{"event": "new"}', '{"event": "what", "trial": 1}', '{"event": "begin", "trial": 1}', "[]",
     '{"event": "plan"}',
     END % (9, "done", 1.0), END % (-1, "done", 1.0), END % ('"1"', "done", 1.0), END % (0, "done", 1.0),
     END % (1, "done", '"low"'), END % (1, "done", "NaN"), END % (1, "done", "null"), END % (1, "failed", 1.0),
     END % (1, "won", 1.0)],
)  # fmt: skip
def test_a_line_that_says_nothing_of_a_trial_is_damage(line: str, tmp_path: Path) -> None:
    _run_all(_trials(tmp_path), 1)
    trials = _trials(tmp_path)
    trials.begin(contextlib.ExitStack())
    with (tmp_path / NAME).open("a") as journal:
        journal.write(line + "\n")
    with pytest.raises(EnvironmentFault, match="damaged.*--resume never"):
        _trials(tmp_path).refresh()


@pytest.mark.parametrize(("name", "value"), [("model.hidden_units", 65), ("runtime.jit_compile", 1), ("other", 0)])
def test_settings_that_the_space_does_not_have_are_of_another_search(name: str, value: int, tmp_path: Path) -> None:
    values = _oracle("random").ask()
    if name not in values:
        del values["model.dropout"]
    (tmp_path / NAME).write_text(json.dumps({"event": "new", "trial": 0, "values": {**values, name: value}}) + "\n")
    with pytest.raises(UsageError, match="another search"):
        _trials(tmp_path).refresh()


def test_a_journal_gives_each_line_once(tmp_path: Path) -> None:
    one, other = Journal(tmp_path), Journal(tmp_path)
    with one.locked():
        assert one.news() == []
        one.add({"a": 1})
        one.add({"b": 2})
        assert one.news() == []
    with other.locked():
        assert other.news() == [{"a": 1}, {"b": 2}]
        other.add({"c": 3})
    with one.locked():
        assert one.news() == [{"c": 3}]
