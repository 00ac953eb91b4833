"""Workers of one run meet, decide alike, and learn who is gone; in threads of one process, over real connections."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfbig import team as teams
from tfbig.cluster import Cluster
from tfbig.errors import DataError, EnvironmentFault, Interrupted, UsageError, WorkerLost
from tfbig.meeting import meet
from tfbig.pipelines._workers import telling_losses
from tfbig.team import Team, Workers

SETTINGS = {"train.epochs": 3, "runtime.seed": 0}


def _addresses(count: int, host: str = "localhost") -> tuple[str, ...]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("", 0))
    addresses = tuple(f"{host}:{one.getsockname()[1]}" for one in sockets)
    for one in sockets:
        one.close()
    return addresses


def _met(count: int, host: str = "localhost") -> list[Team]:
    addresses = _addresses(count, host)
    with ThreadPoolExecutor(count) as pool:
        clusters = [Cluster(addresses, index) for index in range(count)]
        return list(pool.map(lambda one: meet(one, SETTINGS, timeout_s=20), clusters))


def _end(chief: Team, *others: Team) -> None:
    """Each is done."""
    for one in (*others, chief):
        _leave(one, None)


def _leave(team: Team, error: Exception | None) -> None:
    """Leaves, and its end of the connections closes, as at the end of its process."""
    team.leave(error)
    _close(team)


def _close(*teams: Team) -> None:
    for peer in [peer for team in teams for peer in team._peers.values()]:
        with contextlib.suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)
        peer.close()


def _sockets() -> set[str]:
    """Those that this process has open."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(path))
    return {name for name in found if name.startswith("socket:")}


def _together(calls: list[Callable[[], object]]) -> list[object]:
    """What each call gives, or raises."""

    def outcome(call: Callable[[], object]) -> object:
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def test_a_process_alone_decides_for_itself() -> None:
    alone = meet(None, SETTINGS, timeout_s=0)
    assert alone.is_chief and alone.num_workers == 1 and alone.decide({"a": 1}) == {"a": 1}
    assert alone.loss() is None


def test_all_follow_the_chiefs_decisions_in_its_order() -> None:
    chief, *others = _met(3)
    assert [one.index for one in (chief, *others)] == [0, 1, 2]
    for number in range(50):
        assert chief.decide({"number": number}) == {"number": number}
    for one in others:
        assert [one.decide({"number": -1})["number"] for _ in range(50)] == list(range(50))
    began = time.monotonic()
    _together([lambda: (time.sleep(0.5), others[0].wait_for_all()), others[1].wait_for_all, chief.wait_for_all])
    assert time.monotonic() - began >= 0.5
    assert not chief.is_asked_to_stop
    others[1].ask_to_stop()
    deadline = time.monotonic() + 10
    while not chief.is_asked_to_stop and time.monotonic() < deadline:
        time.sleep(0.01)
    assert chief.is_asked_to_stop
    _end(chief, *others)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_workers_meet_under_addresses_of_both_kinds(host: str) -> None:
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    chief, other = _met(2, host)
    assert _together([lambda: chief.decide({"a": 1}), lambda: other.decide({})]) == [{"a": 1}] * 2
    _end(chief, other)


def test_the_port_is_free_again_once_all_have_met() -> None:
    chief, other = _met(2)
    port = int(chief._cluster.addresses[0].split(":")[1])
    with socket.socket() as server:  # as TensorFlow's server binds it
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        server.listen()
    _end(chief, other)


@pytest.mark.parametrize("present", [[0, 2], [1, 2]])
def test_who_does_not_come_is_named_to_all_that_did(present: list[int]) -> None:
    addresses = _addresses(3)
    calls = [lambda i=i: meet(Cluster(addresses, i), SETTINGS, timeout_s=1.5) for i in present]
    [missing] = {0, 1, 2} - set(present)
    before = _sockets()
    ends = _together(calls)
    # What the errors hold is still there.
    assert _sockets() <= before
    for found in ends:
        assert isinstance(found, WorkerLost) and found.exit_code == 75
        assert f"worker {missing} ({addresses[missing]}" in str(found) and "did not come" in str(found)


def test_other_settings_are_named_to_both() -> None:
    addresses = _addresses(2)
    other = {**SETTINGS, "train.epochs": 4}
    calls = [lambda: meet(Cluster(addresses, 0), SETTINGS, timeout_s=20),
             lambda: meet(Cluster(addresses, 1), other, timeout_s=20)]  # fmt: skip
    before = _sockets()
    ends = _together(calls)
    assert _sockets() <= before
    for found in ends:
        assert isinstance(found, UsageError) and "train.epochs (4 there, 3 on the chief)" in str(found)


def test_other_versions_are_named_to_both() -> None:
    addresses = _addresses(2)
    calls = [lambda i=i: meet(Cluster(addresses, i), SETTINGS, timeout_s=20, versions={"keras": f"3.1{i}"})
             for i in range(2)]  # fmt: skip
    for found in _together(calls):
        assert isinstance(found, EnvironmentFault) and "keras (3.11 there, 3.10 on the chief)" in str(found)


