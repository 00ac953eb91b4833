"""Laws of handles: each kind ends at a folder with a SavedModel or in one sentence."""

import http.server
import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
import tensorflow as tf

from tfbig.errors import EnvironmentFault
from tfbig.networks.handles import resolve


@pytest.fixture(autouse=True)
def _own_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub_cache"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle_cache"))


@pytest.fixture
def module(plain_modules: dict[str, Path]) -> Path:
    return plain_modules["tensor"]


def _packed(folder: Path, archive: Path, *, inside: str = ".") -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=inside)
    return archive


def _same_module(found: Path, module: Path, images: np.ndarray) -> bool:
    copy, original = tf.saved_model.load(str(found)), tf.saved_model.load(str(module))
    return np.array_equal(copy(images), original(images))


class _Hub(http.server.BaseHTTPRequestHandler):
    """Serves a module as tfhub.dev does: only to those who ask for the compressed format."""

    archive = b""
    num_requests = 0

    def do_GET(self) -> None:
        url = urlparse(self.path)
        type(self).num_requests += 1
        compressed = parse_qs(url.query).get("tf-hub-format") == ["compressed"]
        body = {"/owner/module/1": self.archive, "/broken/1": self.archive[:200]}.get(url.path)
        self.send_response(200 if body and compressed else 404)
        self.end_headers()
        if body and compressed:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(module: Path, tmp_path: Path) -> Iterator[str]:
    _Hub.archive = _packed(module, tmp_path / "served.tar.gz").read_bytes()
    _Hub.num_requests = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_folder_is_itself(module: Path) -> None:
    assert resolve(str(module), offline=True) == module.resolve()


def test_a_web_handle_is_fetched_once_and_then_offline(server: str, module: Path, images: np.ndarray) -> None:
    handle = f"{server}/owner/module/1"
    with pytest.raises(EnvironmentFault, match="offline"):
        resolve(handle, offline=True)
    assert _Hub.num_requests == 0
    found = resolve(handle, offline=False)
    assert _same_module(found, module, images)
    assert resolve(handle, offline=True) == found == resolve(handle, offline=False)
    assert _Hub.num_requests == 1


@pytest.mark.parametrize("path", ["owner/nothing/1", "broken/1"])
def test_a_web_handle_that_gives_no_module_is_a_fault(server: str, path: str) -> None:
    with pytest.raises(EnvironmentFault, match="could not be fetched"):
        resolve(f"{server}/{path}", offline=False)


def test_a_server_that_is_not_there_is_a_fault() -> None:
    with pytest.raises(EnvironmentFault, match="could not be fetched"):
        resolve("http://127.0.0.1:9/owner/module/1", offline=False)


@pytest.mark.parametrize("inside", [".", "module"])
def test_an_archive_is_unpacked_once(module: Path, tmp_path: Path, images: np.ndarray, inside: str) -> None:
    archive = _packed(module, tmp_path / "module.tar.gz", inside=inside)
    found = resolve(str(archive), offline=True)
    assert _same_module(found, module, images)
    assert resolve(str(archive), offline=True) == found


def test_a_changed_archive_is_not_the_old_one(plain_modules: dict[str, Path], tmp_path: Path) -> None:
    archive = _packed(plain_modules["tensor"], tmp_path / "module.tar.gz")
    first = resolve(str(archive), offline=True)
    _packed(plain_modules["map"], archive)
    assert resolve(str(archive), offline=True) != first


def test_an_archive_cannot_write_outside_of_the_cache(tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("../../escaped.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"gone"))
    with pytest.raises(EnvironmentFault, match="cannot be unpacked"):
        resolve(str(archive), offline=True)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not list((tmp_path / "hub_cache").iterdir())


def test_a_truncated_archive_leaves_nothing_in_the_cache(module: Path, tmp_path: Path) -> None:
    archive = _packed(module, tmp_path / "module.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(EnvironmentFault, match="cannot be unpacked"):
        resolve(str(archive), offline=True)
    assert not list((tmp_path / "hub_cache").iterdir())


def test_what_is_no_module_is_named(module: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    shutil.copytree(module, tmp_path / "two" / "1")
    shutil.copytree(module, tmp_path / "two" / "2")
    old = shutil.copytree(module, tmp_path / "old")
    (old / "tfhub_module.pb").write_bytes(b"\x08\x03")
    for name, sentence in {
        "nowhere": "There is no hub module at",
        "empty": "not a TF2 SavedModel",
        "text.txt": "another kind of file",
        "two": "several SavedModels.*1, 2",
        "old": "TF1 hub.Module",
    }.items():
        with pytest.raises(EnvironmentFault, match=sentence):
            resolve(str(tmp_path / name), offline=True)


@pytest.mark.parametrize(
    "handle",
    [
        "kaggle:owner/model/tensorFlow2/small/2",
        "kaggle:owner/model/tensorFlow2/small",
        "https://www.kaggle.com/models/owner/model/tensorFlow2/small/2",
        "https://www.kaggle.com/models/owner/model/frameworks/tensorFlow2/variations/small/versions/2",
    ],
)
def test_a_kaggle_handle_is_found_in_kagglehubs_cache(handle: str, module: Path, tmp_path: Path) -> None:
    pytest.importorskip("kagglehub")
    variation = tmp_path / "kaggle_cache" / "models" / "owner" / "model" / "tensorFlow2" / "small"
    for version in (1, 2):
        shutil.copytree(module, variation / str(version))
        (variation / f"{version}.complete").touch()
    shutil.copytree(module, variation / "3")
    assert resolve(handle, offline=True) == variation / "2"
    if handle.endswith("/2"):
        # A version that is there is not asked for again, so this opens no connection either.
        assert resolve(handle, offline=False) == variation / "2"


def test_a_kaggle_handle_that_is_not_here_is_a_fault_offline() -> None:
    pytest.importorskip("kagglehub")
    with pytest.raises(EnvironmentFault, match="not in the cache"):
        resolve("kaggle:owner/model/tensorFlow2/small/2", offline=True)
    with pytest.raises(EnvironmentFault, match="must be kaggle:owner"):
        resolve("kaggle:owner/model", offline=True)
