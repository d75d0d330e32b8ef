"""What a transformer is made of."""

from typing import Literal

from pydantic import Field, model_validator

from ..next_item import NextItemConfig


class TransformerConfig(NextItemConfig):
    """SASRec-family transformer; widths in channels, lengths in events."""

    kind: Literal["transformer"] = "transformer"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    feedforward: int = Field(default=256, ge=1, description="width of the feed-forward layer")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads must divide width {self.width}")
        return self
