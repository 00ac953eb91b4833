"""Characters as many hands would write them: fonts rendered, bent, re-inked and scanned at few pixels.

What `make_glyph_backbone.py` learns from. Glyphs are kept as distance fields (pixels to the ink), so that a
pen of any width inks them after any deformation. Thinning: Zhang and Suen 1984 (doi 10.1145/357994.358023).
Letters in shapes: G glyphs, B a batch, K the canvas, P the page that is scanned, W waves, N points, S the
image that comes out. Points are (y, x) in pixels from the centre.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

IMAGE_SIZE = 16
CANVAS = 48  # pixels of a stored glyph
BOX = 32  # the larger side of its ink, centred on the canvas
PAGE = 32  # pixels of the page that is scanned

# Characters that a normalised size makes one: capitals that are grown small letters, strokes, and the
# Greek capitals that print as Latin ones.
LOOK_ALIKE = {capital: capital.lower() for capital in "COSUVWXZPKY"}
LOOK_ALIKE |= dict(zip("0I|ΙΟο", "ollloo", strict=True))
LOOK_ALIKE |= dict(zip("ΑΒΕΖΗΚΜΝΡΤΥΧ", "ABEzHkMNpTyx", strict=True))


@dataclass(frozen=True)
class Glyphs:
    """Characters as distance fields, from which a pen of any width can ink them.

    Args:
        outline: (G, K, K) signed pixels to the printed outline, negative inside: print, made bold or light.
        skeleton: (G, K, K) pixels to the thinned stroke: the same character in a pen's hand.
        labels: (G,) class of each glyph.
        classes: The character that names each class.
    """

    outline: np.ndarray
    skeleton: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def bundled_fonts() -> list[Path]:
    """The font files that matplotlib ships."""
    return sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"))


def render(fonts: Sequence[Path]) -> Glyphs:
    """Every character of the fonts that has a class."""
    inks: list[np.ndarray] = []
    names: list[str] = []
    for font in fonts:
        pen = ImageFont.truetype(str(font), 120)
        for code in sorted(FT2Font(str(font)).get_charmap()):
            name = class_of(chr(code), font.name)
            ink = None if name is None else draw(chr(code), pen)
            if ink is not None:
                inks.append(ink)
                names.append(name)
    classes = tuple(sorted(set(names)))
    ink = np.stack(inks)  # (G, K, K)
    distance = ndimage.distance_transform_edt
    return Glyphs(
        outline=np.stack([distance(~g) - distance(g) for g in ink]).astype(np.float32),
        skeleton=np.stack([distance(~g) for g in thinned(ink)]).astype(np.float32),
        labels=np.searchsorted(classes, names).astype(np.int32),
        classes=classes,
    )


def class_of(character: str, font: str) -> str | None:
    """The class of a character, or None for those not learnt (accents, ligatures, other scripts).

    Styled forms count as what they are styles of: a script, double-struck or superscript A is an A.
    """
    # The symbol fonts of TeX put their own signs where Unicode has letters.
    if font.startswith(("cmex", "cmsy", "cmmi", "LastResort", "STIXSiz", "STIXNonUni")):
        if not (font.startswith("cmmi") and character.isascii() and character.isalpha()):
            return None
    if unicodedata.decomposition(character).startswith(("<circle>", "<square>")):
        return None
    base = unicodedata.normalize("NFKC", character)
    if len(unicodedata.normalize("NFD", base)) != 1:
        return None
    base = LOOK_ALIKE.get(base, base)
    is_sign = base in "!#$%&*+/<=>?@^~"
    is_greek = "Α" <= base <= "ω"
    return base if (base.isascii() and base.isalnum()) or is_sign or is_greek else None


def draw(character: str, pen: ImageFont.FreeTypeFont) -> np.ndarray | None:
    """The character's ink, its larger side grown to `BOX`, centred: (K, K) bool; None where it is blank."""
    page = Image.new("L", (240, 240))
    ImageDraw.Draw(page).text((60, 40), character, fill=255, font=pen)
    box = page.getbbox()
    if box is None:
        return None
    page = page.crop(box)
    scale = BOX / max(page.size)
    width, height = (max(2, round(side * scale)) for side in page.size)
    canvas = np.zeros((CANVAS, CANVAS), bool)
    left, top = (CANVAS - width) // 2, (CANVAS - height) // 2
    # Below one half, so that hairlines survive.
    canvas[top:top + height, left:left + width] = np.asarray(page.resize((width, height), Image.Resampling.BOX)) > 90
    return canvas if canvas.any() else None


