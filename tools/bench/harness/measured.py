"""What tools that take turns have been found to need, and the turns themselves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from environments import Unavailable
from processes import Worker


@dataclass
class Timed:
    """What was measured of tools that do the same work.

    Args:
        seconds: By tool: CPU seconds a step of each turn.
        facts: By tool: what its process told of itself, `versions` above all.
        absent: By tool: why there is nothing.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, dict] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def median(self, tool: str) -> float | None:
        """CPU seconds a step; None where there is nothing."""
        times = [] if tool in self.absent else self.seconds.get(tool, [])
        return statistics.median(times) if times else None

    def take_turns(self, workers: Mapping[str, Worker], *, num_turns: int, num_steps: Mapping[str, int]) -> None:
        """Fills `seconds`; every other round goes the other way round. A worker that fails is left out.

        Args:
            workers: By tool.
            num_turns: Of each.
            num_steps: In a turn, by tool.
        """
        for turn in range(num_turns):
            for name in [*workers] if turn % 2 == 0 else [*workers][::-1]:
                if name in self.absent:
                    continue
                try:
                    seconds = workers[name].turn(num_steps[name])
                except Unavailable as why:
                    self.absent[name] = str(why)
                else:
                    self.seconds.setdefault(name, []).append(seconds)


@dataclass
class Measured(Timed):
    """The same of tfbig and its peers."""

    def ratio(self, *peers: str) -> float | None:
        """Time of the fastest of the peers over tfbig's; above 1 tfbig is faster."""
        theirs = [time for peer in peers if (time := self.median(peer)) is not None]
        ours = self.median("tfbig")
        return None if ours is None or not theirs else min(theirs) / ours
