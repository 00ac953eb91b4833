"""A module that waits is run when a name of it is wanted; whoever imports it later gets the module."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tfbig.stand_ins import StandIn, stand_in, waiting


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of `heavy` and `folder` in the order in which they are run."""
    tell = "import sys; sys.tfbig_runs.append(__name__)\n"
    (tmp_path / "heavy.py").write_text(tell + "answer = 42\ndef own():\n    return __name__\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__init__.py").write_text(tell + "leaf = 'of the folder'\n")
    (tmp_path / "folder" / "leaf.py").write_text(tell)
    seen: list[str] = []
    monkeypatch.setattr(sys, "tfbig_runs", seen, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield seen
    for name in ("heavy", "folder", "folder.leaf"):
        sys.modules.pop(name, None)


def load(name: str) -> ModuleType:
    """As `import name`, of a module that no type checker knows."""
    return importlib.import_module(name)


def test_it_runs_when_a_name_is_wanted_and_once(runs: list[str]) -> None:
    with waiting(["heavy"]):
        first, second = load("heavy"), load("heavy")
        assert first is second and isinstance(first, StandIn) and first.__name__ == "heavy"
    assert runs == [] and "heavy" not in sys.modules
    assert first.answer == 42 and first.own() == "heavy" and "answer" in dir(first)
    assert load("heavy") is sys.modules["heavy"] and type(load("heavy")) is ModuleType
    assert first.own is load("heavy").own and runs == ["heavy"]
    with pytest.raises(AttributeError, match="heavy.*nothing_of_this_name"):
        first.nothing_of_this_name  # noqa: B018


def test_whoever_comes_later_gets_the_module(runs: list[str]) -> None:
    with waiting(["heavy"]):
        stands = load("heavy")
    assert type(load("heavy")) is ModuleType and runs == ["heavy"]
    assert stands.own is load("heavy").own and runs == ["heavy"]


def test_a_name_or_a_module_of_a_folder_that_is_wanted_at_once_is_the_real_one(runs: list[str]) -> None:
    found: dict[str, object] = {}
    with waiting(["heavy", "folder"]):
        exec("from heavy import answer\nimport folder.leaf", found)
        assert found["answer"] == 42 and runs == ["heavy", "folder", "folder.leaf"]
    assert found["folder"] is sys.modules["folder"] and type(sys.modules["folder"]) is ModuleType


def test_its_names_are_listed_while_it_waits(runs: list[str]) -> None:
    with waiting(["heavy"]):
        assert "answer" in dir(load("heavy")) and runs == ["heavy"]


def test_what_is_not_installed_is_not_found() -> None:
    with waiting(["no_such_module"]), pytest.raises(ModuleNotFoundError):
        load("no_such_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        stand_in("no_such_module")


def test_a_stand_in_of_ones_own(runs: list[str]) -> None:
    stands = stand_in("heavy")
    assert runs == [] and stands.answer == 42 and runs == ["heavy"]
