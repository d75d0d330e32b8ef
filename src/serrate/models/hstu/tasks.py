"""What is to be predicted of an action, read from a field of its event."""

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, StringConstraints
from torch import Tensor

from ...config import Config

_Name = Annotated[str, StringConstraints(min_length=1)]


class _Task(Config):
    """What all tasks have."""

    name: _Name
    field: _Name = Field(description="the field of the events that tells it, a feature of the log")
    weight: float = Field(default=1.0, ge=0, description="of its loss; 0: read of the actions before, not learnt")


class BinaryTask(_Task):
    """Whether a field reaches a threshold: a click, a like. The prediction is a probability."""

    kind: Literal["binary"] = "binary"
    threshold: float = Field(default=1.0, description="yes where the field is as large or larger")

    def target(self, values: Tensor) -> Tensor:
        """Return of the field's values `(T,)` what the model is to say, float32: 1 for yes, 0 for no."""
        return (values >= self.threshold).float()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the log loss `(T,)` in nats of the model's outputs `(T,)`, which are logits."""
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")

    def prediction(self, outputs: Tensor) -> Tensor:
        """Return the probabilities `(T,)` of yes that the model's outputs `(T,)` stand for."""
        return outputs.sigmoid()


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
