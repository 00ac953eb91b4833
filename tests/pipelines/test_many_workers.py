"""Real processes on this machine train one network: the same result as one process, and nothing lost where one dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

# Plain steps in a fixed order, with the pictures changed and the frozen network computed at each. Of a network that
# trains whole, 50 steps of one process differ by 2e-4 already where oneDNN is turned off.
ARGUMENTS = [
    "--adapt.mode", "head", "--model.hidden_units", "32", "--options.augment", "crop", "--train.optimizer", "sgd",
    "--train.learning_rate", "0.05", "--train.schedule", "constant", "--train.epochs", "5", "--data.limit", "300",
    "--data.batch_size", "30", "--train.keep", "last",
]  # fmt: skip
TIMEOUT_S = 300


def _ports(count: int = 2) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _start(config: str | None, *arguments: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    if config is not None:
        environment["TF_CONFIG"] = config
    command = [sys.executable, "-m", "tfbig.pipelines.image_finetune", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _config(ports: Sequence[int], index: int) -> str:
    workers = [f"localhost:{port}" for port in ports]
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})


class Pair:
    """Two workers of one run, each with what flags it has of its own."""

    def __init__(self, *arguments: str, own: Sequence[Sequence[str]] = ((), ())) -> None:
        ports = _ports()
        self.processes = [_start(_config(ports, index), *arguments, *own[index]) for index in range(2)]

    def ends(self, timeout_s: float = TIMEOUT_S) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of each."""
        found = []
        for process in self.processes:
            out, err = process.communicate(timeout=timeout_s)
            found.append((process.returncode, out, err))
        return found

    def kill(self) -> None:
        """Ends whatever is left."""
        for process in self.processes:
            process.kill()


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Pairs that are ended with the test."""
    started: list[Pair] = []
    yield started
    for pair in started:
        pair.kill()


def _single(run_dir: Path, *more: str) -> dict:
    process = _start(None, *ARGUMENTS, *more, "--run_dir", str(run_dir))
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err[-2000:]
    return json.loads(out.splitlines()[-1])


def _arrays(run_dir: Path) -> dict[str, np.ndarray]:
    last = max((run_dir / "checkpoints").glob("step-*.npz"))
    with np.load(last) as stored:
        return {name: stored[name] for name in stored.files if name != "meta.json"}


def _require_equal(one: Path, other: Path, atol: float) -> None:
    ours, theirs = _arrays(one), _arrays(other)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        if not name.startswith("metrics"):
            np.testing.assert_allclose(array, theirs[name], atol=atol, err_msg=name)


@pytest.mark.slow
def test_two_processes_train_evaluate_and_export_once_as_one_process(tmp_path: Path) -> None:
    whole, split = tmp_path / "whole", tmp_path / "split"
    expected = _single(whole)
    launch = [sys.executable, "-m", "tfbig", "launch", "--workers", "2", "image_finetune"]
    done = subprocess.run(
        [*launch, *ARGUMENTS, "--run_dir", str(split), "--export.dir", str(tmp_path / "export")],
        capture_output=True, text=True, timeout=TIMEOUT_S,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = done.stdout.splitlines()
    result = json.loads(line)
    assert result["metrics"] == pytest.approx(expected["metrics"], abs=1e-5)
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["1"]
    assert result["export"] == str(tmp_path / "export" / "1")
    assert "[0] " in done.stderr and "[1] " in done.stderr
    _require_equal(whole, split, atol=1e-5)  # 50 steps
    assert json.loads((split / "environment.json").read_text())["num_replicas"] == 2
    # The other worker has written nothing, and left nothing.
    assert {path.name for path in tmp_path.iterdir()} <= {"whole", "split", "export"}


@pytest.mark.slow
def test_a_killed_worker_stops_the_other_and_both_go_on_as_if_nothing_was(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # With all that a checkpoint must hold of the data: a random order, random changes, an average.
    more = ["--train.checkpoint_every_s", "0", "--options.augment", "crop,mixup", "--train.ema_decay", "0.9",
            "--train.keep", "best"]  # fmt: skip
    pairs.append(Pair(*ARGUMENTS, *more, "--run_dir", str(whole)))
    for code, _, err in pairs[-1].ends():
        assert code == 0, err[-3000:]

    step = np.random.default_rng().integers(3, 35)
    pairs.append(Pair(*ARGUMENTS, *more, "--run_dir", str(killed)))
    chief, other = pairs[-1].processes
    _wait_for_step(killed, int(step), chief)
    os.kill(other.pid, signal.SIGKILL)
    began = time.monotonic()
    (code, _, err), (other_code, _, _) = pairs[-1].ends()
    assert (code, other_code) == (75, -signal.SIGKILL), err[-3000:]
    assert time.monotonic() - began < 60
    assert "Worker 1 (localhost:" in err and "start all workers again" in err and "Traceback" not in err
    assert json.loads((killed / "status.json").read_text())["state"] == "interrupted"
    # A checkpoint that was half-written at the kill is no reason to lose the run.
    newest = max((killed / "checkpoints").glob("step-*.npz"))
    newest.write_bytes(newest.read_bytes()[:1000])

    pairs.append(Pair(*ARGUMENTS, *more, "--run_dir", str(killed)))
    for code, _, err in pairs[-1].ends():
        assert code == 0, err[-3000:]
    # To the bit in one process; the sums of two may be added in another order.
    _require_equal(whole, killed, atol=1e-6)
    ours, theirs = ((path / "metrics.jsonl").read_text().splitlines() for path in (whole, killed))
    for one, two in zip(map(json.loads, ours), map(json.loads, theirs), strict=True):
        del one["seconds"], two["seconds"]
        assert one == pytest.approx(two, abs=1e-5)


def _wait_for_step(run_dir: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        steps = [int(path.stem.split("-")[1]) for path in (run_dir / "checkpoints").glob("step-*.npz")]
        if steps and max(steps) >= step:
            return
        time.sleep(0.005)
    pytest.fail("no such step: " + process.communicate()[1][-3000:])


@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_does_not_come_is_named(tmp_path: Path, index: int) -> None:
    arguments = ["--run_dir", str(tmp_path / "run"), "--runtime.start_timeout_s", "1"]
    waiting = _start(_config(_ports(), index), *arguments)
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, out) == (75, "")
    assert f"worker {1 - index} (localhost:" in err and "did not come" in err and len(err.splitlines()) == 1


def test_workers_with_other_settings_are_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    pairs.append(Pair("--run_dir", str(tmp_path / "run"), own=[["--train.epochs", "1"], ["--train.epochs", "2"]]))
    for code, _, err in pairs[-1].ends(60):
        assert code == 2 and "train.epochs (2 there, 1 on the chief)" in err


@pytest.mark.slow
def test_asking_one_worker_to_stop_stops_all_of_them_with_everything_saved(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    run_dir = tmp_path / "run"
    pairs.append(Pair(*ARGUMENTS, "--train.checkpoint_every_s", "0", "--run_dir", str(run_dir)))
    chief, other = pairs[-1].processes
    _wait_for_step(run_dir, 3, chief)
    other.send_signal(signal.SIGTERM)
    for code, _, err in pairs[-1].ends(120):
        assert code == 75 and "everything saved" in err, err[-2000:]
    assert json.loads((run_dir / "status.json").read_text())["state"] == "interrupted"


_SLOW_DISK = """
import sys, time
from pathlib import Path
from tfbig.pipelines.image_finetune import TASK, main
from tfbig.startup import import_tensorflow

