"""The ledger: no run passes that the budget does not hold, whatever is done to the file or at the same time."""

import fcntl
import json
import math
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tfbig.errors import EnvironmentFault, GateError, UsageError
from tfbig.gradients.private.accounting import composed_epsilon, epsilon
from tfbig.gradients.private.ledger import Balance, BudgetLedger
from tfbig.gradients.private.mechanism import Mechanism

DELTA = 1e-5
RUN = Mechanism(5.0, 1000, 100, "shuffle")  # An epoch is 10 steps and costs epsilon 0.73; two cost 1.06.
EPOCH = epsilon(RUN, 10, delta=DELTA)


def _reserve(path: Path, run_id: str, **changed: object) -> Balance:
    asked = {
        "run_id": run_id, "run_dir": f"runs/{run_id}", "dataset": "folder", "fingerprint": "abc", "mechanism": RUN,
        "num_steps": 10, "limit_epsilon": 2.0, "limit_delta": DELTA,
    }  # fmt: skip
    return BudgetLedger(path, lock_timeout_s=60).reserve(**{**asked, **changed})


def _spent(*num_steps: int) -> float:
    return composed_epsilon([RUN.event(steps) for steps in num_steps], delta=DELTA, accountant="pld")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.json"


def test_runs_are_charged_until_the_budget_is_spent(path: Path) -> None:
    first = _reserve(path, "a")
    assert first.spent_epsilon == pytest.approx(EPOCH)
    assert (first.limit_epsilon, first.delta, first.adjacency) == (2.0, DELTA, "replace_special")
    second = _reserve(path, "b", num_steps=20)
    assert second.spent_epsilon == pytest.approx(epsilon(RUN, 30, delta=DELTA)) and len(second.runs) == 2
    before = path.read_bytes()
    with pytest.raises(GateError) as refused:
        _reserve(path, "c", num_steps=40)
    sentence = str(refused.value)
    for figure in (_spent(10, 20), _spent(40), _spent(10, 20, 40)):
        assert f"{math.ceil(figure * 1000) / 1000:.3f}" in sentence
    assert "of epsilon 2 " in sentence and "Train fewer steps" in sentence and refused.value.exit_code == 6
    assert path.read_bytes() == before
    assert BudgetLedger(path).balance("folder", "abc") == second


def test_no_noise_is_never_allowed(path: Path) -> None:
    with pytest.raises(GateError, match="asks for inf"):
        _reserve(path, "a", mechanism=replace(RUN, noise_multiplier=0.0), limit_epsilon=1e9)
    assert not path.exists()


def test_the_same_data_has_one_budget_whatever_it_is_called(path: Path) -> None:
    _reserve(path, "a")
    renamed = _reserve(path, "b", dataset="renamed")
    assert renamed.spent_epsilon == pytest.approx(_spent(10, 10))
    changed = _reserve(path, "c", dataset="renamed", fingerprint="new content")
    assert changed.spent_epsilon == pytest.approx(_spent(10, 10, 10))
    # By then "new content" belongs to it as well.
    assert len(_reserve(path, "d", dataset="third", fingerprint="new content", num_steps=1).runs) == 4
    assert BudgetLedger(path).balance("other", "") is None
    assert len(_reserve(path, "e", dataset="other", fingerprint="").runs) == 1
    assert len(_reserve(path, "f", dataset="another", fingerprint="").runs) == 1


def test_a_second_dataset_is_warned_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _reserve(path, "a")
    _reserve(path, "b", dataset="renamed")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    _reserve(path, "c", dataset="other", fingerprint="another")
    [warned] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "neither the source nor the content of other" in warned and "beside those of folder" in warned


def test_two_datasets_that_turn_out_to_be_one_share_what_both_spent(path: Path) -> None:
    _reserve(path, "a", dataset="x", fingerprint="1", num_steps=30)
    _reserve(path, "b", dataset="y", fingerprint="2", num_steps=20)
    with pytest.raises(GateError, match="by 2 runs"):
        _reserve(path, "c", dataset="x", fingerprint="2", num_steps=30)
    assert len(_reserve(path, "c", dataset="x", fingerprint="2", num_steps=10).runs) == 3
    assert len(BudgetLedger(path).balance("y", "").runs) == 3
    _reserve(path, "d", dataset="z", fingerprint="3", limit_epsilon=4.0)
    with pytest.raises(UsageError, match="limits differ"):
        _reserve(path, "e", dataset="z", fingerprint="2", limit_epsilon=4.0)


