"""Modules that wait until someone uses them: what is imported instead stands in for them until then.

TensorFlow and Keras import libraries for parts of theirs that few runs reach. Inside `waiting` such an import gives a
`StandIn`, which imports the module itself when it is first asked for a name, and hands on each name from it. Nobody
else meets a stand-in: outside of the block an import of the module gives the module. Used by `startup` and for
libraries of our own; imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType


class StandIn(ModuleType):
    """Gives what the module of its name has, which is imported when a first name is wanted.

    Args:
        name: Of the module.
    """

    def __getattr__(self, name: str) -> object:
        return getattr(_module(self), name)

    def __dir__(self) -> list[str]:
        return dir(_module(self))


def _module(standing_in: StandIn) -> ModuleType:
    name = standing_in.__name__
    if sys.modules.get(name) is standing_in:
        del sys.modules[name]
    return importlib.import_module(name)


def stand_in(name: str) -> StandIn:
    """A stand-in for a module.

    Args:
        name: Without a dot.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return StandIn(name)


@contextlib.contextmanager
def waiting(names: Iterable[str]) -> Iterator[None]:
    """Imports of these modules inside the block give stand-ins, where they have not been imported before.

    Args:
        names: A module that is not installed is not found, as ever.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.given:
            if isinstance(sys.modules.get(name), StandIn):
                del sys.modules[name]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self.given: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        # One that has been given is asked for again by its stand-in.
        if fullname not in self._names or fullname in self.given:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            # Without a folder, so that an import of a module in it asks for `__path__`, and so for the package itself.
            spec.loader, spec.submodule_search_locations = self, None
            self.given.add(fullname)
        return spec

    def exec_module(self, module: ModuleType) -> None:
        # Not before: an import first asks a new module for what it does not have.
        module.__class__ = StandIn