import_tensorflow()
from tfbig.training import checkpoints

save = checkpoints.save

def save_slowly(*arguments):
    if Path("is_slow").exists():
        time.sleep(35)
    save(*arguments)

checkpoints.save = save_slowly
sys.exit(main(TASK, sys.argv[1:]))
"""


@pytest.mark.slow
def test_all_that_stop_wait_for_a_chief_whose_disk_is_slow(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(_SLOW_DISK)
    run_dir, ports = tmp_path / "run", _ports()
    command = [sys.executable, "job.py", *ARGUMENTS, "--train.checkpoint_every_s", "0", "--run_dir", str(run_dir)]
    processes = [
        subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TF_CONFIG": _config(ports, index)},
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        _wait_for_step(run_dir, 3, processes[0])
        (tmp_path / "is_slow").touch()
        processes[1].send_signal(signal.SIGTERM)
        ends = [(process, process.communicate(timeout=TIMEOUT_S)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, err) in ends:
        assert process.returncode == 75 and "everything saved" in err, (process.returncode, err[-2000:])
    # The chief has come to the end of it.
    assert json.loads((run_dir / "status.json").read_text())["state"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("is_same", [True, False])
def test_workers_that_begin_with_other_weights_are_refused(tmp_path: Path, is_same: bool) -> None:
    import keras

    ports, processes = _ports(), []
    arguments = ["--model.backbone", "keras:small.keras", "--data.limit", "60", "--train.epochs", "1", "--adapt.mode"]
    for index in range(2):
        host = tmp_path / f"host{index}"
        host.mkdir()
        keras.utils.set_random_seed(0 if is_same else index)
        keras.Sequential(
            [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(),
             keras.layers.Flatten()]
        ).save(host / "small.keras")  # fmt: skip
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "TF_CONFIG": _config(ports, index)}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tfbig.pipelines.image_finetune", *arguments, "head" if is_same else "full"],
                cwd=host, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    try:
        ends = [(process, process.communicate(timeout=120)[1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, err in ends:
        assert process.returncode == (0 if is_same else 2), err[-2000:]
        assert ("other weights than the chief's" in err) is not is_same


# Fifty steps of a whole network in float64, in which rounding cannot hide a mistake of the arithmetic.
_DOUBLE = """
import sys
import numpy as np
from tfbig.cluster import from_environment
from tfbig.meeting import meet
from tfbig.startup import import_tensorflow

