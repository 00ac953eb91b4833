"""The documentation's commands work as they stand."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

_BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _run(command: str, folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_new_job_guide_runs_as_written(project_root: Path, tmp_path: Path) -> None:
    outputs = []
    for language, name, text in _BLOCK.findall((project_root / "docs" / "guides" / "new_job.md").read_text()):
        if name:
            (tmp_path / name).write_text(text)
        elif language == "bash":
            done = _run(text, tmp_path)
            assert done.returncode == 0, done.stderr[-2000:]
            outputs.append(done.stdout)
    helped_and_trained, predicted = outputs
    result = json.loads(helped_and_trained.splitlines()[-1])
    assert result["export"] == "saved_models/wine/1"
    assert result["metrics"]["test_accuracy"] >= 0.9
    assert "class_0" in predicted
    assert len((tmp_path / "wine.py").read_text().splitlines()) <= 110


@pytest.mark.slow
def test_the_search_guide_runs_as_written(project_root: Path, tmp_path: Path) -> None:
    outputs = []
    for language, name, text in _BLOCK.findall((project_root / "docs" / "guides" / "search.md").read_text()):
        if name:
            (tmp_path / name).write_text(text)
        elif language == "bash":
            done = _run(text, tmp_path)
            assert done.returncode == 0, done.stderr[-2000:]
            outputs.append(json.loads(done.stdout.splitlines()[-1])["run_dir"])
    assert [Path(run).name for run in outputs] == ["search", "search_by_two"]
    for run in outputs:
        for name in ("config.yaml", "search.json", "report.html", "trials/journal.jsonl", "trials/0003/config.yaml"):
            assert (tmp_path / run / name).exists(), name
    space = json.loads((tmp_path / outputs[1] / "search.json").read_text())["parameters"]
    assert "train.momentum" in {parameter["name"] for parameter in space}


def test_every_flag_that_the_documentation_names_exists(project_root: Path) -> None:
    from tfbig.pipelines._command_line import flags
    from tfbig.pipelines.image_finetune import TASK

    known = {flag.name for flag in flags(TASK)} | {"config", "help", "help_all", "print_config", "debug", "version"}
    # Of tools/test, of TensorBoard, of `python -m tfbig` and of the benches.
    known |= {"slow", "logdir"}
    commands = [project_root / "tfbig" / "__main__.py", *(project_root / "tools" / "bench").rglob("*.py")]
    for command in commands:
        known |= set(re.findall(r'add_argument\(\s*"--([a-z_]+)"', command.read_text()))
    pages = [project_root / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "pipelines/README.md")]
    for page in pages + sorted((project_root / "docs").rglob("*.md")):
        for name in re.findall(r"--([a-z][a-z0-9_.]+[a-z0-9_])", page.read_text()):
            # A field's place in a search's space is its flag behind tune.space, and its kind.
            name = name.removeprefix("tune.space.").removesuffix(".log").removesuffix(".linear")
            assert name in known, f"{page.name} names --{name}, which does not exist"


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "docs/privacy.md", "docs/guides/own_data.md"])
def test_every_command_of_a_page_parses(project_root: Path, page: str) -> None:
    from tfbig.pipelines._command_line import parse
    from tfbig.pipelines.image_finetune import TASK
    from tfbig.training.conflicts import check_conflicts

    text = (project_root / page).read_text()
    commands = [line for block in _BLOCK.findall(text) if block[0] == "bash" for line in _joined(block[2])]
    jobs = [shlex.split(line) for line in commands if "tfbig.pipelines.image_finetune" in line]
    assert jobs
    for words in jobs:
        arguments = words[words.index("tfbig.pipelines.image_finetune") + 1 :]
        check_conflicts(parse(TASK, [word for word in arguments if word not in ("--help", "--print_config")]))
    assert "tools/quickstart" in commands[0] or not page.startswith("README")
    for line in commands:
        tool = shlex.split(line, comments=True)[0] if shlex.split(line, comments=True) else ""
        assert not tool.startswith("tools/") or os.access(project_root / tool, os.X_OK), f"{tool} cannot be run"


def _joined(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_no_page_has_a_gap_or_a_dead_link(project_root: Path) -> None:
    pages = sorted(project_root.glob("*.md")) + sorted((project_root / "docs").rglob("*.md"))
    for page in [*pages, project_root / "pipelines" / "README.md", project_root / "saved_models" / "README.md"]:
        text = page.read_text()
        assert "@@" not in text, page
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page} links to {target}"
