"""Which examples are trained on, validated and tested with: splits that are missing are drawn, and a limit applied.

Until all is drawn, a role is a choice of indices; splits are made of it once. Used by sources.py, over strata.py.
Letters: N examples of a role, M of the split that they are chosen of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tfbig.data import strata
from tfbig.data.file_names import chosen, smallest
from tfbig.data.listing import Listing, quoted
from tfbig.data.splits import Split
from tfbig.errors import DataError

_ROLES = ("train", "validation", "test")
_MOST_VALIDATION = 2500
# Each draw has its own stream of random numbers, so that one does not shift the others.
_STREAMS = {"test": 1, "validation": 2, "limit": 3}


@dataclass(frozen=True)
class Members:
    """The examples of one role.

    Args:
        whole: The split that they are chosen of.
        numbers: (M,) of its contents, as in `Contents`.
        indices: (N,) into it; None for all, in its order.
    """

    whole: Split
    numbers: np.ndarray
    indices: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.whole) if self.indices is None else len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        """(N,) or (N, C), as in `Split`."""
        return self.whole.labels if self.indices is None else self.whole.labels[self.indices]

    @property
    def contents(self) -> np.ndarray:
        """(N,) their numbers."""
        return self.numbers if self.indices is None else self.numbers[self.indices]

    @property
    def names(self) -> Sequence[str]:
        """N names."""
        return self.whole.names if self.indices is None else chosen(self.whole.names, self.indices)

    def take(self, which: np.ndarray) -> Members:
        """Some of them: (N,) bool, or indices from 0 to below N."""
        indices = np.arange(len(self), dtype=smallest(len(self))) if self.indices is None else self.indices
        return replace(self, indices=indices[which])

    def split(self) -> Split:
        """The examples as a split."""
        return self.whole if self.indices is None else self.whole.subset(self.indices)


def with_drawn(
    source: str, listing: Listing, members: Mapping[str, Members], fractions: Mapping[str, float], seed: int
) -> dict[str, Members]:
    """The roles that are there, and those that are not, drawn from train: test first.

    Args:
        source: For errors.
        listing: What is there.
        members: Of each role that is there.
        fractions: "test" and "validation", in the order of their draws, to the share of train; see `load_images`.
        seed: Of the draws.

    Raises:
        DataError: There is too little to draw from, or a class is missing in train.
    """
    members = dict(members)
    for role, fraction in fractions.items():
        if role in members or (role == "validation" and not fraction):
            continue
        if not fraction:
            raise DataError(f"{source} has no test split; set --data.test_fraction above 0, or --data.test_split.")
        train = members["train"]
        if role == "validation":
            fraction = min(fraction, _MOST_VALIDATION / len(train))
        if role == "test" and not listing.multi_label:
            _check_counts(source, train, listing)
        leaves = strata.draw(
            train.labels, train.contents, train.names, fraction=fraction, seed=(seed, _STREAMS[role])
        )
        if leaves.all() or not leaves.any():
            raise DataError(f"{source} has too few different images to draw {role} from train; add images.")
        members[role], members["train"] = train.take(leaves), train.take(~leaves)
    members = {role: members[role] for role in _ROLES if role in members}
    _check_labels(source, members, listing)
    return members


def limited(members: Mapping[str, Members], listing: Listing, limit: int, seed: int) -> dict[str, Members]:
    """At most `limit` examples of each role, stratified.

    Raises:
        DataError: A class is left without an example in train.
    """
    kept = {
        role: of_role.take(strata.sample(of_role.labels, of_role.names, limit=limit, seed=(seed, _STREAMS["limit"])))
        for role, of_role in members.items()
    }
    if not listing.multi_label and len(np.unique(kept["train"].labels)) < len(listing.class_names):
        raise DataError(
            f"data.limit must leave an example of each of the {len(listing.class_names)} classes in train, got {limit}."
        )
    return kept


def _check_counts(source: str, train: Members, listing: Listing) -> None:
    few = strata.too_few(train.labels, train.contents)
    if few:
        names = quoted(listing.class_names[c] for c in few)
        raise DataError(
            f"{source} has fewer than 2 different images of {names}, of which a test split cannot be drawn; add "
            "images, remove the class, or give a test split."
        )


def _check_labels(source: str, members: Mapping[str, Members], listing: Listing) -> None:
    """Every class of validation and test has to be in train."""
    def present(labels: np.ndarray) -> np.ndarray:
        return np.flatnonzero(labels.any(0)) if listing.multi_label else np.unique(labels)

    known = present(members["train"].labels)
    for role, of_role in members.items():
        unknown = np.setdiff1d(present(of_role.labels), known)
        if len(unknown):
            names = quoted(listing.class_names[c] for c in unknown)
            raise DataError(
                f"{source} has label {names} in {role} that train has not; add images of it to train, or mend "
                f"the label. Train has {quoted(listing.class_names[c] for c in known)}."
            )
