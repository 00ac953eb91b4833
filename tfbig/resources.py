"""Where the recipes and the bundled backbones lie: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(in_wheel: str, in_checkout: str) -> Path:
    inside = _PACKAGE / in_wheel
    return inside if inside.is_dir() else _PACKAGE.parent / in_checkout


def recipes_folder() -> Path:
    """The folder of the shipped recipes, one YAML file each."""
    return _folder("_recipes", "pipelines")


def recipe_paths() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.yaml"))}


def backbones_folder() -> Path:
    """The folder of the bundled backbones, NAME/VERSION/saved_model.pb."""
    return _folder("_saved_models", "saved_models") / "backbones"


def bundled_backbones() -> dict[str, Path]:
    """The newest version of each bundled backbone by name."""
    newest: dict[str, Path] = {}
    for module in sorted(backbones_folder().glob("*/*/saved_model.pb"), key=lambda p: int(p.parent.name)):
        newest[module.parent.parent.name] = module.parent
    return newest
