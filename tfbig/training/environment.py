"""The machine and the software of a run, for environment.json. Imports no TensorFlow until it is asked."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence

import tfbig

_PACKAGES = ("tensorflow", "keras", "tensorflow-hub", "tensorflow-datasets", "keras-hub", "numpy", "scikit-learn")


def describe(*, devices: Sequence[str], num_replicas: int) -> dict[str, object]:
    """What another person needs to repeat the run.

    Args:
        devices: Names of the devices that TensorFlow sees.
        num_replicas: Copies of the network that train together.
    """
    from tfbig.networks import compiled_batch_norm

    return {
        "tfbig": tfbig.__version__,
        "command": sys.argv,
        "module": getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", None),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": list(devices),
        "num_replicas": num_replicas,
        "compiled_batch_norm": compiled_batch_norm.is_compiled(),
        "compiled_jpeg": is_compiled("tfbig.data._jpeg"),
        "packages": {name: version for name in _PACKAGES if (version := package_version(name))},
    }


def is_compiled(module: str) -> bool:
    """Whether a module that is built where tfbig is installed was, and can be loaded."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def package_version(name: str) -> str | None:
    """An installed package's version, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
