"""What loading a saved run takes, whatever its model answers."""

from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..config import Config
from ..errors import InvalidArgument, InvalidConfig, InvalidRun, shorten
from ..run_folder import RunFolder

Settings = TypeVar("Settings", bound=Config)


def settings_of(kind: type[Settings], config: dict[str, Any], folder: RunFolder) -> Settings:
    """Return the keys of `kind` in the content of config.json; raise `InvalidRun` for wrong ones or no model there."""
    if not folder.model_path.exists():
        raise InvalidRun(f"run: {folder.path} has no model: it is not complete; "
                         f"go on with serrate train --resume {folder.path}")
    try:
        return kind.parse({name: config[name] for name in kind.model_fields if name in config})
    except InvalidConfig as error:
        raise InvalidRun(f"run: {folder.config_path}: {str(error).removeprefix('config: ')}") from None


def load_weights(model: nn.Module, folder: RunFolder) -> None:
    """Fill a model with the weights of a run; raise `InvalidRun` where they cannot be read or do not fit."""
    try:
        model.load_state_dict(load_file(folder.model_path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InvalidRun(f"run: {folder.model_path} cannot be used ({shorten(error)})") from None


def device_named(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here; raise `InvalidArgument` for one that is not there."""
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if name != "auto" and name not in there:
        raise InvalidArgument("device", f"auto or {' or '.join(there)}, which are there", repr(name))
    return torch.device(there[-1] if name == "auto" else name)
