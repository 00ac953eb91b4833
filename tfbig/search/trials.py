"""A search for settings: which trials there are, who runs them, and how they ended.

KerasTuner's oracles say which settings to try next; the journal remembers it. Each process of a search has an oracle of
its own and brings it to the journal's state before it asks it anything, so there is no server, and nobody waits for a
process that died: a trial belongs to whoever holds its folder's lock, and one without an end and without an owner
is run again. (KerasTuner's own chief waits for the name of a killed worker to come back, for ever.)
In the tree: above journal.py and oracle.py; pipelines/_search_trials.py is the loop, and training/fit.py trains each
trial.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from tfbig.errors import EnvironmentFault, TfbigError, UsageError
from tfbig.search.journal import Journal
from tfbig.search.oracle import Oracle, Tuner
from tfbig.search.space import Parameter, Value
from tfbig.training import checkpoints
from tfbig.training.run_directory import RunDirectory, RunInUse, open_run

State: TypeAlias = Literal["begun", "done", "failed"]

# A trial that ends its process so often without getting on would do so for ever.
MAX_DEATHS = 5


@dataclass
class Trial:
    """One of the settings that are tried.

    Args:
        number: From 0.
        values: Dotted flag -> value.
        state: begun until it has ended.
        score: The loss on the validation examples, lower is better; None where it failed or has not ended.
        reason: Why it failed.
        seconds: That its runs trained.
        facts: What else is known of it, such as the epochs it ran.
        deaths: How often in a row its process was killed without getting on.
        begun_at_step: Where it was when it was begun last; -1 before its first checkpoint.
    """

    number: int
    values: dict[str, Value]
    state: State = "begun"
    score: float | None = None
    reason: str = ""
    seconds: float = 0.0
    facts: dict[str, float] = field(default_factory=dict)
    deaths: int = 0
    begun_at_step: int | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:04d}"


class Trials:
    """The trials of one search, over all its processes.

    Args:
        folder: Where they are; each has a folder of its own in it.
        space: What is drawn.
        tuner: How.
        max_trials: At most so many; fewer where the space has no more.
        max_epochs: hyperband: epochs of the trials that are trained longest.
        seed: Of all draws.
        may_repeat: random: whether two trials may have the same settings.
    """

    def __init__(
        self,
        folder: Path,
        space: Sequence[Parameter],
        *,
        tuner: Tuner,
        max_trials: int,
        max_epochs: int,
        seed: int,
        may_repeat: bool = False,
    ) -> None:
        self.folder, self.max_trials = folder, max_trials
        self._journal = Journal(folder)
        self._oracle = Oracle(
            tuner, space, max_trials=max_trials, max_epochs=max_epochs, seed=seed, may_repeat=may_repeat
        )
        self.all: list[Trial] = []

    def begin(self, held: contextlib.ExitStack, poll_s: float = 0.2) -> tuple[Trial, RunDirectory] | None:
        """The next trial to run, its folder locked; waits while others run what this one may have to run again.

        Args:
            held: Takes the lock of the trial's folder.
            poll_s: Seconds between looks at the others.

        Returns:
            None where all trials have ended.
        """
        while True:
            with self._journal.locked():
                self._catch_up()
                found = self._orphan(held) or self._new(held)
                is_over = found is None and all(trial.state != "begun" for trial in self.all)
            if found is not None or is_over:
                return found
            time.sleep(poll_s)

    def end(self, trial: Trial, *, score: float, seconds: float, facts: Mapping[str, float]) -> None:
        """Says how a trial went; its folder is still locked."""
        self._end(trial, {"state": "done", "score": score, "seconds": seconds, "facts": dict(facts)})

    def fail(self, trial: Trial, reason: str) -> None:
        """Says that a trial cannot be run to its end; its folder is still locked."""
        self._end(trial, {"state": "failed", "reason": reason})

    def pause(self, trial: Trial) -> None:
        """Says that a trial was stopped on request, and its process not killed; its folder is still locked."""
        with self._journal.locked():
            self._catch_up()
            self._write({"event": "pause", "trial": trial.number})

    def refresh(self) -> None:
        """Reads what other processes have written."""
        with self._journal.locked():
            self._catch_up()

    @property
    def best(self) -> Trial | None:
        """The trial with the lowest score, the first of equals; None where none is done."""
        done = [trial for trial in self.all if trial.score is not None]
        return min(done, key=lambda trial: (trial.score, trial.number), default=None)

    def _end(self, trial: Trial, how: dict[str, object]) -> None:
        with self._journal.locked():
            self._catch_up()
            self._write({"event": "end", "trial": trial.number, **how})

    def _write(self, entry: dict) -> None:
        self._journal.add(entry)
        self._note(entry)

    def _catch_up(self) -> None:
        for entry in self._journal.news():
            if not _is_entry(entry, self.all):
                raise EnvironmentFault(
                    f"The search's journal in {self.folder} is damaged, for it holds {json.dumps(entry)[:80]}; search "
                    "anew with --resume never."
                )
            self._note(entry)

    def _note(self, entry: dict) -> None:
        """Brings memory and oracle to what a line says."""
        if entry["event"] == "plan":
            return
        number = entry["trial"]
        if entry["event"] == "new":
            values, is_new = entry["values"], number == self._oracle.num_asked
            if not self._oracle.is_of_space(values) or (is_new and self._oracle.ask(values) != values):
                raise UsageError(_OTHER_SEARCH.format(self.folder))
            self.all.append(Trial(number, values))
            return
        trial = self.all[number]
        if entry["event"] == "begin":
            trial.deaths = trial.deaths + 1 if entry["step"] == trial.begun_at_step else 0
            trial.begun_at_step = entry["step"]
        elif entry["event"] == "pause":
            trial.begun_at_step = None
        else:
            trial.state, trial.score = entry["state"], entry.get("score")
            trial.reason, trial.seconds = entry.get("reason", ""), entry.get("seconds", 0.0)
            trial.facts = entry.get("facts", {})
            self._oracle.tell(number, trial.score)

    def _orphan(self, held: contextlib.ExitStack) -> tuple[Trial, RunDirectory] | None:
        """A trial that somebody began and nobody runs."""
        for trial in self.all:
            run = None if trial.state != "begun" else self._taken(trial, held)
            if run is None:
                continue
            if trial.deaths >= MAX_DEATHS - 1:
                reason = f"its process was killed {MAX_DEATHS} times without getting on; is the memory too small?"
                self._write({"event": "end", "trial": trial.number, "state": "failed", "reason": reason})
                continue
            self._write({"event": "begin", "trial": trial.number, "step": _progress(run), "process": os.getpid()})
            return trial, run
        return None

    def _new(self, held: contextlib.ExitStack) -> tuple[Trial, RunDirectory] | None:
        number = len(self.all)
        values = None if number >= self.max_trials else self._oracle.ask()
        if values is None:
            return None
        self._write({"event": "new", "trial": number, "values": values})
        trial = self.all[number]
        run = self._taken(trial, held)
        if run is None:
            raise UsageError(f"{self.folder / trial.name} is held by a process of another search; end it first.")
        self._write({"event": "begin", "trial": number, "step": -1, "process": os.getpid()})
        return trial, run

    def _taken(self, trial: Trial, held: contextlib.ExitStack) -> RunDirectory | None:
        try:
            return held.enter_context(open_run(self.folder / trial.name))
        except RunInUse:
            return None


def _is_entry(entry: Mapping[str, object], trials: Sequence[Trial]) -> bool:
    """Whether a line of the journal can stand behind those that told of these trials."""
    event, number = entry.get("event"), entry.get("trial")
    if event == "plan":
        return isinstance(entry.get("plan"), dict)
    if event == "new":
        return number == len(trials) and isinstance(entry.get("values"), dict)
    if type(number) is not int or not 0 <= number < len(trials) or trials[number].state != "begun":
        return False
    if event == "end":
        score = entry.get("score")
        is_done = entry.get("state") == "done" and isinstance(score, float) and math.isfinite(score)
        return is_done or (entry.get("state") == "failed" and score is None)
    return event == "pause" or (event == "begin" and isinstance(entry.get("step"), int))


_OTHER_SEARCH = (
    "The journal in {} is of another search, or was written with another version of KerasTuner or tfbig; search anew "
    "with --resume never."
)


def planned(
    folder: Path, draw: Callable[[], dict[str, object]], accept: Callable[[dict[str, object]], None]
) -> dict[str, object]:
    """What was decided before the first trial of a search, by whichever of its processes came first.

    Args:
        folder: Of the trials.
        draw: Decides it, where nobody has.
        accept: Called with it, each time; where it refuses a new one by a TfbigError, nothing was decided.

    Raises:
        UsageError: The search in the folder began without.
    """
    journal = Journal(folder)
    with journal.locked():
        lines = journal.news()
        if lines and (lines[0].get("event") != "plan" or not _is_entry(lines[0], ())):
            raise UsageError(_OTHER_SEARCH.format(folder))
        if lines:
            plan = lines[0]["plan"]
            accept(plan)
            return plan
        plan = draw()
        # It holds the secret of what is tried.
        journal.path.chmod(0o600)
        # Before it is charged: killed in between, it is charged under the same name.
        journal.add({"event": "plan", "plan": plan})
        try:
            accept(plan)
        except TfbigError:
            journal.forget()
            raise
        return plan


def _progress(run: RunDirectory) -> int:
    """The steps of a trial's newest checkpoints, over all of its executions; -1 where it has none."""
    folders = [run.path, *run.path.parent.glob(f"{run.path.name}.*")]
    found = (checkpoints.latest_step(folder / "checkpoints") for folder in folders)
    steps = [step for step in found if step is not None]
    return sum(steps) + len(steps) - 1
