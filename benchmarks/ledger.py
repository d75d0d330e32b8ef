"""The rows of figures, for the programs of this folder; the rooms of `serrate.ops` use the same."""

from pathlib import Path

from serrate.ops.figures import row, write

ROOT = Path(__file__).parent.parent

__all__ = ["ROOT", "row", "write"]
