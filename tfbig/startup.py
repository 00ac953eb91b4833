"""The import of TensorFlow, without what nobody asked for.

- The lines that its native libraries print: TF_CPP_MIN_LOG_LEVEL does not reach them, for they are written to file
  descriptor 2 before the logging is set up.
- scikit-learn and Matplotlib, which Keras imports for wrappers and plots: they wait until someone uses these.
- Memory for Python's frames that is taken from the system and given back at each call (`roomy`).
- The warning that functions of one name are traced often: each network has its own, and traces it once.
- Collections of garbage while four thousand modules, which stay, are being made; and later ones of these modules.
- The compilation of 18,000 names of types, of which 114 differ.

Imports nothing heavy itself.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

_Function = typing.TypeVar("_Function", bound=Callable[..., object])

# 512 KiB, so that CPython takes 1 MiB for a frame of so many values and leaves the other half to the frames above it.
_SLOTS = 2**16
# Nothing of Keras needs them, so that no import of another module asks them for a name.
_AT_FIRST_USE = (
    "keras.visualization",
    "keras.wrappers",
    "keras.src.visualization",
    "keras._tf_keras.keras.visualization",
    "keras._tf_keras.keras.wrappers",
)


def roomy(function: _Function) -> _Function:
    """The function, with one piece of memory for the frames of all that it calls.

    CPython keeps a thread's frames in pieces of 16 KiB. A call that crosses the end of one takes a new piece from the
    system and gives it back when it returns, and so does each turn of a loop that makes such calls: 70,000 page faults
    up to the first step of ResNet-50. A frame that claims a deep stack of values gets a large piece, with room for
    hundreds of frames more; what it does not use of it is never touched.
    """
    function.__code__ = function.__code__.replace(co_stacksize=_SLOTS)
    return function


def open_streams() -> None:
    """Opens what a process was started without of stdin, stdout and stderr.

    Otherwise the first files that it opens take their descriptors, and native libraries write into those.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def import_tensorflow(*, show_log: bool = False) -> None:
    """Import TensorFlow and find its devices, keeping what the native libraries print off stderr.

    Args:
        show_log: Let everything through. It is shown anyway where the import fails.

    Raises:
        ImportError: TensorFlow is not installed, or a library of it is missing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if show_log else "2")
    if show_log:
        _find_devices()
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            _find_devices()
        except BaseException:
            log.seek(0)
            os.write(kept, log.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _find_devices() -> None:
    with _deferred(_AT_FIRST_USE), _without_collections(), _names_of_types_compiled_once():
        import tensorflow as tf

    tf.get_logger().addFilter(lambda line: "triggered tf.function retracing" not in line.getMessage())
    # The search for a GPU has lines of its own, at the first use of a device.
    tf.config.list_physical_devices()


def deferred(name: str) -> ModuleType:
    """A module that is run when an attribute of it is first wanted; as it is where it has been imported already.

    Args:
        name: Without a dot.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    # A second import would ask the module for its __spec__, and so run it.
    if name not in sys.modules:
        with _deferred((name,)):
            importlib.import_module(name)
    return sys.modules[name]


@contextlib.contextmanager
def _deferred(names: Sequence[str]) -> Iterator[None]:
    """Modules of these names that are imported inside the block run when an attribute of theirs is first wanted."""
    finder = _Deferring(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Deferring(importlib.abc.MetaPathFinder):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


@contextlib.contextmanager
def _names_of_types_compiled_once() -> Iterator[None]:
    """`typing` compiles a string that stands for a type once inside the block, and not each time that it is named.

    TensorFlow declares the types of its operations by strings. `typing` finds a global of its own before the builtin.
    """
    its_globals = vars(typing)
    its_globals["compile"] = functools.cache(compile)
    try:
        yield
    finally:
        del its_globals["compile"]


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """No collection of garbage inside the block; what was made there is left out of later ones."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