def test_poisson_shuffled_and_tree_runs_compose_by_rdp(path: Path) -> None:
    tree = Mechanism(20.0, 1000, 100, "shuffle", "tree")
    drawn = Mechanism(2.0, 1000, 100, "poisson")
    assert _reserve(path, "a", mechanism=drawn).adjacency == "add_or_remove_one"
    assert _reserve(path, "b").accountant == "pld"
    balance = _reserve(path, "c", mechanism=tree, limit_epsilon=2.0)
    assert (balance.accountant, balance.adjacency) == ("rdp", "replace_special")
    events = [drawn.event(10), RUN.event(10), tree.event(10)]
    assert balance.spent_epsilon == pytest.approx(composed_epsilon(events, delta=DELTA, accountant="rdp"))


def test_a_resume_is_not_charged_twice(path: Path) -> None:
    first = _reserve(path, "a")
    before = path.read_bytes()
    assert _reserve(path, "a", already_charged=True) == first
    assert path.read_bytes() == before
    longer = _reserve(path, "a", num_steps=20, already_charged=True)
    assert longer.spent_epsilon == pytest.approx(_spent(20)) and len(longer.runs) == 1
    with pytest.raises(GateError, match="does not allow"):
        _reserve(path, "a", num_steps=1000, already_charged=True)
    with pytest.raises(UsageError, match="noise_multiplier 5.0.*noise_multiplier 6.0"):
        _reserve(path, "a", mechanism=replace(RUN, noise_multiplier=6.0))
    with pytest.raises(UsageError, match="start a new run"):
        _reserve(path, "a", dataset="elsewhere", fingerprint="other")


def test_settling_only_lowers_and_never_below_what_was_done(path: Path) -> None:
    _reserve(path, "a", num_steps=50)
    ledger = BudgetLedger(path)
    ledger.settle("a", 20)
    assert ledger.balance("folder", "").spent_epsilon == pytest.approx(_spent(20))
    with pytest.raises(GateError, match="took 30 steps but .* charged for 20"):
        ledger.settle("a", 30)
    # It goes on, is stopped by a crash, and then reports less than it is known to have done.
    assert _reserve(path, "a", num_steps=50).spent_epsilon == pytest.approx(_spent(50))
    ledger.settle("a", 10)
    assert ledger.balance("folder", "").spent_epsilon == pytest.approx(_spent(20))
    with pytest.raises(GateError, match="no charge"):
        ledger.settle("b", 1)


def test_a_limit_is_set_once(path: Path) -> None:
    with pytest.raises(UsageError, match="limit must be given"):
        _reserve(path, "a", limit_epsilon=None)
    for wrong in ({"limit_epsilon": math.nan}, {"limit_epsilon": -1.0}, {"limit_delta": 0.0}, {"limit_delta": 1.0}):
        with pytest.raises(UsageError, match="typical values are 1 to 10"):
            _reserve(path, "a", **wrong)
    _reserve(path, "a")
    assert len(_reserve(path, "b", limit_epsilon=None, limit_delta=None).runs) == 2
    for other in ({"limit_epsilon": 3.0}, {"limit_delta": 1e-6}, {"limit_epsilon": 1.0}):
        with pytest.raises(UsageError, match="by its owner alone"):
            _reserve(path, "c", **other)
    # Its owner lowers it: what runs stays, what is new is refused.
    content = json.loads(path.read_text())
    content["datasets"][0]["limit_epsilon"] = 0.5
    path.write_text(json.dumps(content))
    assert _reserve(path, "a", limit_epsilon=None).limit_epsilon == 0.5
    with pytest.raises(GateError, match="of epsilon 0.5"):
        _reserve(path, "c", limit_epsilon=None)


