"""Features of a frozen trunk, computed once, so that each epoch trains only what is trained.

Right only where the trunk gives the same features for an example each time: it is frozen, runs in
inference mode, and nothing augments its inputs. `assembly.py` decides that.
"""

from __future__ import annotations

import logging
import time

import keras
import numpy as np

from tfbig.data.splits import IndexPlan, Split, array_split, batches

log = logging.getLogger(__name__)


def extract(trunk: keras.Model, split: Split, *, batch_size: int) -> Split:
    """The same examples with the trunk's outputs as their features.

    Args:
        trunk: Frozen network, features in, (B, D) out.
        split: N examples.
        batch_size: Examples a forward pass, over all devices.

    Returns:
        A split in memory: N * D * 4 bytes.
    """
    began = time.monotonic()
    plan = IndexPlan(len(split), batch_size, shuffle=False)
    dataset = batches(split, plan).map(lambda x, y, weight: x)
    rows = trunk.predict(dataset, verbose=0)[: len(split)]  # (N, D)
    log.info("computed the frozen backbone's features of %d examples in %.1f s", len(split), time.monotonic() - began)
    return array_split(np.asarray(rows, np.float32), split.labels, names=split.names)
