"""`serrate config`: the recipes that come with the package, and what a file means."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
import yaml

from ..errors import InvalidArgument
from ..files import write_aside
from ..train import describe_recipe, read_recipe, recipe_names, recipe_path
from .show import out, say

app = typer.Typer(help="Recipes: list, copy, show, validate.", no_args_is_help=True, rich_markup_mode="markdown")

Name = Annotated[str, typer.Argument(help="a recipe or a YAML file", show_default=False)]
Changes = Annotated[list[str] | None, typer.Argument(help="key.path=value …", show_default=False)]


@app.command("ls")
def list_recipes() -> None:
    """List the installed recipes."""
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        say(f"{name:{width}}  {describe_recipe(name)}")


@app.command("cp")
def copy(name: Name, to: Annotated[Path, typer.Argument(help="the file to write", show_default=False)]) -> None:
    """Copy a recipe, to change it.

    Example:

        serrate config cp sasrec-ml-1m mine.yaml
    """
    if to.exists():
        raise InvalidArgument("to", "a path that does not exist", str(to))
    with write_aside(to) as partial:
        shutil.copyfile(recipe_path(name), partial)


@app.command()
def show(name: Name, changes: Changes = None) -> None:
    """Show a recipe complete: every key with its value, defaults and changes included."""
    text = yaml.safe_dump(read_recipe(name, changes).plain(), sort_keys=False, allow_unicode=True)
    out.print(text, markup=False, end="")


@app.command()
def validate(name: Name, changes: Changes = None) -> None:
    """Check a recipe without running it: unknown keys, types, ranges."""
    read_recipe(name, changes)
    say(f"{name}: valid")
