"""The whole model as one program for serving, which needs no Python of ours but the types of its input."""

from typing import Any

import torch
import torch.fx.experimental._config as tracing
from torch.utils import _pytree as pytree

from ...jagged import RankingBatch
from .model import RankingModel


def export(model: RankingModel, example: RankingBatch) -> torch.export.ExportedProgram:
    """Export `model` for inference with any number of candidates, states and events.

    The program takes batches with the parts of `example`, without labels, and returns outputs `(M, K)` float32, as
    `model` does. Ids that no table has a row for are read as row 0, whatever the features say. `example` has two
    candidates, states and events in each history at least, by which these are known to be open; a program takes one as
    well, but for states where a history is read by `pma`.
    """
    batch = RankingBatch.trusted(example.owner, example.histories, example.context, example.candidates, {})
    # sizes of one are not taken for constants, as torch.export otherwise does
    with tracing.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        program = torch.export.export(model.eval(), (batch,), dynamic_shapes=(_open(batch),), strict=False)
    program.example_inputs = None  # else the example would be kept in the file
    return program


def _open(part: Any) -> Any:
    """Return, in lists and dictionaries as torch.export wants it, that the first axis of every tensor is open."""
    if isinstance(part, torch.Tensor):
        return {0: torch.export.Dim.AUTO}
    if isinstance(part, dict):
        return {name: _open(value) for name, value in part.items()}
    parts = part if isinstance(part, list) else pytree.SUPPORTED_NODES[type(part)].flatten_fn(part)[0]
    return [_open(value) for value in parts]
