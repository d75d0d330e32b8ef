"""Where a run computes, and in which precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from ..distributed import World
from ..errors import InvalidConfig
from ..jagged import EventBatch, RankingBatch
from .config import CommonTrainConfig

Batch = TypeVar("Batch", EventBatch, RankingBatch)


def device_of(train: CommonTrainConfig, world: World) -> torch.device:
    """Return the device that this process computes on."""
    name = train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("config: train.device: expected a device that is there, got 'cuda' without CUDA")
    return torch.device(name, world.local_rank) if name == "cuda" else torch.device(name)


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def autocast(train: CommonTrainConfig, device: torch.device) -> AbstractContextManager:
    """Return the precision context of the forward pass: bfloat16 on CUDA unless told otherwise."""
    precision = train.precision
    low = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if low else nullcontext()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch; through page-locked memory to a GPU, so that the host does not wait."""
    return batch if device.type == "cpu" else batch.pin_memory().to(device, non_blocking=True)
