"""A private run's secret: kept whole, for its owner alone, until it is erased."""

import dataclasses
import json
import math
import os
import stat
from pathlib import Path

import pytest

from tfbig.errors import EnvironmentFault
from tfbig.gradients.private.mechanism import NOISE_LAYOUT, Mechanism
from tfbig.training import private_state
from tfbig.training.private_state import PrivateState

STATE = PrivateState("run", 2**127 + 12345678901234567890, Mechanism(0.69664, 1000, 100, "poisson"))
MECHANISM = dataclasses.asdict(STATE.mechanism)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    private_state.write(tmp_path, STATE)
    return tmp_path / "private_state.json"


@pytest.mark.parametrize(
    "state",
    [STATE, PrivateState("run", 1), PrivateState("run", None, Mechanism(3.0, 50, 9, "shuffle", "tree"))],
)
def test_what_is_written_is_read(state: PrivateState, tmp_path: Path) -> None:
    private_state.write(tmp_path / "made" / "checkpoints", state)
    assert private_state.read(tmp_path / "made" / "checkpoints") == state


def test_states_are_drawn_anew_and_their_secrets_are_long() -> None:
    states = [private_state.fresh() for _ in range(64)]
    assert len({state.run_id for state in states}) == len({state.secret for state in states}) == 64
    assert all(0 <= state.secret < 2**128 and state.mechanism is None for state in states)
    # Every bit is drawn: among 64, each is set in some and not in others.
    for bit in range(128):
        assert len({state.secret >> bit & 1 for state in states}) == 2


def test_a_state_does_not_show_its_secret() -> None:
    for shown in (repr(STATE), str(STATE), f"{STATE}", repr([STATE])):
        assert str(STATE.secret) not in shown and f"{STATE.secret:x}" not in shown and "run" in shown


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    path, mask = tmp_path / "private_state.json", os.umask(0)
    try:
        private_state.write(tmp_path, STATE)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        # Also where a copy that others may read was put back.
        path.chmod(0o666)
        private_state.write(tmp_path, STATE)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(mask)


def test_nothing_else_is_left_and_erasing_erases(file: Path) -> None:
    private_state.write(file.parent, dataclasses.replace(STATE, secret=None))
    assert [path.name for path in file.parent.iterdir()] == ["private_state.json"]
    assert str(STATE.secret) not in file.read_text()
    assert private_state.read(file.parent) == PrivateState("run", None, STATE.mechanism)


def test_what_a_kill_left_half_written_is_not_read_and_goes_with_the_next(file: Path) -> None:
    partial = file.parent / ".private_state.json.partial"
    partial.write_text(f'{{"secret": {STATE.secret}')
    assert private_state.read(file.parent) == STATE
    private_state.write(file.parent, dataclasses.replace(STATE, secret=None))
    assert not partial.exists()


def test_a_link_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("untouched")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".private_state.json.partial").symlink_to(other)
    private_state.write(folder, STATE)
    assert other.read_text() == "untouched" and private_state.read(folder) == STATE


def test_a_folder_that_cannot_be_written_is_a_fault_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentFault, match="private_state"):
        private_state.write(tmp_path / "file", STATE)


def test_a_run_that_has_not_begun_has_none(tmp_path: Path) -> None:
    assert private_state.read(tmp_path) is None
    assert private_state.read(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", ["step-000000005.npz", "best.npz"])
def test_checkpoints_without_their_state_cannot_go_on(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(EnvironmentFault, match=r"missing.*put it back.*--resume never"):
        private_state.read(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"secret": -5}, {"secret": 0}, {"secret": 2**128}, {"secret": 1.5}, {"secret": "12"}, {"secret": True},
        {"mechanism": {}}, {"mechanism": 3.0}, {"mechanism": {"noise_multiplier": 1.0}},
        *({"mechanism": {**MECHANISM, "noise_multiplier": noise}} for noise in (0, -1.0, math.nan, math.inf, "1")),
        *({"mechanism": {**MECHANISM, "num_examples": count}} for count in (0, -1, "1")),
        {"mechanism": {**MECHANISM, "sampling": "other"}}, {"mechanism": {**MECHANISM, "more": 1}},
    ],
)  # fmt: skip
def test_a_value_that_was_never_written_is_damage(changed: dict[str, object], file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    with pytest.raises(EnvironmentFault, match=r"damaged.*put a copy back.*--resume never"):
        private_state.read(file.parent)


def test_a_file_of_the_time_before_mechanisms_were_kept_does_not_go_on(file: Path) -> None:
    content = json.loads(file.read_text())
    del content["mechanism"]
    file.write_text(json.dumps({**content, "noise_multiplier": 0.69664}))
    with pytest.raises(EnvironmentFault, match="--resume never"):
        private_state.read(file.parent)


@pytest.mark.parametrize("layout", [None, NOISE_LAYOUT - 1, NOISE_LAYOUT + 1, str(NOISE_LAYOUT), "absent"])
def test_a_run_whose_noise_another_release_draws_does_not_go_on(layout: object, file: Path) -> None:
    content = {**json.loads(file.read_text()), "noise_layout": layout}
    if layout == "absent":
        del content["noise_layout"]
    file.write_text(json.dumps(content))
    with pytest.raises(EnvironmentFault, match=rf"another release.*{NOISE_LAYOUT} now.*--resume never") as refused:
        private_state.read(file.parent)
    assert str(STATE.secret) not in str(refused.value)
    # One that has ended draws nothing more, and stays readable.
    file.write_text(json.dumps({**content, "secret": None}))
    assert private_state.read(file.parent) == PrivateState("run", None, STATE.mechanism)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[]", b"null", b"{}", b'{"run_id": "run"}'])
def test_a_file_that_is_no_state_is_damage(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(EnvironmentFault, match="damaged"):
        private_state.read(file.parent)


def test_a_state_cut_short_anywhere_is_damage_and_its_message_keeps_the_secret(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(EnvironmentFault) as refused:
            private_state.read(file.parent)
        assert str(STATE.secret)[:8] not in str(refused.value)
