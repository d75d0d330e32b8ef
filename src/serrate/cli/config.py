"""`serrate config`: the recipes that come with the package, and what a file means."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
import yaml

from ..errors import InvalidArgument
from ..files import write_aside
from ..train import describe_recipe, read_recipe, recipe_names, recipe_path
from .groups import group
from .show import say

app = group("Recipes: list, copy, show, validate.")

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="a recipe, or a YAML file", show_default=False)]
Changes = Annotated[list[str] | None, typer.Argument(
    metavar="KEY=VALUE", help="changes to the recipe, such as train.epochs=5", show_default=False)]


@app.command("ls")
def list_recipes() -> None:
    """List the installed recipes.

    \b
    Example:
      serrate config ls
    """
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        say(f"{name:{width}}  {describe_recipe(name)}")


@app.command("cp")
def copy(recipe: Recipe,
         to: Annotated[Path, typer.Argument(metavar="FILE", help="the file to write", show_default=False)]) -> None:
    """Copy a recipe, to change it.

    \b
    Example:
      serrate config cp default mine.yaml
    """
    if to.exists():
        raise InvalidArgument("FILE", "a path that does not exist", str(to))
    with write_aside(to) as partial:
        shutil.copyfile(recipe_path(recipe), partial)


@app.command()
def show(recipe: Recipe, changes: Changes = None) -> None:
    """Show a recipe complete: every key with its value.

    What is printed is a YAML file with all defaults and changes written out, and can be used as one.

    \b
    Examples:
      serrate config show default
      serrate config show mine.yaml train.epochs=5 model.width=128 > longer.yaml
    """
    say(yaml.safe_dump(read_recipe(recipe, changes).plain(), sort_keys=False, allow_unicode=True).rstrip("\n"))


@app.command()
def validate(recipe: Recipe, changes: Changes = None) -> None:
    """Check a recipe without running it: keys, types, ranges.

    \b
    Example:
      serrate config validate mine.yaml
    """
    read_recipe(recipe, changes)
    say(f"{recipe}: valid")
