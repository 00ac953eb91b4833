"""Files that have not changed are not read again, those that have are, and what is on the disk is whole or unused."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfbig.data import images
from tfbig.data.contents import DIGEST
from tfbig.data.known_files import KnownFiles, entries
from tfbig.data.splits import Splits
from tfbig.errors import DataError

LATER_NS = 10**10


def _write(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.png_bytes(np.full((2, 2), shade, np.uint8)))


def _known(root: Path, cache: Path) -> KnownFiles:
    return KnownFiles(f"folder:{root}", directory=str(root), folder=cache, limit_bytes=10**9)


def _digests(root: Path, names: list[str]) -> np.ndarray:
    return np.array([hashlib.sha256((root / name).read_bytes()).digest()[:16] for name in names], DIGEST)


def _keep(root: Path, cache: Path, names: list[str], *, read_ns: int) -> None:
    known = _known(root, cache)
    digests = _digests(root, names)
    nothing = np.zeros(len(names), bool)
    known.add(names, known.states(names), digests, known=nothing, read_ns=read_ns)
    known.keep()


def _found(root: Path, cache: Path, names: list[str]) -> list[bool]:
    known = _known(root, cache)
    return (known.digests(names, known.states(names)) != b"").tolist()


@pytest.fixture
def cache(feature_cache_folder: Path) -> Path:
    return feature_cache_folder


def test_the_second_start_reads_what_changed_and_finds_the_same(
    tmp_path: Path, load: Callable[..., Splits], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for i in range(40):
        _write(whole / "ab"[i % 2] / f"{i:02d}.png", i)
        _write(broken / "ab"[i % 2] / f"{i:02d}.png", i)
    bad = broken / "a" / "10.png"
    bad.write_bytes(bad.read_bytes()[:-20])
    time.sleep(2.2)  # until the last of them is older than a tick
    first = load(f"folder:{whole}")
    assert "not read again" not in caplog.text and len(entries(cache)) == 1
    second = load(f"folder:{whole}")
    assert "40 of 40 files" in caplog.text and second.manifest == first.manifest
    # The same size and the same time of change, as a copy with its times would have.
    path = whole / "a" / "10.png"
    status = path.stat()
    _write(path, 2)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    third = load(f"folder:{whole}")
    assert "39 of 40 files" in caplog.text
    assert third.manifest["content"] != first.manifest["content"]
    assert sum(third.manifest["duplicates"]["within"].values()) == 1
    caplog.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFBIG_CACHE_GB", "0")
        assert load(f"folder:{whole}").manifest == third.manifest
    assert "not read again" not in caplog.text
    for _ in range(2):
        with pytest.raises(DataError, match=r"10\.png"):
            load(f"folder:{broken}")
    assert "39 of 40 files" in caplog.text


def test_a_file_changed_within_a_tick_of_being_read_is_not_known(tmp_path: Path, cache: Path) -> None:
    _write(tmp_path / "a.png", 1)
    changed_ns = (tmp_path / "a.png").stat().st_ctime_ns
    _keep(tmp_path, cache, ["a.png"], read_ns=changed_ns + 10**9)
    assert _found(tmp_path, cache, ["a.png"]) == [False]
    _keep(tmp_path, cache, ["a.png"], read_ns=changed_ns + LATER_NS)
    assert _found(tmp_path, cache, ["a.png"]) == [True]


def test_each_thing_that_the_file_system_says_counts(tmp_path: Path, cache: Path) -> None:
    """Where the clock stands still, or on a file system without inodes or such times, the others are all there is."""
    _write(tmp_path / "a.png", 1)
    _keep(tmp_path, cache, ["a.png"], read_ns=time.time_ns() + LATER_NS)
    known, status = _known(tmp_path, cache), (tmp_path / "a.png").stat()
    states = known.states(["a.png"])
    assert states.tolist() == [[status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]]
    assert known.digests(["a.png"], states).tolist() != [b""]
    for column in range(4):
        other = states.copy()
        other[0, column] += 1
        assert known.digests(["a.png"], other).tolist() == [b""]


def test_a_file_changed_while_it_was_read_is_not_known(tmp_path: Path, cache: Path) -> None:
    _write(tmp_path / "a.png", 1)
    known = _known(tmp_path, cache)
    states = known.states(["a.png"])
    _write(tmp_path / "a.png", 200)
    os.utime(tmp_path / "a.png", ns=(0, 0))
    later = time.time_ns() + LATER_NS
    known.add(["a.png"], states, np.array([b"d" * 16]), known=np.zeros(1, bool), read_ns=later)
    known.keep()
    assert not entries(cache)


def test_each_file_has_its_own_digest_and_only_this_starts_are_kept(tmp_path: Path, cache: Path) -> None:
    names = [f"{i}.png" for i in range(20)]
    for i, name in enumerate(names):
        _write(tmp_path / name, i)
    later = time.time_ns() + LATER_NS
    _keep(tmp_path, cache, names, read_ns=later)
    known = _known(tmp_path, cache)
    found = known.digests(names, known.states(names))
    np.testing.assert_array_equal(found, _digests(tmp_path, names))
    assert len(set(found.tolist())) == len(names)
    os.link(tmp_path / names[0], tmp_path / "00.png")
    _keep(tmp_path, cache, names[:5], read_ns=later)
    assert _found(tmp_path, cache, ["no.png", "\0.png"]) == [False] * 2
    assert _found(tmp_path, cache, names) == [True] * 5 + [False] * 15
    _keep(tmp_path, cache, names[:1], read_ns=later)
    # The same file by another name is another path.
    assert _found(tmp_path, cache, ["00.png", names[0]]) == [False, True]


@pytest.mark.parametrize("damage", [lambda raw: raw[:-7], lambda raw: raw[:20] + b"?" + raw[21:], lambda raw: b""])
def test_a_damaged_entry_is_not_used_and_is_mended(
    tmp_path: Path, cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    _write(tmp_path / "a.png", 1)
    later = time.time_ns() + LATER_NS
    _keep(tmp_path, cache, ["a.png"], read_ns=later)
    (entry,) = entries(cache)
    assert entry.stat().st_mode & 0o777 == 0o600
    entry.write_bytes(damage(entry.read_bytes()))
    assert _found(tmp_path, cache, ["a.png"]) == [False]
    _keep(tmp_path, cache, ["a.png"], read_ns=later)
    assert _found(tmp_path, cache, ["a.png"]) == [True]


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from tfbig.data.contents import DIGEST
from tfbig.data.known_files import KnownFiles
root, cache, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
names = [f"{i}.png" for i in range(count)]
states = np.arange(4 * count).reshape(-1, 4)
KnownFiles.states = lambda self, names: states
print("ready", flush=True)
while True:
    known = KnownFiles(root, directory=root, folder=cache, limit_bytes=10**9)
    known._is_used[:] = False
    digests = np.array([f"{i:016d}" for i in range(count)], DIGEST)
    known.add(names, states, digests, known=np.zeros(count, bool), read_ns=10**18)
    known.keep()
"""


def test_two_writers_and_a_kill_leave_a_whole_entry(tmp_path: Path, cache: Path, project_root: Path) -> None:
    source = str(tmp_path)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, source, str(cache), str(count)], stdout=subprocess.PIPE, cwd=project_root
        )
        for count in (3000, 5000)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        names, states = [f"{i}.png" for i in range(3000)], np.arange(12000).reshape(-1, 4)
        deadline = time.monotonic() + 20
        while not entries(cache) and time.monotonic() < deadline:
            time.sleep(0.01)
        for turn in range(60):
            if turn == 40:
                writers[0].send_signal(signal.SIGKILL)
            known = KnownFiles(source, directory=source, folder=cache, limit_bytes=10**9)
            assert known.digests(names, states).tolist() == [b"%016d" % i for i in range(3000)]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


def test_a_folder_that_cannot_be_written_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path / "a.png", 1)
    (tmp_path / "file").write_text("no folder")
    _keep(tmp_path, tmp_path / "file" / "cache", ["a.png"], read_ns=time.time_ns() + LATER_NS)
    assert "TFBIG_CACHE" in caplog.text