def test_what_was_charged_is_not_begun_anew(path: Path) -> None:
    with pytest.raises(GateError, match="is missing.*backup"):
        _reserve(path, "a", already_charged=True)
    assert not path.exists()
    _reserve(path, "b")
    with pytest.raises(GateError, match="Run a was charged.*no longer there"):
        _reserve(path, "a", already_charged=True)
    path.unlink()
    with pytest.raises(GateError, match="is missing"):
        BudgetLedger(path).settle("b", 1)


def _edited(change: Callable[[dict], object]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return apply


def _charge(**values: object) -> Callable[[str], str]:
    return _edited(lambda content: content["datasets"][0]["charges"][0].update(values))


def _dataset(**values: object) -> Callable[[str], str]:
    return _edited(lambda content: content["datasets"][0].update(values))


_DAMAGE: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "two halves": lambda text: text + text,
    "another type": lambda text: "[]",
    "null": lambda text: "null",
    "deep": lambda text: "[" * 100_000,
    "not text": lambda text: "\udcff\udcfe",
    "another format": _edited(lambda content: content.update(format="tfbig-privacy-ledger-9")),
    "no datasets": _edited(lambda content: content.pop("datasets")),
    "datasets of another type": _edited(lambda content: content.update(datasets={})),
    "a repeated key": lambda text: text.replace('"charges": [', '"charges": [], "charges": ['),
    "an unknown key": _charge(discount=0.5),
    "a missing key": _edited(lambda content: content["datasets"][0]["charges"][0].pop("num_steps")),
    "a run twice": _edited(lambda content: content["datasets"][0]["charges"].append(
        content["datasets"][0]["charges"][0])),
    "negative steps": _charge(num_steps=-10),
    "steps of a fraction": _charge(num_steps=0.5),
    "steps as text": _charge(num_steps="10"),
    "steps true": _charge(num_steps=True),
    "more done than charged": _charge(num_steps_done=11),
    "negative noise": _charge(noise_multiplier=-5.0),
    "noise NaN": _charge(noise_multiplier=math.nan),
    "noise Infinity": _charge(noise_multiplier=math.inf),
    "noise 1e999": lambda text: text.replace('"noise_multiplier": 5.0', '"noise_multiplier": 1e999'),
    "noise of many digits": lambda text: text.replace('"noise_multiplier": 5.0', f'"noise_multiplier": {"9" * 4000}'),
    "no examples": _charge(num_examples=0),
    "no such sampling": _charge(sampling="none"),
    "limit NaN": _dataset(limit_epsilon=math.nan),
    "limit negative": _dataset(limit_epsilon=-1.0),
    "limit null": _dataset(limit_epsilon=None),
    "delta of one": _dataset(limit_delta=1.0),
    "no source": _dataset(sources=[]),
    "a fingerprint of nothing": _dataset(fingerprints=[""]),
}  # fmt: skip


@pytest.mark.parametrize("name", _DAMAGE)
def test_a_damaged_ledger_is_refused_and_left_as_it_is(path: Path, name: str) -> None:
    _reserve(path, "a")
    damaged = _DAMAGE[name](path.read_text()).encode(errors="surrogateescape")
    path.write_bytes(damaged)
    for attempt in (
        lambda: _reserve(path, "b"),
        lambda: _reserve(path, "a", already_charged=True),
        lambda: BudgetLedger(path).settle("a", 1),
        lambda: BudgetLedger(path).balance("folder", ""),
    ):
        with pytest.raises(GateError, match="(?s)damaged .*left as it is"):
            attempt()
    assert path.read_bytes() == damaged


