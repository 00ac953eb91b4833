"""What the tools' scripts of the input bench share: the batch and the turns. Standard library only."""

from __future__ import annotations

from scripts import versions as versions_of
from turns import Turns

BATCH_SIZE = 16
SIDE = 224
WARM_UP_STEPS = 10


def turns(*packages: str, **versions: str) -> Turns:
    """The turns of a tool that uses these packages."""
    found = versions_of(*packages) | versions
    return Turns(warm_up_steps=WARM_UP_STEPS, facts={"versions": found})
