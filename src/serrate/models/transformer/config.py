"""What a transformer is made of."""

from typing import Literal

from pydantic import Field, model_validator

from ...config import Config


class TransformerConfig(Config):
    """SASRec-family transformer; widths in channels, lengths in events."""

    kind: Literal["transformer"] = "transformer"
    width: int = Field(default=64, ge=1, description="E, the width of an event")
    blocks: int = Field(default=2, ge=0)
    heads: int = Field(default=2, ge=1)
    feedforward: int = Field(default=256, ge=1, description="width of the feed-forward layer")
    dropout: float = Field(default=0.2, ge=0, lt=1)
    max_length: int = Field(default=200, ge=1, description="newest events of a history that the model reads")
    similarity: Literal["dot", "cosine"] = "cosine"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads must divide width {self.width}")
        return self
