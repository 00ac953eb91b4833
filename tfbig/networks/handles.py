"""From what a user calls a TF Hub module to a folder on this machine.

A handle is a folder, a .tar.gz, an http(s) address (tensorflow_hub's own resolver and cache) or a
Kaggle model (kagglehub's cache). Whatever goes wrong is one EnvironmentFault. Used by tfbig.networks.hub.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

from tfbig.errors import EnvironmentFault
from tfbig.paths import expanded

_logger = logging.getLogger(__name__)

_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_KAGGLE_URL = re.compile(r"https?://(www\.)?kaggle\.com/models/(?P<model>.+)")
_KAGGLE_PARTS = re.compile(r"[\w.-]+/[\w.-]+/[\w.-]+/[\w.-]+(/\d+)?")
_BROKEN_ARCHIVE = (tarfile.TarError, EOFError, zlib.error, OSError, ValueError)


def resolve(handle: str, *, offline: bool) -> Path:
    """The folder of a module, fetched into a cache if need be.

    Args:
        handle: A folder, a .tar.gz, an http(s) address, `kaggle:owner/model/framework/variation[/version]`
            or the address of a Kaggle model page.
        offline: Open no connection: take what is on this machine.

    Returns:
        The absolute path of a folder with a saved_model.pb.

    Raises:
        EnvironmentFault: The module cannot be had, or what was found is no TF2 SavedModel.
    """
    kaggle = _kaggle_model(handle)
    if kaggle:
        folder = _from_kaggle(kaggle, offline=offline)
    elif handle.startswith(("http://", "https://")):
        folder = _from_web(handle, offline=offline)
    else:
        folder = _from_disk(expanded(handle))
    return _saved_model_in(folder, handle)


def _from_disk(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.is_file() and path.name.endswith(_ARCHIVES):
        return _unpacked(path)
    if path.exists():
        raise EnvironmentFault(f"{path} must be a folder or a .tar.gz with a saved_model.pb, got another kind of file.")
    raise EnvironmentFault(
        f"There is no hub module at {path}; give a folder, a .tar.gz, an http(s) address or a kaggle: handle."
    )


def _saved_model_in(folder: Path, handle: str) -> Path:
    """The folder itself, or its only sub-folder, as some archives have one."""
    found = [folder] if (folder / "saved_model.pb").is_file() else _sub_modules(folder)
    if len(found) > 1:
        names = ", ".join(sorted(path.name for path in found))
        raise EnvironmentFault(f"{handle} holds several SavedModels; name one of its folders: {names}.")
    if not found:
        raise EnvironmentFault(f"{handle} is not a TF2 SavedModel: there is no saved_model.pb in {folder}.")
    if (found[0] / "tfhub_module.pb").exists():
        raise EnvironmentFault(
            f"{handle} is in the old TF1 hub.Module format, which cannot be fine-tuned on TF2; "
            "use the TF2 version of the module."
        )
    return found[0].resolve()


def _sub_modules(folder: Path) -> list[Path]:
    return [file.parent for file in folder.glob("*/saved_model.pb")]


def _hub_cache() -> Path:
    """tensorflow_hub's cache folder, so that it can be moved or emptied as one."""
    return Path(os.environ.get("TFHUB_CACHE_DIR") or Path(tempfile.gettempdir()) / "tfhub_modules")