def test_a_stranger_on_the_port_is_no_worker() -> None:
    addresses = _addresses(2)
    port = int(addresses[0].split(":")[1])
    with ThreadPoolExecutor(2) as pool:
        chief = pool.submit(meet, Cluster(addresses, 0), SETTINGS, timeout_s=20)
        for content in (b"GET / HTTP/1.1\r\n\r\n", b'{"worker": 7}\n', b'{"worker": [1]}\n', b"[]\n", b""):
            while True:
                try:
                    stranger = socket.create_connection(("localhost", port), timeout=1)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            stranger.sendall(content)
            stranger.close()
        other = pool.submit(meet, Cluster(addresses, 1), SETTINGS, timeout_s=20)
        met = [chief.result(20), other.result(20)]
    assert [one.index for one in met] == [0, 1]
    _end(*met)


def test_a_stranger_that_talks_without_end_holds_the_chief_up_no_longer_than_the_wait() -> None:
    addresses, began = _addresses(2), time.monotonic()
    port = int(addresses[0].split(":")[1])
    with ThreadPoolExecutor(1) as pool:
        chief = pool.submit(meet, Cluster(addresses, 0), SETTINGS, timeout_s=2)
        while time.monotonic() - began < 2 and not chief.done():
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1) as stranger:
                while not chief.done() and time.monotonic() - began < 15:
                    stranger.sendall(b" ")
                    time.sleep(0.05)
        with pytest.raises(WorkerLost, match="did not come"):
            chief.result()
    assert time.monotonic() - began < 6


def test_a_taken_port_is_named() -> None:
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(EnvironmentFault, match=f"Port {port}"):
            meet(Cluster((f"localhost:{port}", "localhost:1"), 0), SETTINGS, timeout_s=1)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss is acted upon at once, and no process is ended for it."""
    monkeypatch.setattr(teams, "_BEAT_S", 0.1)
    monkeypatch.setattr(teams, "_GRACE_S", 5.0)


def test_a_worker_that_fails_gives_the_others_its_reason_and_exit_code(fast: None) -> None:
    chief, first, second = _met(3)
    first.leave(DataError("There is no folder photos; give --data.source."))
    for one in (chief, second):
        lost = one.loss()
        assert lost is not None and lost.exit_code == 3
        assert "Worker 1 (localhost:" in str(lost) and "There is no folder photos" in str(lost)
    with pytest.raises(WorkerLost):
        chief.decide({})
    with pytest.raises(WorkerLost):
        second.decide({})
    _leave(chief, WorkerLost(""))
    _leave(second, WorkerLost(""))
    _close(first)


def test_a_closed_connection_is_a_loss_and_the_waiting_is_ended(fast: None) -> None:
    chief, other = _met(2)
    aborted = threading.Event()
    other.on_loss = lambda reason: aborted.set()
    for peer in chief._peers.values():  # as the kernel does for a process that is killed
        peer.shutdown(socket.SHUT_RDWR)
    assert aborted.wait(10)
    lost = other.loss()
    assert lost is not None and lost.exit_code == 75
    assert str(lost).startswith("Worker 0 (localhost:") and "start all workers again" in str(lost)
    _leave(chief, None)
    _leave(other, lost)


def test_a_worker_that_hangs_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams, "_BEAT_S", 0.1)
    ours, theirs = socket.socketpair()
    cluster = Cluster(("a:1", "b:2"), 0)
    chief = Workers(cluster, {1: ours}, lost_after_s=0.5)
    time.sleep(1.0)
    lost = chief.loss()
    assert lost is not None and "worker 1 (b:2) has not been heard of" in str(lost).lower()
    _leave(chief, lost)
    theirs.close()


def test_who_is_silent_is_the_one_that_tensorflow_complains_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams, "_BEAT_S", 0.1)
    (one, far_one), (two, far_two) = socket.socketpair(), socket.socketpair()
    chief = Workers(Cluster(("a:1", "b:2", "c:3"), 0), {1: one, 2: two})
    ended = time.monotonic() + 1
    while time.monotonic() < ended:  # worker 2 beats, worker 1 hangs
        far_two.sendall(b"{}\n")
        time.sleep(0.05)
    lost = chief.loss()
    assert lost is not None and str(lost).startswith("Worker 1 (b:2) stopped answering")
    with far_two.makefile() as lines:
        told = next(message for message in map(json.loads, lines) if "lost" in message)
    assert told["lost"] == str(lost)
    _leave(chief, lost)
    far_one.close()
    far_two.close()


@pytest.mark.parametrize("is_noted", [False, True])
def test_after_the_release_a_loss_is_none(fast: None, is_noted: bool) -> None:
    chief, other = _met(2)
    if is_noted:
        other.leave(KeyboardInterrupt())
        assert chief.loss() is not None
    chief.release()
    if not is_noted:
        other.leave(KeyboardInterrupt())
    assert chief.loss() is None
    assert chief.decide({"result": 1}) == {"result": 1}
    _end(chief, other)


def test_a_released_worker_still_learns_how_the_chief_failed(fast: None) -> None:
    chief, other = _met(2)
    other.release()
    chief.leave(DataError("There is no picture."))
    with pytest.raises(WorkerLost, match="There is no picture") as caught:
        other.decide({})
    assert caught.value.exit_code == 3
    _leave(other, caught.value)
    _close(chief)


def test_who_was_released_in_time_is_not_ended_for_a_loss_of_before() -> None:
    script = """
