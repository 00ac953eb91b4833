"""Stratified draws: which examples leave train for another split, and which a limit keeps.

Pure functions of labels, contents, names and a seed: the order in which a file system or a table gives
the examples changes nothing. Identical contents are one unit and never part. Several labels an example:
iterative stratification, Sechidis et al. 2011 (doi 10.1007/978-3-642-23808-6_10). Used by roles.py.
Letters in shapes: N examples, U units, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfbig.data.file_names import name_order


def too_few(labels: np.ndarray, contents: np.ndarray) -> list[int]:
    """Classes with fewer than two different examples, which no draw can part; labels (N,), contents (N,)."""
    return [int(labels[of[0]]) for of in _by_class(labels) if len(of) and (contents[of] == contents[of[0]]).all()]


def draw(
    labels: np.ndarray, contents: np.ndarray, names: Sequence[str], *, fraction: float, seed: Sequence[int]
) -> np.ndarray:
    """Which examples leave train.

    Guarantees: examples with equal contents stay together. With one label an example, a class gives the
    rounded fraction of its examples, at least one, as far as groups of identical ones allow, and keeps at
    least one; a class with fewer than two different examples keeps them. With several labels an example,
    the shares of each label follow as far as possible, the rarest first.

    Args:
        labels: (N,) integers or (N, C) zeros and ones.
        contents: (N,) numbers from 0 that equal contents share, as of `Contents`.
        names: N distinct or repeated names, which order the examples before the seed permutes them.
        fraction: Above 0, below 1.
        seed: Entropy of the draw.

    Returns:
        (N,) bool, True for those that leave.
    """
    first, unit_of, sizes = _units(contents, names)
    labels = labels[first]
    del first
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(sizes), bool)
    if labels.ndim == 2:
        chosen = _draw_multi_label(labels, sizes, fraction, rng)
    else:
        for members in _by_class(labels):
            of_class = rng.permutation(members)
            chosen[_fill(of_class, sizes, fraction)] = True
    return chosen[unit_of]


def sample(labels: np.ndarray, names: Sequence[str], *, limit: int, seed: Sequence[int]) -> np.ndarray:
    """The examples that a limit keeps, with the classes in their proportions.

    Guarantees: min(limit, N) examples; each class that is present keeps at least one where the limit has
    room for all of them (one label an example).

    Args:
        labels: (N,) integers or (N, C) zeros and ones.
        names: N names, which order the examples before the seed permutes them.
        limit: At least 1.
        seed: Entropy of the draw.

    Returns:
        Sorted (min(limit, N),) indices.
    """
    if limit >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    order = rng.permutation(name_order(names))
    if labels.ndim == 2:
        chosen = _draw_multi_label(labels[order], np.ones(len(order), np.int32), limit / len(order), rng)
        # The shares of the labels decide how many are drawn; the limit is exact.
        ranked = np.concatenate([order[chosen], order[~chosen]])
        return np.sort(ranked[:limit])
    quotas = _quotas(np.unique(labels, return_counts=True)[1], limit)
    kept = [order[members[:quota]] for members, quota in zip(_by_class(labels[order]), quotas, strict=True)]
    return np.sort(np.concatenate(kept))


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
    """The indices of each label that is there, labels and indices ascending; one sort, however many labels."""
    order = np.argsort(labels, kind="stable").astype(np.int32)
    ordered = labels[order]
    return np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)


def _units(contents: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups of identical examples in the order of their smallest names.

    Returns:
        (U,) index of each unit's first example, (N,) unit of each example, (U,) number of examples.
    """
    by_name = name_order(names)
    ordered = contents[by_name]
    places = np.arange(len(ordered), dtype=np.int32)
    of_content = np.zeros(int(contents.max(initial=-1)) + 1, np.int32)
    # Of several that are put in one place the last stays: here the first by name.
    of_content[ordered[::-1]] = places[::-1]
    is_first = of_content[ordered] == places
    del places
    of_content[ordered[is_first]] = np.arange(is_first.sum(), dtype=np.int32)
    unit_of = of_content[contents]
    return by_name[is_first], unit_of, np.bincount(unit_of).astype(np.int32)


def _fill(units: np.ndarray, sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Units of one class, in their order, until the fraction is full."""
    total = int(sizes[units].sum())
    if len(units) < 2:
        return units[:0]
    room = wanted = min(round(fraction * total), total - 1)
    filled = np.cumsum(sizes[units])
    num_fit = int(np.searchsorted(filled, room, side="right"))
    # Those in front all fit, up to the first that does not.
    room -= int(filled[num_fit - 1]) if num_fit else 0
    smaller = []
    for unit in units[num_fit:] if room else ():
        if sizes[unit] <= room:
            smaller.append(unit)
            room -= int(sizes[unit])
    taken = np.append(units[:num_fit], np.array(smaller, units.dtype))
    return taken if room < wanted else units[[np.argmin(sizes[units])]]


def _quotas(counts: np.ndarray, limit: int) -> np.ndarray:
    """Whole shares of the limit in proportion to the counts, by largest remainder."""
    exact = limit * counts / counts.sum()
    quotas = np.floor(exact).astype(int)
    if limit >= len(counts):
        quotas = np.maximum(quotas, 1)
    while quotas.sum() > limit:
        quotas[np.argmax(np.where(quotas > 1, quotas - exact, -np.inf))] -= 1
    by_need = np.argsort(quotas - exact, kind="stable")
    quotas[by_need[: limit - quotas.sum()]] += 1
    return quotas


def _draw_multi_label(
    labels: np.ndarray, sizes: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """(U,) bool, True for the units that go to the drawn side; labels (U, C)."""
    # Having no label at all is one more label to share out.
    has = np.concatenate([labels > 0, ~(labels > 0).any(1, keepdims=True)], axis=1)  # (U, C + 1)
    weighted = has * sizes[:, None]
    shares = np.array([1.0 - fraction, fraction])
    wanted = shares[:, None] * weighted.sum(0)  # (2, C + 1): examples of each label that a side still lacks
    room = shares * sizes.sum()
    chosen = np.zeros(len(has), bool)
    waiting, counts = rng.permutation(len(has)), weighted.sum(0)
    while len(waiting):
        rarest = int(np.argmin(np.where(counts > 0, counts, np.inf)))
        holds = has[waiting, rarest]
        for unit in waiting[holds]:
            lacks = wanted[:, rarest]
            side = int(np.argmax(room if np.isclose(*lacks) else lacks))
            chosen[unit] = side == 1
            wanted[side] -= weighted[unit]
            room[side] -= sizes[unit]
        counts -= weighted[waiting[holds]].sum(0)
        waiting = waiting[~holds]
    return chosen
