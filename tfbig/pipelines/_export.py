"""A run's export: what of the data it is checked on, and what goes beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tfbig.training.task import Task

if TYPE_CHECKING:
    from tfbig.training.assembly import Assembly

_NUM_SAMPLES = 16


def export_version(task: Task, assembly: Assembly, directory: Path) -> Path:
    """Writes the next version, checked against the network on examples from all over the test split.

    Args:
        task: Says what is served.
        assembly: Holds the network and the data.
        directory: The folder that a server watches.

    Returns:
        The version's folder.

    Raises:
        GateError: The export does not give the network's results.
        EnvironmentFault: The folder cannot be written.
    """
    import numpy as np

    from tfbig.networks.fused import plain
    from tfbig.serving.export import SERVING_DEFAULT, class_assets, export, served_samples

    split, spec = assembly.splits.test, assembly.splits.spec
    # A server, or whoever trains the export further, knows only TensorFlow's own gradients.
    network = plain(assembly.network)
    signatures = task.signatures(network, spec)
    chosen = np.linspace(0, len(split) - 1, min(_NUM_SAMPLES, len(split))).astype(int)
    return export(
        network,
        signatures,
        directory,
        samples=served_samples(signatures[SERVING_DEFAULT], split, chosen),
        assets=class_assets(spec),
    )
