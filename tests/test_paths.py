"""A home folder that does not exist is a mistake with a sentence, wherever a path is given."""

from pathlib import Path

import pytest

from tfbig import cache_folder
from tfbig.__main__ import main as tfbig_main
from tfbig.errors import UsageError
from tfbig.paths import expanded
from tfbig.pipelines._main import main
from tfbig.pipelines.image_finetune import TASK

NOBODY = "~nobody-of-this-name/x"


def test_a_home_folder_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/x") == Path("/home/me/x") and expanded("~") == Path("/home/me")
    assert expanded("a/~") == Path("a/~")
    with pytest.raises(UsageError, match="home folder that does not exist"):
        expanded(NOBODY)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--run_dir", NOBODY],
        ["--resume", NOBODY],
        ["--config", NOBODY],
        ["--export.dir", NOBODY],
        ["--data.source", f"folder:{NOBODY}"],
        ["--data.source", f"csv:{NOBODY}"],
        ["--data.source", "tfds:x", "--data.dir", NOBODY],
        ["--model.backbone", f"keras:{NOBODY}"],
        ["--model.backbone", f"tfhub:{NOBODY}"],
    ],
)
def test_nobodys_home_is_a_usage_error(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(TASK, ["--data.limit", "30", *arguments]) == 2
    assert f"{NOBODY} names a home folder" in capsys.readouterr().err


def test_the_cache_needs_no_home_where_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without an entry in /etc/passwd
    assert tfbig_main(["cache"]) == 0
    monkeypatch.delenv(cache_folder.FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder.folder() == tmp_path / "tfbig" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tfbig_main(["cache"]) == 2
    assert "home folder" in capsys.readouterr().err
