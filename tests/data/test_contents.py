"""Contents by number: equal exactly where digests are, in their order, and hashed as before."""

import numpy as np
import pytest

from tfbig.data import contents
from tfbig.data.contents import DIGEST, digest, hexadecimal, numbered


def _column(count: int, *, front: int, seed: int) -> np.ndarray:
    """Digests of which many are equal, and of which more have the same first 8 bytes; zeros at the end of some."""
    rng = np.random.default_rng(seed)
    fronts, backs = rng.bytes(8 * front), [bytes(8), b"\xff" * 8, b"\0\1" + bytes(6), b"\x80" + bytes(7), rng.bytes(8)]
    rows = zip(rng.integers(front, size=count), rng.integers(len(backs), size=count), strict=True)
    return np.array([fronts[8 * i : 8 * i + 8] + backs[j] for i, j in rows], DIGEST)


@pytest.mark.parametrize("front", [1, 3, 1000])
def test_numbers_are_equal_exactly_where_contents_are_and_in_their_order(front: int) -> None:
    columns = {"train": _column(300, front=front, seed=1), "test": _column(50, front=front, seed=1)}
    found = numbered(columns)
    whole = np.concatenate([*columns.values()])
    different, numbers = np.unique(whole, return_inverse=True)
    np.testing.assert_array_equal(found.digests, different)
    np.testing.assert_array_equal(np.concatenate([*found.numbers.values()]), numbers)
    assert [len(of_role) for of_role in found.numbers.values()] == [300, 50]


def test_the_hash_of_all_contents_is_that_of_the_different_ones_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_AT_ONCE", 3)
    column = _column(40, front=9, seed=2)
    text = "\n".join(sorted({bytes(one).ljust(16, bytes(1)).hex() for one in column.tolist()}))
    whole = numbered({"train": column}).fingerprint()
    assert whole == digest(text.encode()).hex()
    # Whichever role they are of, and how often they come.
    assert numbered({"train": column[5:], "test": column[:7]}).fingerprint() == whole


def test_no_zero_at_the_end_of_a_digest_is_lost() -> None:
    raw = [b"\0" * 15 + b"a", b"a" + b"\0" * 15, b"\0a" * 8, b"a\0" * 8]
    assert hexadecimal(np.array(raw, DIGEST)) == [one.hex() for one in raw]
    assert digest(b"one") == digest(b"one") != digest(b"other") and len(digest(b"")) == 16
