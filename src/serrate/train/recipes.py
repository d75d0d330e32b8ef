"""Recipes: whole runs as small YAML files that are installed with the package."""

from importlib import resources
from pathlib import Path

from ..config import override, read_yaml
from ..errors import InvalidConfig, suggest
from .config import AnyRunConfig, parse_run


def recipe_names() -> list[str]:
    """Return the names of the installed recipes."""
    return sorted(path.stem for path in _folder().iterdir() if path.suffix == ".yaml")


def recipe_path(name: str) -> Path:
    """Return the file of an installed recipe, or `name` itself when it is a path to a YAML file.

    Raises:
        InvalidConfig: neither a recipe nor a file.
    """
    if name in recipe_names():
        return _folder() / f"{name}.yaml"
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    raise InvalidConfig(f"recipe: expected one of {', '.join(recipe_names())} or a YAML file, "
                        f"got {name!r}{suggest(name, recipe_names())}")


def read_recipe(name: str, assignments: list[str] | None = None) -> AnyRunConfig:
    """Return a recipe (or a YAML file) with `key.path=value` assignments applied.

    Raises:
        InvalidConfig: unknown recipe or key, wrong value.
    """
    return parse_run(override(read_yaml(recipe_path(name)), assignments or []))


def describe_recipe(name: str) -> str:
    """Return the first comment line of a recipe."""
    first = recipe_path(name).read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def _folder() -> Path:
    return Path(str(resources.files("serrate") / "recipes"))