import socket, time
from tfbig import team
team._BEAT_S, team._GRACE_S = 0.1, 0.5
ours, theirs = socket.socketpair()
workers = team.Workers(team.Cluster(("a:1", "b:2"), 0), {1: ours}, lost_after_s=5)
theirs.close()
time.sleep(0.3)
assert workers.loss() is not None
workers.release()
time.sleep(1)
workers.leave(None)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_nobody_waits_for_a_worker_that_ended_over_a_loss_of_its_own(fast: None) -> None:
    chief, other, third = _met(3)
    # It has not heard of the chief for too long, while the chief has.
    lost = WorkerLost("Worker 0 has not been heard of.")
    assert other._note(lost)
    other.leave(lost)
    began = time.monotonic()
    for waits in (chief.wait_for_all, third.wait_for_all):
        with pytest.raises(WorkerLost, match="Worker 0 has not been heard of"):
            waits()
    assert time.monotonic() - began < 5
    _leave(chief, lost)
    _leave(third, lost)
    _close(other)


def test_nobody_waits_for_a_worker_that_is_done_already(fast: None) -> None:
    chief, other = _met(2)
    other.leave(None)
    with pytest.raises(WorkerLost, match="Worker 1 .* ended before the others"):
        chief.wait_for_all()
    with pytest.raises(WorkerLost):
        chief.decide({})
    _leave(chief, WorkerLost(""))
    _close(other)
    chief, other = _met(2)
    chief.decide({"last": 1})
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(_leave, chief, None)
        assert other.decide({}) == {"last": 1}
        with pytest.raises(WorkerLost, match="Worker 0 .* ended before the others"):
            other.decide({})
        _leave(other, WorkerLost(""))
        leaving.result(20)


def test_all_that_stop_together_wait_for_the_chiefs_checkpoint_and_lose_nobody(fast: None) -> None:
    import tensorflow as tf

    from tfbig.training.callbacks import DivergenceGuard, Ledger, Saver, Signals
    from tfbig.training.learner import NEVER

    chief, *others = _met(3)
    written = threading.Event()

    def write() -> None:
        time.sleep(1.0)
        written.set()

    def stop(team: Team, signals: Signals) -> None:
        ledger = Ledger(steps_per_epoch=5, step=1)
        guard = DivergenceGuard()
        guard.set_model(SimpleNamespace(diverged_at=tf.Variable(NEVER)))
        saver = Saver(write if team.is_chief else lambda: None, ledger, guard, signals, every_s=1e9, team=team)
        while True:
            try:
                saver.on_train_batch_end(0)
            except Interrupted as error:
                assert written.is_set()
                _leave(team, error)
                raise

    asked = Signals()
    asked.received = signal.SIGTERM
    members = [(chief, Signals()), (others[0], asked), (others[1], Signals())]
    ends = _together([lambda team=team, signals=signals: stop(team, signals) for team, signals in members])
    assert [type(end) for end in ends] == [Interrupted] * 3, ends


def test_what_waits_on_for_ever_is_ended_with_the_sentence() -> None:
    script = """
import socket, time
from tfbig import team
team._BEAT_S, team._GRACE_S = 0.1, 0.3
ours, theirs = socket.socketpair()
workers = team.Workers(team.Cluster(("a:1", "b:2"), 0), {1: ours}, lost_after_s=5)
theirs.close()
time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 75
    assert done.stderr.startswith("Worker 1 (b:2) stopped answering;") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("is_heard_again", [True, False])
def test_an_error_of_many_causes_is_blamed_on_a_silent_worker_only_once_it_is_lost(
    monkeypatch: pytest.MonkeyPatch, is_heard_again: bool
) -> None:
    monkeypatch.setattr(teams, "_BEAT_S", 0.1)
    ours, theirs = socket.socketpair()
    chief = Workers(Cluster(("a:1", "b:2"), 0), {1: ours}, lost_after_s=1.5)
    InternalError = type("InternalError", (Exception,), {})

    def fail() -> None:
        with telling_losses(chief):
            time.sleep(0.7)  # silent for more than three beats
            raise InternalError("no kernel image is available")

    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(fail)
        if is_heard_again:
            time.sleep(1.2)
            theirs.sendall(b"{}\n")
        error = failing.exception(10)
    assert isinstance(error, InternalError if is_heard_again else WorkerLost), error
    _leave(chief, error)
    theirs.close()


def test_messages_are_lines_of_json_and_beats_carry_none() -> None:
    ours, theirs = socket.socketpair()
    chief = Workers(Cluster(("a:1", "b:2"), 0), {1: ours})
    chief.decide({"save": True})
    with theirs.makefile() as lines:
        found = [json.loads(next(lines)) for _ in range(2)]
    assert {} in found and {"decision": {"save": True}} in found
    theirs.close()
    _leave(chief, WorkerLost(""))
