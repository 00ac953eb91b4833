"""Laws of the benchmark of growth: what its slopes mean, that its files differ, and that it makes nothing up."""

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "tools" / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        # Not the folder of the scripts in front: it has the bench's own name.
        for folder in (BENCH / "growth", BENCH / "harness", BENCH):
            patch.syspath_prepend(folder)
        yield importlib.import_module("growth")


@pytest.mark.parametrize("power", [0, 1, 2])
def test_growth_is_the_power_of_the_last_two_points(bench, power):
    points = [{"images": n, "list_s": 3.0 * n**power, "list_mb": 100.0, "classes": 10} for n in (7, 1000, 10_000)]
    points[0]["list_s"] = 1e9
    assert bench.growth(points, "images") == {"list_s": power, "list_mb": 0}


def test_what_one_more_unit_costs_leaves_out_what_all_cost(bench):
    points = [{"classes": n, "report_s": 50 + 0.25 * n, "evaluation.json_kb": 2.0 * n} for n in (10, 1000)]
    assert bench.per_unit(points, "classes") == {"report_s": 0.25, "evaluation.json_kb": 2.0}


def test_one_point_has_no_growth_and_what_is_absent_is_said(bench):
    grown = bench.Grown([{"images": 1000, "list_s": 1.0, "versions": {}}], {"10000": "the disk is full"})
    result = bench.summary("images", grown)
    assert result["growth"] == {} and result["per_unit"] == {}
    assert result["absent"] == {"10000": "the disk is full"} and "the disk is full" in bench.table("images", grown)


def test_a_disk_that_the_files_would_fill_is_refused(bench, tmp_path):
    bench.refuse_full_disk(tmp_path, 10)
    with pytest.raises(bench.Unavailable, match="--work"):
        bench.refuse_full_disk(tmp_path, 10**14)


def test_both_inodes_and_bytes_have_to_suffice(bench):
    plenty = {"block_bytes": 4096, "num_inodes": 10**9, "num_bytes": 10**15}
    assert bench.fits(1000, **plenty) and bench.fits(1000, **{**plenty, "num_inodes": math.inf})
    assert bench.fits(1000, **{**plenty, "num_inodes": 2000})
    assert not bench.fits(1000, **{**plenty, "num_inodes": 1999})
    assert bench.fits(1000, **{**plenty, "num_bytes": 2 * 4096 * 1000})
    assert not bench.fits(1000, **{**plenty, "num_bytes": 2 * 4096 * 1000 - 1})


def test_no_point_is_larger_than_asked_for_and_none_follows_one_that_fails(bench, monkeypatch, tmp_path):
    (tmp_path / "models_point.py").write_text(
        "import json, sys\n"
        "width = int(sys.argv[sys.argv.index('--width') + 1])\n"
        "sys.exit('no memory') if width > 64 else print(json.dumps({'parameters': width}))\n"
    )
    monkeypatch.setattr(bench, "SCRIPTS", tmp_path)
    found = bench.measure("models", bench.parser().parse_args(["--most_width", "64"]))
    assert found.points == [{"parameters": 64}] and found.absent == {}
    found = bench.measure("models", bench.parser().parse_args(["--most_width", "768"]))
    assert found.points == [{"parameters": 64}] and list(found.absent) == ["192"] and "no memory" in found.absent["192"]


def test_the_pictures_are_as_many_as_asked_for_and_all_differ(bench, tmp_path):
    importlib.import_module("folders").write_folder(tmp_path, num_images=2105, num_classes=2, seed=0)
    files = [*tmp_path.rglob("*.jpg")]
    assert len(files) == 2105 and len({file.read_bytes() for file in files}) == 2105
    assert len([*tmp_path.iterdir()]) == 2


def test_a_chart_is_small(bench, tmp_path):
    points = [{"images": n, "list_s": n / 1e4, "read_s": n / 1e3, "list_mb": 600.0} for n in (1000, 10_000)]
    importlib.import_module("drawn").draw(tmp_path / "a.png", points, axis="images", unit="images")
    assert 1000 < (tmp_path / "a.png").stat().st_size < 40_000


def test_a_chart_shows_every_second_and_megabyte_and_no_size_of_a_file(bench, tmp_path):
    draw = importlib.import_module("drawn").draw
    pictures = []
    for more in ({}, {"checkpoint_size_mb": 5.0}, {"read_s": 3.0}, {"read_mb": 700.0}):
        points = [{"images": n, "list_s": n / 1e4, "list_mb": 600.0, **more} for n in (1000, 10_000)]
        draw(tmp_path / "b.png", points, axis="images", unit="images")
        pictures.append((tmp_path / "b.png").read_bytes())
    plain, sized, slower, larger = pictures
    assert plain == sized and len({plain, slower, larger}) == 3


@pytest.mark.slow
def test_the_smallest_points_are_measured():
    command = [sys.executable, str(BENCH / "growth.py"), "--json", "--most_images", "1000", "--most_classes", "10"]
    least = ["--most_width", "64", "--most_names", "10000"]
    done = subprocess.run([*command, *least], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    for axis in ("images", "names", "rows", "classes", "models"):
        (point,) = result[axis]["points"]
        assert all(math.isfinite(value) and value >= 0 for name, value in point.items() if name.endswith(("_s", "_mb")))