def thinned(ink: np.ndarray) -> np.ndarray:
    """Strokes of one pixel with the same topology (Zhang and Suen 1984): (G, K, K) bool -> the same."""
    ink = ink.copy()
    while True:
        before = ink.sum()
        for side in (0, 1):
            # The eight neighbours, clockwise from above.
            ring = [np.roll(ink, shift, (1, 2)) for shift in
                    ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))]
            north, east, south, west = ring[0], ring[2], ring[4], ring[6]
            count = sum(n.astype(np.int8) for n in ring)
            rises = sum((~a & b).astype(np.int8) for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
            if side == 0:
                open_side = ~(north & east & south) & ~(east & south & west)
            else:
                open_side = ~(north & east & west) & ~(north & south & west)
            ink &= ~((count >= 2) & (count <= 6) & (rises == 1) & open_side)
        if ink.sum() == before:
            return ink


@dataclass(frozen=True)
class Bend:
    """A smooth deformation of each of B pages: an affine map and a sum of W waves.

    Args:
        linear: (B, 2, 2) around the centre.
        wave: (B, W, 2) wave vectors in radians a pixel.
        phase: (B, W).
        size: (B, W, 2) displacement in pixels.
    """

    linear: np.ndarray
    wave: np.ndarray
    phase: np.ndarray
    size: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Where each page point, in pixels from the centre, lies on the glyph's canvas: (B, N, 2) -> same."""
        angle = points @ self.wave.transpose(0, 2, 1) + self.phase[:, None]  # (B, N, W)
        return points @ self.linear + np.sin(angle) @ self.size


def bends(count: int, rng: np.random.Generator) -> Bend:
    """Deformations as between hands: slant, rotation to 20 degrees (mostly below 10), stretch, and elastic waves."""
    f32 = np.float32
    turn = rng.normal(0, np.radians(8), count).clip(-0.35, 0.35)
    slant = rng.normal(0, 0.22, count).clip(-0.55, 0.55)
    # Above 1 on average: hands write narrower than fonts.
    narrowing = np.exp(rng.normal(0.1, 0.25, count))
    rotation = np.stack([np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)], -1).reshape(count, 2, 2)
    zero = np.zeros(count)
    shear = np.stack([zero + 1, slant * narrowing, zero, narrowing], -1).reshape(count, 2, 2)
    waves = 4
    length = rng.uniform(18, 60, (count, waves))
    way = rng.uniform(0, 2 * np.pi, (count, waves))
    wave = (2 * np.pi / length)[..., None] * np.stack([np.cos(way), np.sin(way)], -1)
    # Long waves move further: the strain, size over length, is what makes a character unreadable.
    strength = np.abs(rng.normal(0, 0.035, (count, 1, 1))) * length[..., None]
    return Bend(
        linear=(rotation @ shear).astype(f32),
        wave=wave.astype(f32),
        phase=rng.uniform(0, 2 * np.pi, (count, waves)).astype(f32),
        size=(strength * rng.normal(0, 1, (count, waves, 2))).astype(f32),
    )


def grid(low: np.ndarray, high: np.ndarray, side: int) -> np.ndarray:
    """Centres of side x side cells over each page's box: (B, 2), (B, 2) of (y, x) -> (B, side * side, 2)."""
    share = (np.arange(side, dtype=np.float32) + 0.5) / side
    y, x = np.meshgrid(share, share, indexing="ij")
    unit = np.stack([y, x], -1).reshape(1, -1, 2)
    return low[:, None] + unit * (high - low)[:, None]


