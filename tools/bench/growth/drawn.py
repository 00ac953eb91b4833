"""One chart an axis: seconds on the left, megabytes on the right, all axes logarithmic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw(path: Path, points: Sequence[Mapping[str, float]], *, axis: str, unit: str) -> None:
    """Writes the chart of an axis as a small PNG.

    Args:
        path: The file.
        points: In the order of their size.
        axis: In the title.
        unit: The figure of a point that grows.
    """
    figure = Figure(figsize=(7.2, 2.9), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    seconds, memory = figure.subplots(1, 2)
    for axes, ending, label in ((seconds, "_s", "CPU seconds"), (memory, "_mb", "peak memory, MB")):
        for name in points[-1]:
            if name.endswith(ending) and "size" not in name and "wall" not in name:
                line = [(point[unit], point[name]) for point in points if point.get(name, 0) > 0]
                axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=name.removesuffix(ending))
        axes.set(xscale="log", xlabel=unit, title=f"{axis}: {label}")
        axes.set_yscale("log") if ending == "_s" else axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, format="png", metadata={"Software": None})
