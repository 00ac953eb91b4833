"""The order of texts that lie in one piece is the order of a list of them, whatever their lengths and their bytes."""

import numpy as np
import pytest

from tfbig.data import byte_order


def _ranks(texts: list[bytes]) -> list[int]:
    begins = np.cumsum([0, *map(len, texts)])
    return byte_order.ranks(np.frombuffer(b"".join(texts) + bytes(byte_order.SPARE), np.uint8), begins).tolist()


@pytest.mark.parametrize("at_once", [1, 5, 2**15])
@pytest.mark.parametrize("seed", range(6))
def test_ranks_are_places_among_the_different_texts_in_order(
    seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_order, "_AT_ONCE", at_once)
    rng = np.random.default_rng(seed)
    # Few different bytes, with the smallest and the largest: many texts that begin alike, that are equal, or of which
    # one is the beginning of another and zeros follow.
    alphabet, longest = bytes([0, 1, 127, 128, 255][: 2 + seed % 4]), (3, 8, 9, 17, 40, 300)[seed]
    texts = [bytes(rng.choice([*alphabet], rng.integers(longest + 1))) for _ in range(200)]
    texts += [b"", b"a", b"a\0", b"a" * 64]
    place = {text: rank for rank, text in enumerate(sorted(set(texts)))}
    assert _ranks(texts) == [place[text] for text in texts]


def test_one_long_text_costs_no_pass_over_the_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    numbers = byte_order._numbers

    def counted(content: np.ndarray, begins: np.ndarray, texts: np.ndarray, first: int) -> np.ndarray:
        compared.append(len(texts))
        return numbers(content, begins, texts, first)

    monkeypatch.setattr(byte_order, "_numbers", counted)
    texts = [b"%07d" % i for i in range(1000)]
    assert _ranks([*texts, b"9" * 8000, b"9" * 8000]) == [*range(1001), 1000]
    # 1,000 numbers of each of the long ones, twice.
    assert sum(compared) < 5000 + 4000


@pytest.mark.parametrize("texts", [[], [b""], [b"", b""], [b"one"]])
def test_few_texts(texts: list[bytes]) -> None:
    assert _ranks(texts) == [0] * len(texts)
