"""What an HSTU is made of: for the next item, and for ranking."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ...nn import HSTUOptions
from ...ops.attention.bias import BUCKET, FARTHEST
from ...ops.attention.weights import Activation
from ..encoder import EncoderConfig
from ..next_item import NextItemConfig
from ..tasks import Tasks

# as many as there are: times of a history count within `FARTHEST` of its first, so no two are further apart than twice
TIME_BUCKETS = math.floor(math.log(2 * FARTHEST) / BUCKET) + 1


class HSTUEncoderConfig(EncoderConfig):
    """The layers of an HSTU, whatever it is for; widths in channels, lengths in events."""

    key_width: int | None = Field(default=None, ge=1, description="of a head's queries and keys; null: width / heads")
    value_width: int | None = Field(default=None, ge=1, description="of a head's values and gates; null: width / heads")
    activation: Activation = "silu"
    normaliser: Annotated[float, Field(gt=0)] | Literal["length", "none"] | None = Field(
        default=None, description="pointwise weights are divided by it; null: tokens read; length: of the history")
    scale: float = Field(default=1.0, description="factor on the products of queries and keys")
    position: bool = Field(default=True, description="a bias by how many events lie between query and key")
    time: bool = Field(default=False, description="a bias by the time between them; the log has to have times")
    bias_per_head: bool = Field(default=False, description="tables of bias for each head, not for each layer")
    attention_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of the attention weights dropped")
    recompute: bool = Field(default=False, description="save memory in training: repeat each layer's first product")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if None in (self.key_width, self.value_width) and self.width % self.heads:
            raise ValueError(f"heads must divide width {self.width}, or key_width and value_width be given")
        if self.activation == "softmax" and self.normaliser not in (None, "none"):
            raise ValueError("normaliser must be null with activation softmax, which normalises")
        return self

    @property
    def reads_time(self) -> bool:
        """Whether the model needs times in a batch."""
        return self.time

    @property
    def tokens(self) -> int:
        """How many tokens the layers read at most."""
        return self.max_length

    @property
    def layer(self) -> HSTUOptions:
        """What each layer is made of."""
        return HSTUOptions(
            key_width=self.key_width, value_width=self.value_width, dropout=self.dropout, activation=self.activation,
            normaliser=self._normaliser, scale=self.scale, position_reach=self.tokens if self.position else 0,
            time_buckets=TIME_BUCKETS if self.time else 0, bias_per_head=self.bias_per_head,
            attention_dropout=self.attention_dropout, recompute=self.recompute)

    @property
    def _normaliser(self) -> float | Literal["length"] | None:
        if self.normaliser is None:
            return None if self.activation == "softmax" else float(self.tokens)
        return None if self.normaliser == "none" else self.normaliser


class HSTUConfig(HSTUEncoderConfig, NextItemConfig):
    """HSTU for the next item, a token an event."""

    kind: Literal["hstu"] = "hstu"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen


class HSTURankingConfig(HSTUEncoderConfig):
    """HSTU for ranking, two tokens an event: the item, and what was done with it."""

    kind: Literal["hstu-ranking"] = "hstu-ranking"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    tasks: Tasks = Field(
        description="what is known of an action: what is predicted, and what is read of the actions before")

    @property
    def tokens(self) -> int:
        """How many tokens the layers read at most."""
        return 2 * self.max_length
