"""What the documents say is what is there: generated tables, the map of the house, links between pages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_tables_of_the_results_come_from_the_ledgers():
    command = [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"]
    check = subprocess.run(command, capture_output=True, text=True)

    assert check.returncode == 0, check.stderr


def test_the_map_in_the_readme_names_every_package_and_only_those():
    tree = re.search(r"```\nsrc/serrate/\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree is not None
    named = set(re.findall(r"^  (\w+)/", tree[1], re.MULTILINE))
    packages = {path.name for path in (ROOT / "src" / "serrate").iterdir() if path.is_dir() and path.name[0] != "_"}

    assert named == packages


@pytest.mark.parametrize("page", ["README.md", "docs/walk.md"])
def test_files_that_a_page_names_exist(page: str):
    text = (ROOT / page).read_text()
    links = [ROOT / page / ".." / link for link in re.findall(r"\]\(((?!http)[^)#]+)\)", text)]
    if page == "docs/walk.md":
        links += [ROOT / "src" / "serrate" / name for name in re.findall(r"`([\w/]+\.py)`", text)]

    assert links
    assert [str(link) for link in links if not link.resolve().exists()] == []
