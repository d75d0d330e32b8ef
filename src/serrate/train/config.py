"""The whole run as one typed configuration: what `serrate train` reads and `config.json` keeps."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..config import Config
from ..data import DataConfig, Sampler, SplitConfig
from ..evaluate import EvaluateConfig
from ..models import ModelConfig, TransformerConfig

_TEMPERATURE = "divides the logits; null: 1 for dot products, 0.07 for cosines"


class FullSoftmaxConfig(Config):
    """Cross-entropy over the whole catalogue."""

    kind: Literal["full-softmax"] = "full-softmax"
    temperature: float | None = Field(default=None, gt=0, description=_TEMPERATURE)


class SampledSoftmaxConfig(Config):
    """Cross-entropy against sampled negatives with the log-q correction."""

    kind: Literal["sampled-softmax"] = "sampled-softmax"
    negatives: int = Field(default=128, ge=1)
    smoothing: float = Field(default=0.0, ge=0, description="negatives are drawn from counts ** smoothing")
    temperature: float | None = Field(default=None, gt=0, description=_TEMPERATURE)
    shared: bool = Field(default=True, description="one draw for the batch, or one per event")


class BinaryCrossEntropyConfig(Config):
    """The target against uniform negatives, each a binary decision."""

    kind: Literal["bce"] = "bce"
    negatives: int = Field(default=1, ge=1)
    temperature: float | None = Field(default=None, gt=0, description=_TEMPERATURE)


LossConfig = Annotated[
    FullSoftmaxConfig | SampledSoftmaxConfig | BinaryCrossEntropyConfig, Field(discriminator="kind")]


class StochasticLengthConfig(Config):
    """Long histories are thinned in training, see `data.StochasticLength`; lengths are counted up to max_length."""

    alpha: float = Field(default=1.6, gt=1, le=2, description="thinned to max_length ** (alpha / 2) events; 2: never")
    sampler: Sampler = Field(default="age", description="which events stay: those not too old, any, or the newest")


class TrainConfig(Config):
    """Optimisation, validation and checkpoints."""

    epochs: int = Field(default=30, ge=1)
    tokens_per_batch: int = Field(default=4096, ge=1, description="events in a batch, over all processes")
    windows: Literal["newest", "all"] = Field(
        default="all",
        description="train on the newest max_length events of a history, or on all, in windows of that many")
    shuffle: bool = Field(default=True, description="false: in the order of the users, the same in every epoch")
    stochastic_length: StochasticLengthConfig | None = Field(
        default=None, description="thin long histories in training; null: read them whole")
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = Field(default=100, ge=0)
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    clip_norm: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="auto: bfloat16 on CUDA")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    validate_every: int = Field(default=1, ge=1, description="epochs between validations")
    validation_examples: int = Field(default=20_000, ge=1, description="at most so many are ranked in a validation")
    monitor: str = Field(default="ndcg@10", description="the validation metric that chooses the epoch")
    patience: int = Field(default=5, ge=1, description="validations without improvement before training stops")
    checkpoint_seconds: float = Field(default=60.0, ge=0, description="at most so much work is lost when killed")
    log_every: int = Field(default=20, ge=1, description="steps between log records")


class RunConfig(Config):
    """A whole run, from a log to a trained and tested model."""

    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    model: ModelConfig = TransformerConfig()
    loss: LossConfig = FullSoftmaxConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _monitor_is_measured(self) -> Self:
        measured = ["mrr", *(f"{kind}@{k}" for k in self.evaluate.cutoffs for kind in ("hr", "ndcg", "recall"))]
        if self.train.monitor not in measured:
            raise ValueError(f"train.monitor must be one of {', '.join(measured)}")
        return self