def _unpacked(archive: Path) -> Path:
    """The archive's contents in the cache, by content: a changed archive is another entry."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = _hub_cache() / f"archive-{digest}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
    except OSError as error:
        raise EnvironmentFault(
            f"The module cache {target.parent} cannot be written ({error}); set TFHUB_CACHE_DIR to a folder that can."
        ) from error
    try:
        with tarfile.open(archive) as tar:
            # The filter refuses members that would land outside of the folder, devices and outward links.
            tar.extractall(part, filter="data")
        _publish(part, target)
    except _BROKEN_ARCHIVE as error:
        raise EnvironmentFault(
            f"{archive} cannot be unpacked ({error}); it must be a .tar.gz of a SavedModel."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _logger.info("Unpacked %s into %s.", archive, target)
    return target


def _publish(part: Path, target: Path) -> None:
    try:
        part.rename(target)
    except OSError:
        # Another process has just published the same contents.
        if not target.is_dir():
            raise


def _from_web(handle: str, *, offline: bool) -> Path:
    cached = _hub_cache() / hashlib.sha1(handle.encode()).hexdigest()
    if cached.is_dir() and any(cached.iterdir()):
        return cached
    if offline:
        raise EnvironmentFault(
            f"{handle} is not in the module cache {_hub_cache()} and --runtime.offline forbids to fetch it; "
            "run once without it, or give a folder or a .tar.gz."
        )
    try:
        import tensorflow_hub
    except ImportError as error:
        raise EnvironmentFault(
            f"tensorflow_hub cannot be imported ({error}); run pip install 'tensorflow-hub==0.16.1' 'setuptools<82'."
        ) from error
    import tensorflow as tf

    try:
        return Path(tensorflow_hub.resolve(handle))
    except (*_BROKEN_ARCHIVE, tf.errors.OpError) as error:
        raise EnvironmentFault(
            f"{handle} could not be fetched as a compressed hub module ({error}); check the address and the "
            "connection, or download it and give the folder."
        ) from error


def _kaggle_model(handle: str) -> str | None:
    """`owner/model/framework/variation[/version]` for a Kaggle handle, None for any other."""
    url = _KAGGLE_URL.fullmatch(handle)
    if url:
        model = re.sub(r"/(frameworks|variations|versions)(?=/)", "", url["model"].rstrip("/"))
    elif handle.startswith("kaggle:"):
        model = handle.removeprefix("kaggle:").strip("/")
    else:
        return None
    if not _KAGGLE_PARTS.fullmatch(model):
        raise EnvironmentFault(
            f"A Kaggle handle must be kaggle:owner/model/framework/variation or .../version, got {handle}."
        )
    return model


def _from_kaggle(model: str, *, offline: bool) -> Path:
    try:
        import kagglehub
    except ImportError as error:
        raise EnvironmentFault(
            "Kaggle handles need the package kagglehub; run pip install 'tfbig[kaggle]'."
        ) from error
    if offline:
        return cached_from_kaggle(model)
    try:
        return Path(kagglehub.model_download(model))
    # kagglehub raises the errors of requests, its own and plain ones; each means that it is not to be had.
    except Exception as error:
        raise EnvironmentFault(
            f"kaggle:{model} could not be fetched ({first_line(error)}); check the handle, the connection and, "
            "for models that ask for consent, your Kaggle token."
        ) from error


def cached_from_kaggle(model: str, *, file: str | None = None) -> Path:
    """The folder of a Kaggle model that kagglehub has fetched before.

    Args:
        model: owner/model/framework/variation, for the newest version there is, or .../version.
        file: A file that was fetched on its own, as KerasHub does; by default the model was fetched as a whole.

    Raises:
        EnvironmentFault: It is not in kagglehub's cache.
    """
    cache = expanded(os.environ.get("KAGGLEHUB_CACHE") or "~/.cache/kagglehub") / "models"
    parts = model.split("/")
    variation = cache.joinpath(*parts[:4])
    # kagglehub marks what it has fetched in full: VERSION.complete, or .complete/VERSION/FILE.complete.
    marks = variation.glob(f".complete/*/{file}.complete") if file else variation.glob("*.complete")
    fetched = (mark.parent.name if file else mark.stem for mark in marks)
    versions = sorted(int(version) for version in fetched if version.isdecimal())
    wanted = [v for v in versions if len(parts) == 4 or v == int(parts[4])]
    if not wanted:
        raise EnvironmentFault(
            f"kaggle:{model} is not in the cache {cache} and --runtime.offline forbids to fetch it; "
            "run once without it, or give a folder."
        )
    return variation / str(wanted[-1])


def first_line(error: Exception) -> str:
    """What an error of another package says first; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
