"""The guide of several machines: its terminals, its manifest and its Ray program do what it says."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

_BLOCK = re.compile(r"^```(\w+)(?: (\w+)=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def blocks(project_root: Path) -> list[tuple[str, str, str, str]]:
    """Language, attribute, value and text of each block."""
    return _BLOCK.findall((project_root / "docs" / "guides" / "many_machines.md").read_text())


def _environment(project_root: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(project_root)}


@pytest.mark.slow
def test_two_terminals_train_one_run(blocks: list, project_root: Path, tmp_path: Path) -> None:
    terminals = [text for _, kind, _, text in blocks if kind == "terminal"]
    assert len(terminals) == 2
    started = [
        subprocess.Popen(
            ["bash", "-euc", text], cwd=tmp_path, env=_environment(project_root), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )
        for text in terminals
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    for process, (_, err) in zip(started, outputs, strict=True):
        assert process.returncode == 0, err[-3000:]
    results = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    assert results[0] == results[1] and results[0]["run_dir"] == "runs/by_hand"
    assert json.loads((tmp_path / "runs/by_hand/environment.json").read_text())["num_replicas"] == 2


def test_the_manifest_is_a_tfjob_whose_command_parses(blocks: list) -> None:
    from tfbig.pipelines._command_line import parse
    from tfbig.pipelines.image_finetune import TASK
    from tfbig.training.conflicts import check_conflicts

    [text] = [text for language, _, _, text in blocks if language == "yaml"]
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "TFJob")
    assert set(job["spec"]["tfReplicaSpecs"]) == {"Worker"}
    worker = job["spec"]["tfReplicaSpecs"]["Worker"]
    assert worker["replicas"] > 1 and worker["restartPolicy"] == "OnFailure"
    pod = worker["template"]["spec"]
    [container] = pod["containers"]
    # The operator sets TF_CONFIG in the container of this name only, with the port of this name.
    assert container["name"] == "tensorflow"
    assert container["ports"] == [{"name": "tfjob-port", "containerPort": 2222}]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["command"] == ["python", "-m", "tfbig.pipelines.image_finetune"]
    config = parse(TASK, container["args"])
    check_conflicts(config)
    assert config.data.batch_size % (worker["replicas"] * container["resources"]["limits"]["nvidia.com/gpu"]) == 0


def test_the_commands_parse(blocks: list) -> None:
    from tfbig.pipelines._command_line import parse
    from tfbig.pipelines.image_finetune import TASK

    commands = [text.splitlines()[-1] for language, _, _, text in blocks if language == "bash"]
    assert len(commands) == 3
    for line in commands:
        words = shlex.split(line)
        job = next(i for i, word in enumerate(words) if word.endswith("image_finetune"))
        parse(TASK, words[job + 1 :])


@pytest.mark.slow
def test_the_ray_program_trains_one_run(blocks: list, project_root: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed here; pip install 'tfbig[ray]'")
    [text] = [text for _, _, name, text in blocks if name == "on_ray.py"]
    (tmp_path / "on_ray.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "on_ray.py"], cwd=tmp_path, env=_environment(project_root), capture_output=True, text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "runs" / "on_ray"
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert json.loads((run / "environment.json").read_text())["num_replicas"] == 2
