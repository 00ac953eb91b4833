"""The last line of stdout is the result, whatever the terminal can show and whoever has stopped reading."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tfbig.pipelines._main import _print_last

RESULT: dict[str, object] = {"run_dir": "läufe/一\udcff", "export": None, "metrics": {}, "epsilon": None}


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_cannot_be_shown_costs_no_result(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    for result in (RESULT, {**RESULT, "run_dir": "läufe"}):
        _print_last(result)
        assert json.loads(raw.getvalue().splitlines()[-1]) == result


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_process_without_streams_has_its_exit_code(closed: str, tmp_path: Path, project_root: Path) -> None:
    command = f'"{sys.executable}" -m tfbig.pipelines.image_finetune --data.source "folder:{tmp_path}" {closed}'
    done = subprocess.run(["bash", "-c", command], cwd=project_root, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (3, "")


def test_a_reader_that_is_gone_changes_no_exit_code(project_root: Path) -> None:
    code = "import sys; from tfbig.pipelines._main import _print_last; sys.stdin.read(); _print_last({'epsilon': None})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=project_root, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    _, err = process.communicate("", timeout=60)
    assert (process.returncode, err) == (0, "")
