"""The shape of the tree: imports point one way, and what must answer at once imports nothing heavy."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from tfbig.recipes import read_recipe
from tfbig.resources import recipe_paths

# From the foundation up; a module imports its own layer and those before it.
LAYERS = (
    (
        "__init__", "__version__", "cache_folder", "config", "errors", "paths", "resources", "suggest", "recipes",
        "stand_ins", "startup", "heap", "hardware", "threads", "cluster", "team", "meeting", "runtime",
    ),  # fmt: skip
    ("data",),
    ("networks",),
    ("objectives",),
    ("gradients",),
    ("training",),
    ("search",),
    ("evaluation",),
    ("serving",),
    ("pipelines",),
    ("doctor", "launch", "__main__"),
)
HEAVY = ("tensorflow", "keras", "sklearn", "matplotlib", "tensorflow_hub", "tensorflow_datasets")


def _layer(module: str) -> int:
    name = module.split(".")[1] if "." in module else "__init__"
    for level, names in enumerate(LAYERS):
        if name in names:
            return level
    raise AssertionError(f"{module} belongs to no layer; name it in LAYERS")


def _imports(path: Path) -> set[str]:
    """Tfbig modules that a file imports, those for type checkers only left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "tfbig"}


def test_imports_point_one_way(project_root: Path) -> None:
    wrong = []
    for path in sorted((project_root / "tfbig").rglob("*.py")):
        module = ".".join(path.relative_to(project_root).with_suffix("").parts)
        wrong += [f"{module} imports {name}" for name in _imports(path) if _layer(name) > _layer(module)]
    assert not wrong


def test_a_wheel_would_hold_every_room(project_root: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(project_root / "setup.cfg")
    rooms = {
        ".".join(path.parent.relative_to(project_root).parts) for path in (project_root / "tfbig").rglob("__init__.py")
    }
    assert rooms == {name for name in setup["options"]["packages"].split() if not name.startswith("tfbig._")}


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["-m", "tfbig.pipelines.image_finetune", "--help"], 0),
        (["-m", "tfbig.pipelines.image_finetune", "--config", "digits", "--print_config"], 0),
        (["-m", "tfbig.pipelines.image_finetune", "--train.epochs", "-1"], 2),
        (["-m", "tfbig.pipelines.image_finetune", "--train.epoch", "3"], 2),
        (["-m", "tfbig.pipelines.image_finetune", "--config", "digit"], 2),
        (["-m", "tfbig", "list"], 0),
        (["-m", "tfbig", "cache"], 0),
    ],
)
def test_answers_without_heavy_imports(arguments: list[str], exit_code: int) -> None:
    watched = (
        "import runpy, sys\n"
        f"sys.argv = {arguments[1:]!r}\n"
        "code = 0\n"
        "try:\n"
        f"    runpy.run_module({arguments[1]!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n"
        "    code = stop.code or 0\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print(heavy, file=sys.stderr)\n"
        "sys.exit(99 if heavy else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, timeout=60)
    assert done.returncode == exit_code, done.stderr


def test_every_job_is_found_with_its_recipe_and_its_row(project_root: Path) -> None:
    jobs = {path.stem for path in (project_root / "tfbig" / "pipelines").glob("[!_]*.py")} - {"job"}
    named = {name: read_recipe(path).get("job") for name, path in recipe_paths().items()}
    assert set(named.values()) == jobs
    table = (project_root / "pipelines" / "README.md").read_text()
    assert all(f"`{name}`" in table for name in named)
