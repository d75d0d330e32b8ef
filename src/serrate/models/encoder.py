"""What every model that reads a history has, whatever it makes of it."""

from pydantic import Field

from ..config import Config


class EncoderConfig(Config):
    """Layers over the events of a history; widths in channels, lengths in events."""

    kind: str
    width: int = Field(default=64, ge=1, description="E, the width of an event")
    blocks: int = Field(default=2, ge=0)
    heads: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    max_length: int = Field(default=200, ge=1, description="newest events of a history that the model reads")

    @property
    def reads_time(self) -> bool:
        """Whether the model needs times in a batch."""
        return False
