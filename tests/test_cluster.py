"""TF_CONFIG: what each launcher sets is understood, and each mistake is a sentence before TensorFlow is loaded."""

import json
import subprocess
import sys

import pytest

from tfbig import cluster
from tfbig.errors import UsageError

TWO = ["a:1", "b:2"]


def _set(monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.setenv("TF_CONFIG", content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("spec", "task", "index"),
    [
        ({"worker": TWO}, {"type": "worker", "index": 1}, 1),
        # As Kubeflow's TFJob sets it, with a chief.
        ({"chief": ["a:1"], "worker": ["b:2"]}, {"type": "worker", "index": 0}, 1),
        ({"chief": ["a:1"], "worker": ["b:2"]}, {"type": "chief", "index": 0}, 0),
    ],
)
def test_a_cluster_is_read(
    monkeypatch: pytest.MonkeyPatch, spec: dict, task: dict, index: int
) -> None:
    _set(monkeypatch, {"cluster": spec, "task": task, "environment": "cloud"})
    assert cluster.from_environment() == cluster.Cluster(("a:1", "b:2"), index)


@pytest.mark.parametrize(
    "content",
    ["", "  ", "{}", {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}, {"cluster": {}}],
)
def test_one_process_is_no_cluster(monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    _set(monkeypatch, content)
    assert cluster.from_environment() is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{cluster", "must be JSON"),
        ("[1]", "must be an object"),
        ({"cluster": {"worker": TWO, "ps": ["c:3"]}}, "parameter servers"),
        ({"cluster": ["a:1"]}, "must name workers"),
        ({"cluster": {"worker": "a:1"}}, "lists of host:port"),
        ({"cluster": {"worker": ["a:1", "b"]}}, "'b'"),
        ({"cluster": {"worker": ["a:1", 7]}}, "7"),
        ({"cluster": {"worker": ["a:1", "fd00::1:2222"]}}, "'fd00::1:2222'"),
        ({"cluster": {"worker": ["a:1", "b:99999"]}}, "'b:99999'"),
        ({"cluster": {"worker": ["a:1", "a:1"]}}, "twice"),
        ({"cluster": {"chief": TWO, "worker": []}}, "one chief"),
        ({"cluster": {"worker": TWO}}, "task must be"),
        ({"cluster": {"worker": TWO}, "task": {"type": "worker"}}, "task must be"),
        ({"cluster": {"worker": TWO}, "task": {"type": "worker", "index": "1"}}, "task must be"),
        ({"cluster": {"worker": TWO}, "task": {"type": "evaluator", "index": 0}}, "task must be"),
        ({"cluster": {"worker": TWO}, "task": {"type": "worker", "index": 2}}, "0 to 1"),
        ({"cluster": {"worker": TWO}, "task": {"type": "worker", "index": -1}}, "0 to 1"),
        ({"cluster": {"worker": TWO}, "task": {"type": "chief", "index": 0}}, "none"),
    ],
)
def test_a_mistake_is_named(monkeypatch: pytest.MonkeyPatch, content: object, words: str) -> None:
    _set(monkeypatch, content)
    with pytest.raises(UsageError) as caught:
        cluster.from_environment()
    assert words in str(caught.value) and "TF_CONFIG" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "arguments"),
    [("{cluster", []), ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}}', []),
     ("", ["--runtime.strategy", "multiworker"]),
     ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}', ["--runtime.jit_compile"])],
)  # fmt: skip
def test_a_mistake_ends_the_command_without_tensorflow(
    monkeypatch: pytest.MonkeyPatch, content: str, arguments: list[str]
) -> None:
    _set(monkeypatch, content)
    script = (
        "import sys\nfrom tfbig.pipelines.image_finetune import TASK, main\n"
        f"code = main(TASK, {arguments!r})\nsys.exit(99 if 'tensorflow' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1 and "TF_CONFIG" in done.stderr
