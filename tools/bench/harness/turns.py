"""A tool's training loop, stopped after every few steps until it is its turn again.

Standard library only: it is imported in the environment of every tool. The tool trains with its own loop
(`fit`, `Trainer.train`) and calls `Turns.step_done` after each step. CPU time is that of the whole process, all
its threads, from the end of one turn to the end of the next: what a pipeline prefetches while others have their
turn belongs to the steps that use it. Wall time, for devices that compute while the process waits, is that of the turn
alone; a tool whose steps end before the device has done so waits for it where `ends_turn` says so.
"""

from __future__ import annotations

import json
import os
import sys
import time

ANSWERS = "TFBIG_BENCH_ANSWERS"
"""Environment variable: the file descriptor that the parent listens to."""


class Turns:
    """Answers a parent process, which names how many steps come next on stdin.

    Args:
        warm_up_steps: Steps before the first answer, at least 1.
        facts: What the first answer holds besides: versions, sizes.
    """

    def __init__(self, *, warm_up_steps: int, facts: dict[str, object]) -> None:
        if warm_up_steps < 1:
            raise ValueError(f"warm_up_steps must be at least 1, got {warm_up_steps}; 3 is usual.")
        self._left, self._num_steps, self._facts = warm_up_steps, warm_up_steps, facts
        # Not stdout, where libraries print what they like.
        self._answers = os.fdopen(int(os.environ[ANSWERS]), "w")
        self._cpu_s, self._begun_at = 0.0, time.perf_counter()

    @property
    def ends_turn(self) -> bool:
        """Whether the step that is being counted is the last one before the answer."""
        return self._left == 1

    def step_done(self) -> None:
        """Counts a step. After the last of a turn it answers and waits for the next; ends the process at the end.

        Raises:
            SystemExit: The parent wants no more.
        """
        self._left -= 1
        if self._left:
            return
        cpu_s = time.process_time()
        spent = {"cpu_s": cpu_s - self._cpu_s, "wall_s": time.perf_counter() - self._begun_at}
        self._answer({**spent, "num_steps": self._num_steps, **self._facts})
        self._cpu_s, self._facts = cpu_s, {}
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        self._left = self._num_steps = int(line)
        self._begun_at = time.perf_counter()

    def _answer(self, content: dict[str, object]) -> None:
        print(json.dumps(content), file=self._answers, flush=True)
