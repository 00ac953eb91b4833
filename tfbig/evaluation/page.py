"""The frame of a self-contained HTML page: style, sections, tables and small pictures.

Nothing here is loaded from anywhere: the policy in the head forbids it, scripts included, so that a file
name that slipped through unescaped would still do nothing. Used by report.py.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from PIL import Image

THUMBNAIL_PIXELS = 144

_STYLE = """
:root { color-scheme: light dark; --paper: #f5f6f8; --card: #fff; --ink: #1c2330; --soft: #5d6778; --rule: #e1e5eb;
  --accent: #2f6fed; --quiet: #9aa5b8; --miss: #e06028; --warn: #fdf3e3; --warn-ink: #7a4a08; --track: #e8ecf2; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161d; --card: #1a2029; --ink: #e6eaf1; --soft: #97a2b5;
  --rule: #2b3340; --accent: #6ea0ff; --quiet: #66738a; --miss: #f0834f; --warn: #33270f; --warn-ink: #f0cf94;
  --track: #2a3240; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 20px 60px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; } h3 { font-size: 14px; margin: 0 0 8px; font-weight: 600; }
.below { margin-top: 18px; }
p { margin: 0 0 12px; } .soft, .lead { color: var(--soft); } .lead { margin-bottom: 22px; overflow-wrap: anywhere; }
section, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; }
section { padding: 20px 22px; margin-top: 16px; } section .soft { font-size: 13.5px; max-width: 80ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; }
.card { padding: 13px; } .card .title { color: var(--soft); font-size: 12.5px; white-space: nowrap; }
.card .value { font-size: 25px; white-space: nowrap; font-weight: 650; letter-spacing: -.02em; line-height: 1.3; }
.card .range { color: var(--soft); font-size: 12.5px; } .value, .range, td.n { font-variant-numeric: tabular-nums; }
.interval { display: block; width: 100%; height: 6px; margin: 6px 0 7px; } .track { fill: var(--track); }
.level { fill: var(--accent); fill-opacity: .35; } .span { fill: var(--accent); }
.warnings { background: var(--warn); color: var(--warn-ink); border: 0; border-radius: 12px; padding: 12px 20px;
  margin-top: 16px; } .warnings ul { margin: 4px 0 2px; padding-left: 18px; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 16px 34px; }
.chart { display: block; width: 100%; height: auto; margin: 0 auto; } .pair { align-items: start; }
.chart text { font-family: inherit; } .tick, .count, .name { fill: var(--soft); } .tick { font-size: 11.5px; }
.count { fill: var(--ink); } .on { fill: #fff; font-weight: 600; } .axis-name { fill: var(--soft); font-size: 12px;
  font-weight: 600; } .grid, .axis { stroke: var(--rule); fill: none; }
.mark { stroke: var(--soft); stroke-dasharray: 2 4; }
.line path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.quiet path { stroke: var(--quiet); } .quiet circle { fill: var(--quiet); } .accent path { stroke: var(--accent); }
.accent circle { fill: var(--accent); } .hit, .bar, .beyond { fill: var(--accent); } .hit { fill-opacity: .75; }
.bar, .beyond { fill-opacity: .35; } .miss, .gap { fill: var(--miss); } 
.gap { fill-opacity: .55; } .empty { fill: var(--track); fill-opacity: .45; }
.ideal { stroke: var(--ink); stroke-opacity: .55; stroke-dasharray: 4 4; fill: none; }
.frame { fill: var(--track); fill-opacity: .35; stroke: var(--rule); } .pixels { image-rendering: pixelated; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--soft); font-size: 13px; margin: 0 0 6px; }
.legend i { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: var(--quiet); } .legend .a { background: var(--accent); }
.legend .m { background: var(--miss); } .legend .b { background: var(--accent); opacity: .4; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; } th { text-align: left; color: var(--soft);
  font-weight: 600; } th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td { overflow-wrap: anywhere; } th.n, td.n { text-align: right; white-space: nowrap; } tr:last-child td { border: 0; }
td .meter { display: inline-block; width: 74px; height: 6px; border-radius: 3px; background: var(--track);
  margin-right: 9px; vertical-align: 1px; overflow: hidden; } .meter b { display: block; height: 100%;
  background: var(--accent); } .gallery { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); margin-top: 10px; }
