"""A version appears whole or not at all, whoever else is exporting or was killed."""

import os
import signal
from pathlib import Path

import pytest

from tfbig.errors import EnvironmentFault
from tfbig.serving.staging import check_writable, staging, versions


def fill(folder: Path, text: str) -> None:
    (folder / "variables").mkdir()
    (folder / "saved_model.pb").write_text(text)


def killed_export(directory: Path) -> None:
    """Another process gets as far as a half-built version and is killed there."""
    child = os.fork()
    if child == 0:
        with staging(directory) as place:
            fill(place.folder, "half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_versions_count_up_from_the_highest(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "notes").mkdir()
    with staging(tmp_path) as place:
        fill(place.folder, "new")
        assert place.publish() == tmp_path / "8"
    assert versions(tmp_path) == [7, 8]
    assert (tmp_path / "8" / "saved_model.pb").read_text() == "new"


def test_two_exports_at_once_get_different_versions(tmp_path: Path) -> None:
    with staging(tmp_path) as first, staging(tmp_path) as second:
        fill(first.folder, "first")
        fill(second.folder, "second")
        published = [second.publish(), first.publish()]
    assert [path.name for path in published] == ["1", "2"]
    assert [(path / "saved_model.pb").read_text() for path in published] == ["second", "first"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_an_export_that_is_overtaken_takes_the_next_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one publishes just after this one has looked which versions there are."""

    def overtaken(directory: Path) -> list[int]:
        seen = versions(directory)
        if not seen:
            (directory / "1").mkdir()
            fill(directory / "1", "the other's")
        return seen

    with staging(tmp_path) as place:
        fill(place.folder, "mine")
        monkeypatch.setattr("tfbig.serving.staging.versions", overtaken)
        assert place.publish() == tmp_path / "2"
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "the other's"


def test_a_file_named_like_a_version_is_not_overwritten(tmp_path: Path) -> None:
    """The server's folder is not ours alone: a file may have the next number."""
    (tmp_path / "1").write_text("someone's")
    with staging(tmp_path) as place:
        fill(place.folder, "new")
        assert place.publish().name == "2"
    assert (tmp_path / "1").read_text() == "someone's"


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staging(tmp_path / "new" / "deep") as place:
        fill(place.folder, "half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_killed_export_is_no_version_and_the_next_one_removes_it(tmp_path: Path) -> None:
    killed_export(tmp_path)
    assert versions(tmp_path) == []
    assert len(list(tmp_path.glob(".export-*"))) == 1
    with staging(tmp_path) as place:
        fill(place.folder, "new")
        place.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_running_export_is_left_alone_by_another(tmp_path: Path) -> None:
    with staging(tmp_path) as running:
        fill(running.folder, "running")
        child = os.fork()
        if child == 0:
            check_writable(tmp_path)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert running.publish().name == "1"


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="nothing was exported") as caught:
        check_writable(tmp_path / "file" / below)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_checking_a_folder_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep")
    assert not list(tmp_path.iterdir())