team = meet(from_environment(), {}, timeout_s=120)
import_tensorflow()
import keras
import tensorflow as tf
from tfbig.data.index_plan import IndexPlan
from tfbig.gradients.rule import mean_gradient
from tfbig.networks import scratch
from tfbig.objectives.supervised import Objective
from tfbig.pipelines._command_line import parse
from tfbig.pipelines.image_finetune import TASK
from tfbig.runtime import runtime
from tfbig.training.distribution import fed, of_this_process
from tfbig.training.learner import Learner

def losses(network, batch, *, training):
    logits = network(batch.x, training=training)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch.y, logits), tf.cast(logits, tf.float32)

def rule(losses, network, batch):
    step = mean_gradient(losses, network, batch._replace(weight=tf.cast(batch.weight, tf.float64)))
    return step._replace(losses=tf.cast(step.losses, tf.float32))

config = parse(TASK, ["--config", "digits", "--data.limit", "300"])
with runtime(strategy="auto", precision="float32", seed=0, team=team) as strategy:
    splits = TASK.load(config)
    keras.config.set_dtype_policy("float64")
    with strategy.scope():
        backbone = scratch.build("convnet", 16)
        network = keras.Model(backbone.inputs, keras.layers.Dense(10)(backbone.output))
        splits = TASK.prepare(splits, network)
        learner = Learner(network, Objective(losses=losses, metrics=list), rule)
        learner.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
    plan = IndexPlan(len(splits.train), 30, seed=0)
    for epoch in range(50 // plan.steps_per_epoch):
        data = fed(strategy, splits.train, plan, position=lambda: (epoch, 0))
        learner.fit(data, epochs=1, shuffle=False, verbose=0)
    team.wait_for_all()
    arrays = [of_this_process(strategy, variable) for variable in network.trainable_variables]
    if team.is_chief:
        assert {array.dtype.name for array in arrays} == {"float64"}
        assert of_this_process(strategy, learner.optimizer.iterations) == 50
        np.savez(sys.argv[1], *arrays)
team.leave(None)
print(strategy.num_replicas_in_sync)
"""


@pytest.mark.slow
def test_a_network_that_trains_whole_differs_by_rounding_alone(tmp_path: Path) -> None:
    (tmp_path / "double.py").write_text(_DOUBLE)
    launch = ["-m", "tfbig", "launch", "--workers", "2"]
    found = []
    for num_replicas, command in ((1, ["-m", "double"]), (2, [*launch, "double"])):
        done = subprocess.run(
            [sys.executable, *command, f"{num_replicas}.npz"], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout.split()) == (0, [str(num_replicas)]), done.stderr[-2000:]
        with np.load(tmp_path / f"{num_replicas}.npz") as stored:
            found.append([stored[name] for name in stored.files])
    one, two = found
    difference = max(np.abs(ours - theirs).max() for ours, theirs in zip(one, two, strict=True))
    print(f"largest difference of two processes: {difference}")
    assert difference < 1e-12
