"""Checkpoints: what is read is what was written, or the checkpoint before it."""

import logging
from pathlib import Path

import numpy as np
import pytest

from tfbig.errors import EnvironmentFault, UsageError
from tfbig.training import checkpoints
from tfbig.training.checkpoints import Checkpoint


def _checkpoint(step: int) -> Checkpoint:
    groups = {"network": [np.full((2, 3), step, np.float32), np.array(step)], "optimizer": [np.arange(5) * step]}
    return Checkpoint(groups, {"step": step, "history": [{"loss": 0.1 * step}]})


def test_reads_what_was_written(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 3, _checkpoint(3))
    loaded = checkpoints.load_latest(tmp_path)
    assert loaded.meta == _checkpoint(3).meta
    for name, arrays in _checkpoint(3).groups.items():
        for ours, theirs in zip(loaded.groups[name], arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype


def test_keeps_order_beyond_ten_arrays(tmp_path: Path) -> None:
    many = [np.array(i) for i in range(120)]
    checkpoints.save(tmp_path, 1, Checkpoint({"network": many}, {}))
    assert [int(a) for a in checkpoints.load_latest(tmp_path).groups["network"]] == list(range(120))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_file_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        newest = checkpoints.save(tmp_path, step, _checkpoint(step))
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[content.index(np.full(2, 3, np.float32).tobytes())] ^= 0xFF
    half = bytes(content[: len(content) // 2])
    newest.write_bytes({"cut": half, "flip": bytes(content), "empty": b"", "text": b"not a checkpoint"}[damage])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.load_latest(tmp_path).meta["step"] == 2
    assert newest.name in caplog.text and "before" in caplog.text


def test_all_damaged_is_an_error_and_none_is_not(tmp_path: Path) -> None:
    assert checkpoints.load_latest(tmp_path) is None
    checkpoints.save(tmp_path, 1, _checkpoint(1)).write_bytes(b"x")
    with pytest.raises(EnvironmentFault, match="--resume never"):
        checkpoints.load_latest(tmp_path)


def test_only_two_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        checkpoints.save(tmp_path, step, _checkpoint(step))
    assert len(list(tmp_path.iterdir())) == 2


def test_another_network_is_refused(tmp_path: Path) -> None:
    import keras

    variables = [keras.Variable(np.zeros((2, 2), np.float32))]
    with pytest.raises(UsageError, match="another network"):
        checkpoints.assign("network", variables, [np.zeros((2, 3), np.float32)])


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(EnvironmentFault, match="run_dir"):
        checkpoints.write(blocked / "step.npz", _checkpoint(1))
    assert blocked.read_text() == "in the way"
