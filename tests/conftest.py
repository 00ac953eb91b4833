"""What the tests share: real data and a real backbone from outside the tree, skipped with a reason where missing."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# A shell that runs the tests in the background has them ignore it, and so the commands that they begin.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_ROOT = Path(__file__).parent.parent
_SHARED = _ROOT.parent / "shared"


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout."""
    return _ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: TFBIG_DATA, or shared/data beside the checkout."""
    path = Path(os.environ.get("TFBIG_DATA", _SHARED / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set TFBIG_DATA to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def shared_backbone(shared_data: Path) -> Path:
    """An ImageNet-pretrained MobileNet in TF Hub form."""
    path = shared_data.parent / "backbones" / "mobilenet_v1_025_224_feature_vector" / "1"
    if not path.is_dir():
        pytest.skip(f"no backbone at {path}")
    return path


@pytest.fixture(autouse=True)
def feature_cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A feature cache of each test's own: none reads the user's, or another test's."""
    path = tmp_path_factory.mktemp("features") / "cache"
    monkeypatch.setenv("TFBIG_CACHE", str(path))
    monkeypatch.delenv("TFBIG_CACHE_GB", raising=False)
    return path
