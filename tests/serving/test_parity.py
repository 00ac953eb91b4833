"""What the gate takes for equal."""

import numpy as np
import pytest

from tfbig.serving.parity import TOLERANCE, differences


def answers(probabilities: list[list[float]], labels: list[bytes] | None = None) -> dict[str, np.ndarray]:
    values = np.array(probabilities, np.float32)
    names = labels or [b"ab"[i : i + 1] for i in values.argmax(-1)]
    return {"probabilities": values, "label": np.array(names, dtype=object)}


def test_rounding_is_equal_and_more_is_not() -> None:
    expected = answers([[0.9, 0.1], [0.2, 0.8]])
    near = answers([[0.89992, 0.1], [0.2, 0.8]])
    far = answers([[0.9, 0.1], [0.2, 0.80012]])
    assert differences(expected, near) == []
    [found] = differences(expected, far)
    assert "probabilities" in found and "sample 1" in found


def test_another_label_is_a_difference_though_probabilities_agree() -> None:
    expected = answers([[0.9, 0.1], [0.2, 0.8]])
    [found] = differences(expected, answers([[0.9, 0.1], [0.2, 0.8]], [b"b", b"b"]))
    assert found == "label b instead of a for sample 0 (1 differ)"


def test_a_near_tie_leaves_the_label_to_rounding_in_its_own_row_only() -> None:
    expected = answers([[0.45, 0.45005, 0.1], [0.9, 0.05, 0.05]], [b"b", b"a"])
    tied = answers([[0.45, 0.45005, 0.1], [0.9, 0.05, 0.05]], [b"a", b"a"])
    clear = answers([[0.45, 0.45005, 0.1], [0.9, 0.05, 0.05]], [b"b", b"b"])
    assert differences(expected, tied) == []
    assert differences(expected, clear)


def test_a_threshold_of_several_labels_is_a_tie_too() -> None:
    expected = answers([[0.50004, 0.9]], [b"a|b"])
    assert differences(expected, answers([[0.49998, 0.9]], [b"b"])) == []
    assert differences(answers([[0.6, 0.9]], [b"a|b"]), answers([[0.6, 0.9]], [b"b"]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_agrees_with_nothing(value: float) -> None:
    bad = {"embedding": np.array([[value, 1.0]], np.float32)}
    good = {"embedding": np.array([[1.0, 1.0]], np.float32)}
    assert differences(good, bad)
    assert differences(bad, good)
    assert differences(bad, bad)


def test_large_values_are_compared_by_their_size() -> None:
    expected = {"embedding": np.array([[1000.0, 1.0]], np.float32)}
    assert differences(expected, {"embedding": expected["embedding"] * (1 + TOLERANCE / 2)}) == []
    assert differences(expected, {"embedding": expected["embedding"] * (1 + TOLERANCE * 2)})


def test_missing_outputs_and_shapes_are_differences() -> None:
    expected = answers([[0.9, 0.1]])
    assert differences(expected, {"label": expected["label"]})
    assert differences(expected, {**expected, "probabilities": expected["probabilities"][:, :1]})
