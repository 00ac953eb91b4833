"""The gate's process is a fresh one: it sees what a server sees, and its failures are one sentence."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfbig.errors import GateError
from tfbig.serving import gate


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    """A request that holds: twice the input."""
    module = tf.Module()
    served = tf.function(lambda x: {"y": 2 * x}, [tf.TensorSpec([None], tf.float32, name="x")])
    tf.saved_model.save(module, str(tmp_path / "version"), {"serving_default": served})
    (tmp_path / "scratch").mkdir()
    x = np.array([1.0, 2.0], np.float32)
    feeds, expected = {"serving_default": {"x": x}}, {"serving_default": {"y": 2 * x}}
    return gate.prepare(tmp_path / "scratch", tmp_path / "version", feeds, expected)


def test_tfbig_in_the_process_is_refused_though_results_are_equal(
    request_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import tfbig.errors\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(GateError, match=r"must not import tfbig, but it has tfbig, tfbig\.errors"):
        gate.check(request_file)


def test_an_export_that_does_not_load_is_one_sentence(request_file: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "version" / "variables").iterdir():
        file.unlink()
    (tmp_path / "version" / "saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(GateError, match="failed there: .*Nothing was exported") as caught:
        gate.check(request_file)
    assert "\n" not in str(caught.value)
