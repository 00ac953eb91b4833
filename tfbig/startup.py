"""The import of TensorFlow, without what nobody asked for.

- The lines that its native libraries print: TF_CPP_MIN_LOG_LEVEL does not reach them, for they are written to file
  descriptor 2 before the logging is set up.
- What TensorFlow and Keras import for parts of theirs that few runs reach: it waits until someone uses it
  (`stand_ins.py`). scikit-learn and Matplotlib are for wrappers and plots, SciPy for a Keras of TensorFlow 1's.
- Addresses of functions in the native libraries that nobody calls.
- Memory for Python's frames that is taken from the system and given back at each call (`roomy`).
- The warning that functions of one name are traced often: each network has its own, and traces it once.
- Collections of garbage while four thousand modules, which stay, are being made; and later ones of these modules.
- The compilation of 18,000 names of types, of which 114 differ.

Imports nothing heavy itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.util
import os
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator

from tfbig.stand_ins import waiting

_Function = typing.TypeVar("_Function", bound=Callable[..., object])

# 512 KiB, so that CPython takes 1 MiB for a frame of so many values and leaves the other half to the frames above it.
_SLOTS = 2**16
# No import of TensorFlow's or Keras's asks them for a name.
_AT_FIRST_USE = (
    # For Keras's and TensorFlow's files, its callbacks that report to a server, and the memory of a machine.
    "h5py",
    "psutil",
    "requests",
    # TensorFlow 1's part of TensorFlow's own Keras, and SciPy with it.
    "tensorflow.python.keras.engine.training_v1",
    # Names of TensorFlow's for other programs: 320 modules.
    "tensorflow._api.v2.lite",
    "tensorflow._api.v2.compat.v1",
    "tensorflow._api.v2.compat.v2",
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
    _bind_functions_late()
    with waiting(_AT_FIRST_USE), _without_collections(), _names_of_types_compiled_once():
        import tensorflow as tf

    tf.get_logger().addFilter(lambda line: "triggered tf.function retracing" not in line.getMessage())
    # The search for a GPU has lines of its own, at the first use of a device.
    tf.config.list_physical_devices()


def _bind_functions_late() -> None:
    """Loads TensorFlow's libraries so that the address of a function in them is looked up when it is first called.

    Python has all 230,000 of them looked up at once. This is the library that TensorFlow opens first, and brings the
    others; opened here it has the same place among them, so that each name means the same as without. The two modules
    come before, as in `tensorflow.python.pywrap_tensorflow`: theirs are names of OpenSSL's, which TensorFlow has too.
    """
    found = importlib.util.find_spec("tensorflow")
    if sys.platform != "linux" or found is None or found.origin is None or "tensorflow" in sys.modules:
        return
    library = os.path.join(os.path.dirname(found.origin), "python", "platform", "_pywrap_cpu_feature_guard.so")
    if os.path.isfile(library):
        # Whatever is missing, the import of TensorFlow tells of it.
        with contextlib.suppress(ImportError, OSError):
            import hashlib  # noqa: F401
            import ssl  # noqa: F401

            ctypes.CDLL(library, mode=os.RTLD_LAZY)


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
