"""`python -m tfbig cache`: what is there, and nothing afterwards."""

import time
from pathlib import Path

import numpy as np
import pytest

from tfbig.__main__ import main
from tfbig.data.known_files import KnownFiles
from tfbig.training.feature_cache import from_environment


def _keep(key: str, about: str) -> None:
    rows = np.full((25, 40), 0.1, "f4")
    assert from_environment().keep(key, lambda: [rows], shape=rows.shape, about=about) is not None


def test_lists_and_clears(feature_cache_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["cache"]) == 0
    assert str(feature_cache_folder) in capsys.readouterr().out
    assert not feature_cache_folder.exists()
    _keep("a" * 32, "bundled:glyphs on digits, train")
    _keep("b" * 32, "bundled:glyphs on digits, validation")
    (feature_cache_folder / ("c" * 32 + ".features")).write_text("no header")
    names = [f"{i}.png" for i in range(7)]
    for name in names:
        (tmp_path / name).touch()
    known = KnownFiles("folder:x", directory=str(tmp_path), folder=feature_cache_folder, limit_bytes=10**9)
    known.add(names, known.states(names), np.full(7, b"d" * 16), known=np.zeros(7, bool), read_ns=2 * time.time_ns())
    known.keep()
    assert main(["cache"]) == 0
    out = capsys.readouterr().out
    for words in ("bundled:glyphs on digits, train", "25 x 40 float32", "damaged", "digests of 7 files", "4 entries"):
        assert words in out
    assert main(["cache", "--clear"]) == 0
    assert "4 entries" in capsys.readouterr().out
    assert not list(feature_cache_folder.iterdir())


def test_a_limit_that_is_no_size_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for text in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("TFBIG_CACHE_GB", text)
        assert main(["cache"]) == 2
        assert "TFBIG_CACHE_GB" in capsys.readouterr().err


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TFBIG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert from_environment().folder == tmp_path / "tfbig" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert from_environment().folder == tmp_path / "home" / ".cache" / "tfbig" / "features"
