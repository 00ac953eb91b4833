"""`python -m tfbig doctor`: what this machine has, what tfbig expects, and what to do about the rest.

Every line is a finding: ok, a note, or a fault that stops a job. Expected versions are read from the
installed package's own metadata (setup.cfg), so this list cannot drift from it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from tfbig.errors import EnvironmentFault
from tfbig.hardware import num_cores
from tfbig.startup import import_tensorflow
from tfbig.training.environment import is_compiled

_ENABLES = {
    "models": "--model.backbone kerashub:PRESET",
    "kaggle": "--model.backbone tfhub: with a Kaggle handle",
    "test": "tools/test",
}
_LOW_DISK_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Args:
        state: ok; note, worth knowing; fault, a job would fail.
        subject: What was looked at.
        found: What it is.
        remedy: What to do, where something should be done.
    """

    state: Literal["ok", "note", "fault"]
    subject: str
    found: str
    remedy: str = ""


def examine() -> None:
    """Print all findings on stdout.

    Raises:
        EnvironmentFault: One of them is a fault.
    """
    faults = 0
    for finding in findings():
        remedy = f"  -> {finding.remedy}" if finding.remedy else ""
        print(f"{finding.state:5}  {finding.subject:24} {finding.found}{remedy}", flush=True)
        faults += finding.state == "fault"
    if faults:
        raise EnvironmentFault(f"{faults} of the findings above stop tfbig; do what stands behind the arrows.")


def findings() -> Iterator[Finding]:
    """Everything that is looked at, quick things first."""
    yield Finding("ok", "Python", f"{platform.python_version()} in {sys.prefix}")
    yield Finding("ok", "platform", f"{platform.platform()}, {num_cores()} CPU cores, {_memory()}")
    yield from _packages()
    yield _pkg_resources()
    yield _keras_backend()
    yield _decoder()
    yield from _folders()
    yield from _tensorflow()


def _memory() -> str:
    try:
        num_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "memory unknown"
    return f"{num_bytes / 1e9:.1f} GB memory"


def _packages() -> Iterator[Finding]:
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding("fault", "packaging", "missing", "pip install packaging")
        return
    try:
        requirements = [Requirement(text) for text in metadata.requires("tfbig") or []]
    except metadata.PackageNotFoundError:
        yield Finding("fault", "tfbig", "not installed", "pip install -e . in the checkout, or tools/quickstart")
        return
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement.name, requirement.specifier, str(requirement.specifier), needed=True)
    for extra in metadata.metadata("tfbig").get_all("Provides-Extra") or []:
        missing = [
            requirement.name
            for requirement in requirements
            if requirement.marker is not None
            and requirement.marker.evaluate({"extra": extra})
            and not requirement.marker.evaluate({"extra": ""})
            and _package(requirement.name, requirement.specifier, "", needed=False).state != "ok"
        ]
        enables = f"for {_ENABLES[extra]}" if extra in _ENABLES else ""
        if missing:
            found = f"lacks {', '.join(missing)} {enables}".strip()
            yield Finding("note", f"extra {extra}", found, f"pip install 'tfbig[{extra}]' if you need it")
        else:
            yield Finding("ok", f"extra {extra}", f"complete {enables}".strip())


def _package(name: str, allowed: object, wanted: str, *, needed: bool) -> Finding:
    """`allowed` is packaging's SpecifierSet, which is a container of versions."""
    bad: Literal["fault", "note"] = "fault" if needed else "note"
    remedy = f"pip install '{name}{wanted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(bad, name, f"missing, {wanted or 'any version'} is expected", remedy)
    if version not in allowed:  # type: ignore[operator]
        return Finding(bad, name, f"{version}, {wanted} is expected", remedy)
    return Finding("ok", name, f"{version} ({wanted or 'any version'})")


def _pkg_resources() -> Finding:
    if importlib.util.find_spec("pkg_resources") is None:
        found = "missing, and tensorflow-hub imports it; setuptools dropped it in version 82"
        return Finding("fault", "pkg_resources", found, "pip install 'setuptools<82'")
    return Finding("ok", "pkg_resources", "there, tensorflow-hub can be imported")


