"""What is to be predicted of an action, read from a field that tells it."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field, StringConstraints
from torch import Tensor

from ..config import Config

_Name = Annotated[str, StringConstraints(min_length=1)]


class _Task(Config):
    """What all tasks have."""

    name: _Name
    field: _Name = Field(description="the field that tells it: of the events, or a label")
    weight: float = Field(default=1.0, ge=0, description="of its loss; 0: not learnt, as input alone")


class BinaryTask(_Task):
    """Whether a field reaches a threshold: a click, a like. The prediction is a probability.

    Where yes is rare its losses may weigh more. That moves the logits that are learnt by the logarithm of the weight,
    so that much is taken off before they become probabilities, which say how often yes comes true all the same.
    """

    kind: Literal["binary"] = "binary"
    threshold: float = Field(default=1.0, description="yes where the field is as large or larger")
    yes_weight: float = Field(default=1.0, gt=0, description="of the loss of a yes, where that of a no is 1")

    def target(self, values: Tensor) -> Tensor:
        """Return of the field's values `(T,)` what the model is to say, float32: 1 for yes, 0 for no."""
        return (values >= self.threshold).float()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the log loss `(T,)` in nats of the model's outputs `(T,)`, which are logits."""
        losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return losses if self.yes_weight == 1 else losses * torch.where(targets > 0.5, self.yes_weight, 1.0)

    def prediction(self, outputs: Tensor) -> Tensor:
        """Return the probabilities `(T,)` of yes that the model's outputs `(T,)` stand for."""
        return (outputs - math.log(self.yes_weight)).sigmoid()


class RegressionTask(_Task):
    """How large a field is: a rating, a time watched. The prediction is its mean, in the field's unit."""

    kind: Literal["regression"] = "regression"
    centre: float = Field(default=0.0, description="a usual value of the field, where the model starts")
    spread: float = Field(default=1.0, gt=0, description="how far values are from it, the unit of the loss")

    def target(self, values: Tensor) -> Tensor:
        """Return of the field's values `(T,)` what the model is to say, float32: in spreads from the centre."""
        return ((values.double() - self.centre) / self.spread).float()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return half the squared error `(T,)` of the model's outputs `(T,)`, in squared spreads."""
        return (outputs - targets).square() / 2

    def prediction(self, outputs: Tensor) -> Tensor:
        """Return the values `(T,)` of the field that the model's outputs `(T,)` stand for."""
        return self.centre + self.spread * outputs


TaskConfig = Annotated[BinaryTask | RegressionTask, Field(discriminator="kind")]


def _told_apart(tasks: tuple[TaskConfig, ...]) -> tuple[TaskConfig, ...]:
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given twice")
    return tasks


Tasks = Annotated[tuple[TaskConfig, ...], Field(min_length=1), AfterValidator(_told_apart)]


def weighted_losses(tasks: Sequence[TaskConfig], outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the losses `(K, M)` of each task's outputs, from outputs and targets `(M, K)`, by the tasks' weights."""
    return torch.stack([task.weight * task.losses(outputs[:, k], targets[:, k]) for k, task in enumerate(tasks)])


def predictions(tasks: Sequence[TaskConfig], outputs: Tensor) -> Tensor:
    """Return the probability (of a binary task) or the value that each output `(M, K)` stands for, `(M, K)`."""
    return torch.stack([task.prediction(outputs[:, k]) for k, task in enumerate(tasks)], 1)
