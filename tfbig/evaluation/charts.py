"""Charts as small inline SVG, coloured by the page's CSS variables, and one PNG for TensorBoard.

SVG instead of matplotlib pictures on the page: it is a hundredth of the size, sharp in print, and follows
the reader's light or dark setting. Letters in shapes: C classes. Used by report.py and fit's callers.
"""

from __future__ import annotations

import base64
import io
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import cast

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

Point = tuple[float, float]

# Above this many classes the cells of a confusion matrix are too small for numbers and become pixels.
_MAX_NUMBERED = 25
# Above this many it has fewer pixels than cells.
_MAX_DRAWN = 1000
_HIT_RGB, _MISS_RGB = (47, 111, 237), (224, 96, 40)
_CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "SimHei")


def line_chart(series: Mapping[str, Sequence[Point]], *, label: str, mark: float | None = None) -> str:
    """Lines over epochs.

    Args:
        series: Name -> points (epoch, value); the first is drawn quietly, the last in the accent colour.
        label: What the chart shows, for screen readers.
        mark: Epoch to mark with a vertical line.

    Returns:
        An svg element; empty where no series has a point.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    left, top, width, height = 46, 14, 400, 196
    x_ticks = _ticks(min(x for x, _ in points), max(x for x, _ in points), whole=True)
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    x_low, x_high = min(x for x, _ in points), max(max(x for x, _ in points), x_ticks[-1])
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> Point:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return left + width * across, top + height * (1 - (y - y_low) / (y_high - y_low))

    parts = [_y_axis(y_ticks, place, left, left + width)]
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{top + height + 17}" text-anchor="middle">{tick:g}</text>')
    if mark is not None:
        x, _ = place(mark, y_low)
        parts.append(f'<path class="mark" d="M{x:.1f} {top}V{top + height}"><title>epoch {mark:g}</title></path>')
    for index, (name, line) in enumerate(series.items()):
        quiet = "quiet" if index < len(series) - 1 else "accent"
        parts.append(_line(name, [place(*point) for point in line], line, quiet))
    return _svg(left + width + 14, top + height + 26, label, parts)


def calibration_chart(bins: Sequence[Mapping[str, object]]) -> str:
    """Accuracy against confidence, with the number of decisions in each bin below.

    Args:
        bins: The `calibration` of evaluation.json.

    Returns:
        An svg element.
    """
    left, top, side, strip = 46, 14, 236, 44
    most = max((_float(row["count"]) for row in bins), default=0.0) or 1.0
    base = top + side + 12

    def place(x: float, y: float) -> Point:
        return left + 1.7 * side * x, top + side * (1 - y)

    right, _ = place(1, 0)
    parts = [_y_axis([0, 0.25, 0.5, 0.75, 1.0], place, left, right)]
    for row in bins:
        if row["confidence"] is None:
            continue
        confidence, accuracy, count = _float(row["confidence"]), _float(row["accuracy"]), _float(row["count"])
        x_from, y = place(_float(row["low"]), accuracy)
        x_to, y_ideal = place(_float(row["high"]), confidence)
        width = x_to - x_from - 2
        title = f"<title>said {confidence:.3f}, was right {accuracy:.3f}, {count:.0f} decisions</title>"
        bar = strip * count / most
        # Overconfident: the part that is missing. Underconfident: the part beyond what was said.
        kind = "gap" if y > y_ideal else "beyond"
        pieces = [
            ("hit", max(y, y_ideal), top + side - max(y, y_ideal)),
            (kind, min(y, y_ideal), abs(y - y_ideal)),
            ("bar", base + strip - bar, bar),
        ]
        rects = "".join(
            f'<rect class="{name}" x="{x_from + 1:.1f}" y="{y_top:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
            for name, y_top, height in pieces
        )
        parts.append(f"<g>{title}{rects}</g>")
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    parts.append(f'<path class="ideal" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    parts.append(f'<path class="axis" d="M{left} {base + strip}H{right:.1f}"/>')
    for tick in (0, 0.25, 0.5, 0.75, 1.0):
        x, _ = place(tick, 0)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + strip + 17}" text-anchor="middle">{tick:g}</text>')
    return _svg(right + 14, base + strip + 26, "Accuracy against confidence", parts)


def roc_chart(points: Sequence[Point], *, label: str) -> str:
    """True against false positive rate, with the diagonal of guessing.

    Args:
        points: (false, true) rates from (0, 0) to (1, 1).
        label: What the chart shows, for screen readers.

    Returns:
        An svg element.
    """
    left, top, side = 46, 14, 280

    def place(x: float, y: float) -> Point:
        return left + side * x, top + side * (1 - y)

    ticks = (0, 0.25, 0.5, 0.75, 1.0)
    parts = [_y_axis(ticks, place, left, left + side)]
    for tick in ticks:
        x, y = place(tick, 0)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{tick:g}</text>')
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    parts.append(f'<path class="ideal" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    placed = [place(*point) for point in points]
    path = "".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(placed))
    parts.append(f'<g class="line accent"><path d="{path}"/></g>')
    parts.append(
        f'<text class="axis-name" x="{left + side / 2}" y="{top + side + 36}" text-anchor="middle">false positive rate'
        f'</text><text class="axis-name" text-anchor="middle" transform="translate(10 {top + side / 2}) rotate(-90)">'
        f"true positive rate</text>"
    )
    return _svg(left + side + 14, top + side + 44, label, parts)


def interval_bar(value: float, low: float, high: float) -> str:
    """A value and its interval on a scale of 0 to 1, as a thin bar."""
    return (
        f'<svg class="interval" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="6" rx="3"/>'
        f'<rect class="level" width="{100 * value:.1f}" height="6" rx="3"/>'
        f'<rect class="span" x="{100 * low:.1f}" width="{max(100 * (high - low), 0.8):.1f}" height="6"/></svg>'
    )


def drawn_confusions(report: Mapping[str, object]) -> np.ndarray | None:
    """The confusion matrix of a report, where there is one and few enough classes to draw it.

    Args:
        report: As `metrics.classification_metrics` gives it.

    Returns:
        (C, C) int64 counts, rows true and columns predicted; None above 1,000 classes and for multi-label data.
    """
    if "confusion_matrix" in report:
        return np.asarray(report["confusion_matrix"])
    num_classes = len(cast(list, report.get("per_class", [])))
    if "confusions" not in report or num_classes > _MAX_DRAWN:
        return None
    true, said, count = np.asarray(report["confusions"], np.int64).reshape(-1, 3).T
    matrix = np.zeros((num_classes, num_classes), np.int64)
    matrix[true, said] = count
    return matrix


def confusion_chart(matrix: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str]) -> str:
    """A confusion matrix, rows true and columns predicted, each cell shaded by its share of the row.

    Args:
        matrix: (C, C) counts.
        class_names: C names.

    Returns:
        An svg element, with numbers in the cells up to 25 classes and pixels above.
    """
    counts = np.asarray(matrix)
    num_classes = len(counts)
    numbered = num_classes <= _MAX_NUMBERED
    cell = min(96.0, max(30.0, 440 / num_classes)) if numbered else 640 / num_classes
    shown = range(num_classes) if num_classes <= 50 else range(0, num_classes, math.ceil(num_classes / 40))
    names = {c: _shortened(str(class_names[c])) for c in shown}
    size = 12 if numbered else min(11.0, max(8.0, cell))
    longest = max(_text_width(name, size) for name in names.values())
    level = longest < cell - 4
    left, head = longest + 34, 40 if level else longest * 0.78 + 34
    side = cell * num_classes
    parts = _cells(counts, class_names, cell, left, head) if numbered else [_pixels(counts, side, left, head)]
    for c, name in names.items():
        middle, text = (c + 0.5) * cell, escape(name)
        turn = 'text-anchor="middle"' if level else 'dominant-baseline="central"'
        parts.append(
            f'<text class="name" x="{left - 7:.1f}" y="{head + middle:.1f}" font-size="{size}" text-anchor="end" '
            f'dominant-baseline="central">{text}</text>'
            f'<text class="name" font-size="{size}" {turn} transform="translate({left + middle:.1f} '
            f'{head - 8:.1f}) rotate({0 if level else -50})">{text}</text>'
        )
    parts.append(
        f'<text class="axis-name" x="{left + side / 2:.1f}" y="11" text-anchor="middle">predicted</text>'
        f'<text class="axis-name" text-anchor="middle" transform="translate(10 {head + side / 2:.1f}) rotate(-90)">'
        f"true</text>"
    )
    return _svg(left + side + (8 if level else longest * 0.65 + 8), head + side + 4, "Confusion matrix", parts)


def confusion_matrix_png(matrix: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str]) -> bytes:
    """The confusion matrix as a PNG of about 800 x 800 pixels, for TensorBoard.

    Args:
        matrix: (C, C) counts, rows true and columns predicted.
        class_names: C names; written as numbers where no installed font has their letters.

    Returns:
        The encoded picture.
    """
    counts = np.asarray(matrix)
    figure = Figure(figsize=(8, 8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(_row_shares(counts), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    family = _font_for("".join(map(str, class_names)))
    if len(counts) <= 40:
        names = [str(c) if family is None else _shortened(str(name)) for c, name in enumerate(class_names)]
        axes.set_xticks(range(len(counts)), names, rotation=50, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(counts)), names)
        for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            # A dollar sign would start matplotlib's own mathematics.
            text.set(family=family or "DejaVu Sans", parse_math=False)
    if len(counts) <= _MAX_NUMBERED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            dark = counts[row, column] > 0.5 * counts[row].sum()
            axes.text(column, row, counts[row, column], ha="center", va="center", color="white" if dark else "#333")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _cells(counts: np.ndarray, class_names: Sequence[str], cell: float, left: float, top: float) -> list[str]:
    shares, parts = _row_shares(counts), []
    for row in range(len(counts)):
        for column in range(len(counts)):
            x, y, count, share = left + column * cell, top + row * cell, counts[row, column], shares[row, column]
            kind = "empty" if not count else "hit" if row == column else "miss"
            # The square root keeps one mistake in fifty visible.
            strength = math.sqrt(share) * 0.9 + 0.08 if count else 1.0
            title = f"{class_names[row]} taken for {class_names[column]}: {count} of {counts[row].sum()}"
            parts.append(
                f'<g><title>{escape(title)}</title><rect class="{kind}" x="{x + 1:.1f}" y="{y + 1:.1f}" '
                f'width="{cell - 2:.1f}" height="{cell - 2:.1f}" rx="3" fill-opacity="{strength:.2f}"/>'
            )
            if count:
                size = min(13.0, 1.5 * (cell - 4) / max(len(str(count)), 2))
                parts.append(
                    f'<text class="{"on" if strength > 0.6 else "count"}" x="{x + cell / 2:.1f}" '
                    f'y="{y + cell / 2:.1f}" font-size="{size:.1f}" text-anchor="middle" '
                    f'dominant-baseline="central">{count}</text>'
                )
            parts.append("</g>")
    return parts


def _pixels(counts: np.ndarray, side: float, left: float, top: float) -> str:
    rgba = np.zeros((*counts.shape, 4), np.uint8)
    rgba[..., :3] = _MISS_RGB
    rgba[np.diag_indices(len(counts))] = (*_HIT_RGB, 0)
    rgba[..., 3] = np.where(counts > 0, 255 * (np.sqrt(_row_shares(counts)) * 0.9 + 0.1), 0)
    picture = io.BytesIO()
    Image.fromarray(rgba).save(picture, "PNG", optimize=True)
    data = base64.b64encode(picture.getvalue()).decode()
    return (
        f'<rect class="frame" x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}"/>'
        f'<image class="pixels" x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
    )


def _row_shares(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)


def _line(name: str, placed: Sequence[Point], points: Sequence[Point], kind: str) -> str:
    path = "".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(placed))
    radius = 2.6 if len(points) <= 40 else 1.2
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(name)}, epoch {epoch:g}: {value:.4g}</title>'
        "</circle>"
        for (x, y), (epoch, value) in zip(placed, points, strict=True)
    )
    return f'<g class="line {kind}"><path d="{path}"/>{dots}</g>'


def _y_axis(ticks: Sequence[float], place: Callable[[float, float], Point], left: float, right: float) -> str:
    parts = []
    for tick in ticks:
        _, y = place(0, tick)
        parts.append(
            f'<path class="grid" d="M{left} {y:.1f}H{right:.1f}"/><text class="tick" x="{left - 7}" y="{y:.1f}" '
            f'text-anchor="end" dominant-baseline="central">{tick:g}</text>'
        )
    return "".join(parts)


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Four to six round numbers that span [low, high]; within it where they must be whole."""
    span = (high - low) or abs(high) or 1.0
    magnitude = 10 ** math.floor(math.log10(span / 4))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= span / 5)
    if whole:
        step = max(1, math.ceil(step))
        return [float(x) for x in range(step * math.ceil(low / step), math.floor(high) + 1, step)] or [low]
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width * 1.15:.0f}px" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _text_width(text: str, size: float) -> float:
    return sum(1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.57 for letter in text) * size


def _shortened(text: str, limit: int = 18) -> str:
    return text if len(text) <= limit else f"{text[: limit - 7]}…{text[-6:]}"


def _font_for(text: str) -> str | None:
    """An installed font family that has the letters; None where there is none."""
    if text.isascii():
        return "DejaVu Sans"
    installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    for family in ("DejaVu Sans", *_CJK_FONTS):
        if family in installed and set(map(ord, text)) <= set(font_manager.get_font(installed[family]).get_charmap()):
            return family
    return None


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