def sampled(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear values of each glyph's field at points from its centre: (B, K, K), (B, N, 2) -> (B, N)."""
    at = np.clip(points + (CANVAS - 1) / 2, 0, CANVAS - 1.001)
    corner = at.astype(np.int32)
    share = at - corner
    flat = field.reshape(len(field), -1)
    index = corner[..., 0] * CANVAS + corner[..., 1]
    y, x = share[..., 0], share[..., 1]
    corners = [np.take_along_axis(flat, index + step, 1) for step in (0, 1, CANVAS, CANVAS + 1)]
    return (1 - y) * ((1 - x) * corners[0] + x * corners[1]) + y * ((1 - x) * corners[2] + x * corners[3])


def scans(glyphs: Glyphs, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The chosen glyphs as written by many hands and scanned small.

    Args:
        glyphs: What to draw from.
        chosen: (B,) indices of glyphs.
        rng: Draws everything else.

    Returns:
        (B, S, S, 3) float32 in [0, 1].
    """
    count = len(chosen)
    by_pen = rng.random(count) < 0.6
    field = np.where(by_pen[:, None, None], glyphs.skeleton[chosen], glyphs.outline[chosen])  # (B, K, K)
    pen = np.where(by_pen, rng.uniform(1.3, 3.8, count), rng.uniform(-0.5, 1.8, count)).astype(np.float32)
    bend = bends(count, rng)
    low, high = ink_box(field, pen, bend)
    page = sampled(field, bend(grid(low, high, PAGE)))  # (B, P * P)
    # One page pixel of the ramp between paper and ink, as if the page were drawn much finer.
    pixel = np.maximum((high - low).max(1, keepdims=True) / PAGE, 0.5)  # (B, 1)
    ink = np.clip((pen[:, None] - page) / pixel + 0.5, 0, 1).reshape(count, PAGE, PAGE)
    return coloured(scanned(ink, rng), rng)


def ink_box(field: np.ndarray, pen: np.ndarray, bend: Bend) -> tuple[np.ndarray, np.ndarray]:
    """Corners (y, x) of the square that each bent character fills from top to bottom, or side to side."""
    count, side, reach = len(field), 28, 30
    limit = np.full((count, 2), reach, np.float32)
    ink = (sampled(field, bend(grid(-limit, limit, side))) < pen[:, None]).reshape(count, side, side)
    cell = 2 * reach / side
    corners = []
    for axis in (2, 1):
        rows = ink.any(axis)  # (B, side)
        first = rows.argmax(1)
        last = side - rows[:, ::-1].argmax(1)
        empty = ~rows.any(1)
        corners.append((np.where(empty, 0, first) * cell - reach, np.where(empty, side, last) * cell - reach))
    low = np.stack([corners[0][0], corners[1][0]], -1)
    high = np.stack([corners[0][1], corners[1][1]], -1)
    centre, half = (low + high) / 2, ((high - low) / 2).max(1, keepdims=True)
    return (centre - half).astype(np.float32), (centre + half).astype(np.float32)


def scanned(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A page averaged to few pixels, with a margin, noise and uneven ink: (B, P, P) -> (B, S, S)."""
    count = len(ink)
    margin = np.where(rng.random(count) < 0.3, rng.integers(0, 5, count), 0)
    shift = rng.integers(-2, 3, (count, 2)) * (rng.random((count, 1)) < 0.5)
    moved = np.stack([_placed(page, m, s) for page, m, s in zip(ink, margin, shift, strict=True)])
    out = np.empty((count, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    kind = rng.choice(3, count, p=(0.75, 0.1, 0.15))
    for which, pixels in enumerate((8, 11, 16)):
        small = box_average(moved[kind == which], pixels)
        small = small + rng.normal(0, 1, small.shape) * rng.choice((0, 0, 0.03, 0.06), (len(small), 1, 1))
        if pixels == 8:
            small = np.round(small * 16) / 16
        out[kind == which] = grown(small)
    strength = rng.uniform(0.8, 1.3, (count, 1, 1))
    return np.clip(out * strength, 0, 1) ** rng.uniform(0.8, 1.25, (count, 1, 1))


def _placed(page: np.ndarray, margin: int, shift: np.ndarray) -> np.ndarray:
    if margin:
        size = PAGE - 2 * margin
        page = np.pad(box_average(page[None], size)[0], margin)
    return np.roll(page, tuple(shift), (0, 1)) if shift.any() else page


def box_average(pages: np.ndarray, pixels: int) -> np.ndarray:
    """Each pixel is the mean of the area it covers: (B, P, P) -> (B, pixels, pixels)."""
    edges = np.linspace(0, pages.shape[-1], pixels + 1)
    cells = np.arange(pages.shape[-1])
    cover = np.clip(np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells), 0, None)
    cover = (cover / cover.sum(1, keepdims=True)).astype(np.float32)  # (pixels, P)
    return cover @ pages @ cover.T


def grown(small: np.ndarray) -> np.ndarray:
    """Bilinear to the network's image size, as tfbig resizes every picture: (B, n, n) -> (B, S, S)."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return tf.image.resize(small[..., None], size, antialias=True)[..., 0].numpy()


def coloured(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light ink on dark, or for some the reverse, some tinted: (B, S, S) -> (B, S, S, 3)."""
    count = len(ink)
    dark, light = np.zeros((count, 1, 1, 3), np.float32), np.ones((count, 1, 1, 3), np.float32)
    tinted = rng.random(count) < 0.15
    dark[tinted] = rng.uniform(0, 0.4, (tinted.sum(), 1, 1, 3))
    light[tinted] = rng.uniform(0.6, 1, (tinted.sum(), 1, 1, 3))
    reverse = (rng.random(count) < 0.15)[:, None, None, None]
    share = ink[..., None]
    share = np.where(reverse, 1 - share, share)
    return (dark + share * (light - dark)).astype(np.float32)


def batches(glyphs: Glyphs, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless (images, labels), each class as often as any other."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(glyphs.labels == c) for c in range(len(glyphs.classes))]
    while True:
        labels = rng.integers(0, len(members), batch_size)
        chosen = np.array([rng.choice(members[label]) for label in labels])
        yield scans(glyphs, chosen, rng), labels.astype(np.int32)
