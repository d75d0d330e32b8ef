"""The learning rate over a run."""

import math

from .config import CommonTrainConfig


def learning_rate(train: CommonTrainConfig, step: int, progress: float) -> float:
    """Return the rate at `step` (from 0), where `progress` (0 … 1) of all epochs is done: warm-up, then decay.

    Warm-up is linear over `warmup_steps`; decay goes to zero at the end of the last epoch, along a line or half a
    cosine.
    """
    warm = min(1.0, (step + 1) / (train.warmup_steps + 1))
    left = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return train.learning_rate * warm * left[train.decay]