def test_what_stands_at_the_path_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(EnvironmentFault, match="must be a file"):
        _reserve(tmp_path / "folder", "a")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EnvironmentFault, match="must be a file"):
        _reserve(tmp_path / "pipe", "a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentFault, match="cannot be locked"):
        _reserve(tmp_path / "file" / "ledger.json", "a")
    with pytest.raises(EnvironmentFault, match="folder must exist"):
        _reserve(tmp_path / "nowhere" / "ledger.json", "a")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(EnvironmentFault):
        _reserve(tmp_path / "loop", "a")
    (tmp_path / "victim").write_text("x")
    (tmp_path / ".trap.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(EnvironmentFault, match="lock file's place"):
        _reserve(tmp_path / "trap", "a")
    (tmp_path / ".late.partial").symlink_to(tmp_path / "victim")
    _reserve(tmp_path / "late", "a")
    assert (tmp_path / "victim").read_text() == (tmp_path / "file").read_text() == "x"


def test_a_link_is_the_ledger_that_it_names(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(path)
    _reserve(link, "a")
    os.chmod(path, 0o640)
    assert link.is_symlink() and len(_reserve(path, "b").runs) == len(_reserve(link, "b").runs) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    os.link(path, tmp_path / "twin.json")
    with pytest.raises(EnvironmentFault, match="2 names"):
        _reserve(tmp_path / "twin.json", "c")


def test_a_lock_that_is_held_is_reported(path: Path) -> None:
    _reserve(path, "a")
    with (path.parent / ".ledger.json.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(EnvironmentFault, match="another process for more than 0.2 seconds.*fuser"):
            BudgetLedger(path, lock_timeout_s=0.2).settle("a", 1)
        assert time.monotonic() - began < 5
    BudgetLedger(path, lock_timeout_s=0.2).settle("a", 1)


def test_a_lock_file_that_is_removed_lets_nobody_through(path: Path) -> None:
    _reserve(path, "a")
    before = path.read_bytes()
    ledger = BudgetLedger(path)
    with ledger._file.locked() as content:
        budgets = content.read()
        (path.parent / ".ledger.json.lock").unlink()
        with pytest.raises(EnvironmentFault, match="removed while it was in use"):
            content.write(budgets[:0])
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["ledger.json"]


_ONE_RUN = """
import sys, time
from pathlib import Path
from tfbig.errors import GateError
from tfbig.gradients.private.ledger import BudgetLedger
from tfbig.gradients.private.mechanism import Mechanism
path, name, start = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
ledger = BudgetLedger(path, lock_timeout_s=60)
print("ready", flush=True)
while not start.exists():
    time.sleep(0.005)
try:
    ledger.reserve(run_id=name, run_dir=name, dataset="folder", fingerprint="abc", num_steps=10,
                   mechanism=Mechanism(5.0, 1000, 100, "shuffle"), limit_epsilon=%r, limit_delta=1e-5)
except GateError as error:
    sys.exit(error.exit_code)
"""


def test_of_eight_processes_at_once_as_many_pass_as_the_budget_holds(path: Path, tmp_path: Path) -> None:
    limit = (_spent(10, 10, 10) + _spent(10, 10, 10, 10)) / 2
    start = tmp_path / "start"
    program = [sys.executable, "-c", _ONE_RUN % limit, str(path)]
    runs = [subprocess.Popen([*program, f"run{i}", str(start)], stdout=subprocess.PIPE, text=True) for i in range(8)]
    try:
        for run in runs:
            assert run.stdout.readline() == "ready\n"
        start.touch()
        codes = [run.wait(timeout=120) for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert sorted(codes) == [0, 0, 0, 6, 6, 6, 6, 6]
    charged = {charge.run_id for charge in BudgetLedger(path).balance("folder", "").runs}
    assert charged == {f"run{i}" for i, code in enumerate(codes) if code == 0}


_STOP_BEFORE = """
import os, signal, sys
from pathlib import Path
from tfbig.gradients.private.ledger import BudgetLedger
from tfbig.gradients.private.mechanism import Mechanism
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], die)
BudgetLedger(Path(sys.argv[1])).reserve(
    run_id="killed", run_dir="killed", dataset="folder", fingerprint="abc", num_steps=10,
    mechanism=Mechanism(5.0, 1000, 100, "shuffle"), limit_epsilon=2.0, limit_delta=1e-5)
"""


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_run_killed_between_lock_and_write_leaves_the_ledger_as_it_was(path: Path, moment: str) -> None:
    _reserve(path, "a")
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", _STOP_BEFORE, str(path), moment], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    after = BudgetLedger(path, lock_timeout_s=0.2)
    assert [charge.run_id for charge in after.balance("folder", "").runs] == ["a"]
    assert len(_reserve(path, "b").runs) == 2
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".ledger.json.lock", "ledger.json"]