figure { margin: 0; font-size: 13px; line-height: 1.4; break-inside: avoid; min-width: 0; }
figure .picture { aspect-ratio: 1; display: grid; place-items: center; background: var(--track); border-radius: 9px;
  overflow: hidden; margin-bottom: 7px; color: var(--soft); text-align: center; padding: 0; font-size: 12px; }
figure img { width: 100%; height: 100%; object-fit: contain; } figure img.small { image-rendering: pixelated; }
figcaption div { overflow-wrap: anywhere; } .wrong { color: var(--miss); font-weight: 600; }
.right { color: var(--accent); font-weight: 600; } .file { color: var(--soft); font-size: 11.5px; }
.facts { columns: 2 330px; column-gap: 36px; font-size: 13px; margin: 8px 0 0; }
.facts div { display: flex; justify-content: space-between; gap: 16px; break-inside: avoid; padding: 3px 0;
  border-bottom: 1px solid var(--rule); } .facts dt { color: var(--soft); } .facts dd { margin: 0; text-align: right;
  overflow-wrap: anywhere; min-width: 0; } footer { color: var(--soft); font-size: 12.5px; margin-top: 22px; }
@media (max-width: 560px) { main { padding: 22px 12px 40px; } section { padding: 16px 14px; } h1 { font-size: 23px; }
  .cards { grid-template-columns: 1fr 1fr; } .gallery { grid-template-columns: 1fr 1fr; } }
@media print { :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #111; --soft: #555; --rule: #ddd;
  --accent: #2f6fed; --quiet: #9aa5b8; --miss: #d9541c; --track: #eee; } body { font-size: 12px;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; } main { max-width: none; padding: 0; }
  section { padding: 12px 14px; } .cards, .pair > div, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document.

    Args:
        title: Plain text.
        body: HTML elements.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *content: str, note: str = "") -> str:
    """A titled card; `content` is HTML, `title` and `note` are plain text. Empty where there is no content."""
    inner = "".join(content)
    if not inner:
        return ""
    lead = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{inner}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int] = ()) -> str:
    """A table.

    Args:
        head: Plain column titles.
        rows: Cells of HTML, which the caller has escaped.
        numeric: Columns that are set flush right.
    """
    kinds = [' class="n"' if column in numeric else "" for column in range(len(head))]
    titles = "".join(f"<th{kind}>{escape(title)}</th>" for kind, title in zip(kinds, head, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Plain names and values, in columns."""
    lines = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_shown(value))}</dd></div>"
        for name, value in pairs
    )
    return f'<dl class="facts">{lines}</dl>' if lines else ""


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)


def thumbnail(fetch: Callable[[int], bytes], index: int) -> str:
    """An example as a small inline picture, or a line that says why it cannot be shown.

    Args:
        fetch: Index -> the encoded picture (JPEG, PNG, GIF, BMP), any mode and size.
        index: Which one.
    """
    try:
        with Image.open(io.BytesIO(fetch(index))) as stored:
            picture = _eight_bits(stored)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "this file cannot be shown"
    small = max(picture.size) < THUMBNAIL_PIXELS
    picture.thumbnail((2 * THUMBNAIL_PIXELS, 2 * THUMBNAIL_PIXELS))
    encoded = io.BytesIO()
    # JPEG would smear a digit of eight pixels, and has no transparency.
    kind = "png" if small or picture.mode in ("RGBA", "LA") else "jpeg"
    picture.save(encoded, kind, **({"optimize": True} if kind == "png" else {"quality": 80}))
    data = base64.b64encode(encoded.getvalue()).decode()
    return f'<img{" class=small" if small else ""} alt="" src="data:image/{kind};base64,{data}">'


def _eight_bits(picture: Image.Image) -> Image.Image:
    """The first frame in 8-bit grey, colour or colour with alpha."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture, np.float64)
        return Image.fromarray((255 * values / max(values.max(), 1)).astype(np.uint8))
    if picture.mode in ("L", "RGB", "RGBA"):
        return picture.copy()
    return picture.convert("RGBA" if picture.mode in ("PA", "LA", "P") else "RGB")
