"""Everything that a run needs to go on as if it had never stopped, written whole or not at all. No pickle."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from ..errors import InvalidRun
from ..files import write_aside, write_folder_aside

_TENSORS, _POSITION, _BEST = "state.safetensors", "position.json", "best.safetensors"


@dataclass
class Position:
    """Where training stands: `batch` batches of `epoch` are done, `step` steps in all.

    Attributes:
        best: the best validation value so far, None before the first validation.
        best_epoch: the epoch it came from (counted from 1).
        stale: validations since then.
        stopped: training has ended; only the test remains.
        log_bytes: length of log.jsonl at this point.
        loss_sum: loss summed over the targets since the last log record.
        loss_weight: weight of those targets.
        seconds: time spent so far, validation included.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0
    stopped: bool = False
    log_bytes: int = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    seconds: float = 0.0


def save(folder: Path, position: Position, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint into `folder` and drop the ones before it."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    # The end of an epoch is the step of its last batch too: two names, so that no checkpoint has to make way first.
    place = folder / f"step-{position.step:09d}-epoch-{position.epoch:06d}"
    with write_folder_aside(place) as partial:
        _write(partial / _TENSORS, tensors)
        (partial / _POSITION).write_text(json.dumps(asdict(position)), encoding="utf-8")
    for older in _places(folder):
        if older != place:
            shutil.rmtree(older)


def exists(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint."""
    return bool(_places(folder))


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Restore the newest checkpoint of `folder`: model and optimiser; return the position.

    Raises:
        InvalidRun: there is no checkpoint, or it does not fit the model.
    """
    places = _places(folder)
    if not places:
        raise InvalidRun(f"run: {folder.parent} has no checkpoint to resume from")
    try:
        tensors = load_file(places[-1] / _TENSORS)
        position = Position(**json.loads((places[-1] / _POSITION).read_text(encoding="utf-8")))
        model.load_state_dict(_part(tensors, "model."))
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise InvalidRun(f"run: checkpoint {places[-1]} cannot be used ({str(error).splitlines()[0]})") from None
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return position


def save_best(folder: Path, model: nn.Module) -> None:
    """Write the weights of the best epoch so far."""
    save_weights(folder / _BEST, model)


def load_best(folder: Path, model: nn.Module) -> None:
    """Load the weights of the best epoch, if a validation has chosen one."""
    if (folder / _BEST).exists():
        model.load_state_dict(load_file(folder / _BEST))


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the model's weights as safetensors, whole or not at all."""
    with write_aside(path) as partial:
        _write(partial, model.state_dict())


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors; a full disk is an `OSError`, which the library's own writer does not raise."""
    path.write_bytes(serialize({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))


def _places(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
