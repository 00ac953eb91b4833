"""The run directory: one holder, whole files, nothing of anyone else's touched."""

import subprocess
import sys
from pathlib import Path

import pytest

from tfbig.errors import EnvironmentFault, UsageError
from tfbig.training.run_directory import RunDirectory, open_run

_HOLD = (
    "import sys, time; from pathlib import Path; from tfbig.training.run_directory import open_run\n"
    "with open_run(Path(sys.argv[1])) as run:\n"
    "    run.write_text('config.yaml', 'job: a'); run.update_status('running')\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="Another run"), open_run(path):
            pass
        assert RunDirectory(path).state() == "running"
    finally:
        holder.kill()
        holder.wait()
    assert RunDirectory(path).read_json("status.json")["state"] == "running"
    assert RunDirectory(path).state() == "interrupted"
    with open_run(path) as run:
        assert run.state() == "running"
        run.update_status("done")
    assert RunDirectory(path).state() == "done" and RunDirectory(tmp_path).state() is None
    (path / ".lock").unlink()
    run.update_status("running")
    assert run.state() == "interrupted"


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_run(tmp_path / "runs" / "one"):
        raise RuntimeError
    assert not (tmp_path / "runs" / "one").exists()


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="thesis.txt"), open_run(tmp_path):
        pass
    with pytest.raises(UsageError, match="is a file"), open_run(tmp_path / "thesis.txt"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "config.yaml").write_text("title: my site")
    with pytest.raises(UsageError, match="not a run's"), open_run(tmp_path):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot be written"), open_run(tmp_path / "file" / "run"):
        pass


def test_clear_removes_a_runs_files_alone(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        run.write_text("config.yaml", "job: one")
        run.checkpoints.mkdir()
        (run.path / "notes.txt").write_text("mine")
        run.clear()
        assert sorted(entry.name for entry in run.path.iterdir()) == [".lock", "notes.txt"]
        with pytest.raises(UsageError), open_run(run.path):
            pass
