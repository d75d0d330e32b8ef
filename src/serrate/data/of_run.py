"""Where the data set of a saved run is."""

from pathlib import Path

from ..errors import InvalidRun
from ..run_folder import RunFolder
from .histories import Histories, is_prepared

DATA = "data"  # the prepared log, in the run folder when the run made it itself


def data_of(run: Path | str) -> Histories:
    """Open the data set that a run was trained on: in its folder, also after that moved, or else where it was.

    Raises:
        InvalidRun: not a saved run, or one that does not say where its data set is.
        InvalidData: the data set is not there, or damaged.
    """
    folder = RunFolder(run)
    path = folder.read_config().get("dataset", {}).get("path")
    inside = folder.path / DATA
    if is_prepared(inside):
        return Histories.open(inside)
    if path is None:
        raise InvalidRun(f"run: {folder.config_path} does not say where its data set is; use --data DATA")
    return Histories.open(path)
