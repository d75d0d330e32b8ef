"""What an evaluation measures and how much memory it may use."""

from typing import Annotated

from pydantic import AfterValidator, Field

from ..config import Config


def _ascending(cutoffs: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(cutoffs)))


_Cutoff = Annotated[int, Field(ge=1, le=10**9)]


class EvaluateConfig(Config):
    """Full ranking over all items: cutoffs, seen-item filter, confidence intervals, memory bounds."""

    cutoffs: Annotated[tuple[_Cutoff, ...], Field(min_length=1), AfterValidator(_ascending)] = (10, 50)
    """The `k` of hit rate, NDCG, recall and coverage; kept ascending, each once."""
    exclude_seen: bool = True
    """Items of the history are no candidates; an item to predict that was seen is a miss, and is counted."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Share of the bootstrap estimates that an interval covers."""
    resamples: int = Field(default=1000, ge=1)
    """Bootstrap resamples of the users."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the bootstrap."""
    tokens_per_batch: int = Field(default=2**16, ge=1)
    """Events scored at a time; a longer history is a batch of its own."""
    score_budget: int = Field(default=2**22, ge=1)
    """Scores (rows × items) held at a time, about 16 bytes each; more items than that go row by row."""


class PredictionsConfig(Config):
    """Probabilities of samples: confidence intervals, baselines, memory."""

    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Share of the bootstrap estimates that an interval covers."""
    resamples: int = Field(default=1000, ge=1)
    """Bootstrap resamples of the users."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the bootstrap."""
    bins: int = Field(default=10, ge=1)
    """Bins of the calibration curve, of equal mass."""
    baselines: bool = True
    """Fit the rates and the regression that stand beside the model; they read all training samples at once."""
    tokens_per_batch: int = Field(default=2**16, ge=1)
    """Events and candidates scored at a time; a state with more is a batch of its own."""