def _keras_backend() -> Finding:
    """What `import keras` would choose: the variable, else Keras's own file, else TensorFlow."""
    chosen = os.environ.get("KERAS_BACKEND")
    if chosen:
        origin, remedy = "KERAS_BACKEND", "unset KERAS_BACKEND"
    else:
        home = Path(os.environ["KERAS_HOME"]) if "KERAS_HOME" in os.environ else Path.home() / ".keras"
        origin = str(home / "keras.json")
        remedy = f'set "backend": "tensorflow" in {origin}'
        try:
            chosen = json.loads(Path(origin).read_text()).get("backend", "tensorflow")
        except FileNotFoundError:
            chosen, origin = "tensorflow", "Keras's default"
        except (OSError, ValueError, AttributeError) as error:
            return Finding("fault", "Keras backend", f"{origin} cannot be read: {error}", f"mend or remove {origin}")
    if chosen != "tensorflow":
        return Finding("fault", "Keras backend", f"{chosen} by {origin}, tensorflow is expected", remedy)
    return Finding("ok", "Keras backend", f"tensorflow by {origin}")


def _decoder() -> Finding:
    if is_compiled("tfbig.data._jpeg"):
        return Finding("ok", "parts of JPEGs", "decoded together, by libjpeg")
    found = "decoded by TensorFlow, one at a time: no compiled module, or no libjpeg that it needs"
    return Finding("note", "parts of JPEGs", found, "apt install gcc libjpeg-dev and install again, for speed")


def _folders() -> Iterator[Finding]:
    temporary = Path(tempfile.gettempdir())
    needed = {"this folder": Path.cwd(), "temporary files": temporary}
    caches = {
        "TF Hub cache": Path(os.environ.get("TFHUB_CACHE_DIR", temporary / "tfhub_modules")),
        "Keras cache": Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")),
        "TFDS data": Path(os.environ.get("TFDS_DATA_DIR", Path.home() / "tensorflow_datasets")),
    }
    for subject, folder in needed.items():
        yield _folder(subject, folder, "fault")
    for subject, folder in caches.items():
        yield _folder(subject, folder, "note")


def _folder(subject: str, folder: Path, bad: Literal["fault", "note"]) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(bad, subject, f"{folder} cannot be written", "change its permissions or choose another")
    free_gb = shutil.disk_usage(there).free / 1e9
    found = f"{folder}, {free_gb:.1f} GB free"
    if free_gb < _LOW_DISK_GB:
        return Finding("note", subject, found, "checkpoints and exports may not fit")
    return Finding("ok", subject, found)


def _tensorflow() -> Iterator[Finding]:
    """Whether the heavy packages can really be imported, and what TensorFlow computes on."""
    for name in ("tensorflow", "keras", "tensorflow_hub"):
        try:
            if name == "tensorflow":
                import_tensorflow()
            importlib.import_module(name)
        # A broken installation may raise anything here: ImportError, AttributeError, a protobuf TypeError.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Finding("fault", f"import {name}", reason, f"pip install --force-reinstall {name}")
            return
    import tensorflow as tf

    devices = [tf.config.experimental.get_device_details(d) for d in tf.config.list_physical_devices("GPU")]
    if devices:
        names = ", ".join(str(details.get("device_name", "GPU")) for details in devices)
        yield Finding("ok", "GPUs", f"{len(devices)}: {names}")
    elif shutil.which("nvidia-smi"):
        yield Finding("note", "GPUs", "NVIDIA driver found, but TensorFlow sees no GPU",
                      "pip install 'tensorflow[and-cuda]' if you want it")
    else:
        yield Finding("ok", "GPUs", "none, computing on the CPU")
        yield _batch_norm()


def _batch_norm() -> Finding:
    from tfbig.networks import compiled_batch_norm

    if compiled_batch_norm.is_compiled():
        return Finding("ok", "batch normalisation", "joined with the sum and the ReLU behind it")
    remedy = "apt install gcc and install again, for speed"
    return Finding("note", "batch normalisation", "by TensorFlow: no compiled operations", remedy)
