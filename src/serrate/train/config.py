"""The whole run as one typed configuration: what `serrate train` reads and `config.json` keeps."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..config import Config
from ..data import DataConfig, FeaturesConfig, Sampler, SamplesConfig, SplitConfig
from ..errors import InvalidConfig, suggest
from ..evaluate import METRICS, EvaluateConfig, PredictionsConfig
from ..models import ModelConfig, RankingConfig, TransformerConfig
from ..models.tasks import BinaryTask

_TEMPERATURE = "divides the logits; null: 0.07 for cosines, 1 for dot products and mixtures of logits"


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


class CommonTrainConfig(Config):
    """Optimisation, validation and checkpoints of any run."""

    epochs: int = Field(default=30, ge=1)
    tokens_per_batch: int = Field(default=4096, ge=1, description="events in a batch, over all processes")
    shuffle: bool = Field(default=True, description="false: in the order of the users, the same in every epoch")
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = Field(default=100, ge=0)
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    clip_norm: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="auto: bfloat16 on CUDA")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = Field(
        default=False, description="let torch.compile fuse the model, once for all lengths; it takes a minute at first")
    validate_every: int = Field(default=1, ge=1, description="epochs between validations")
    validation_examples: int = Field(default=20_000, ge=1, description="at most so many are ranked in a validation")
    monitor: str = Field(default="ndcg@10", description="the validation metric that chooses the epoch")
    patience: int = Field(default=5, ge=1, description="validations without improvement before training stops")
    checkpoint_seconds: float = Field(default=60.0, ge=0, description="at most so much work is lost when killed")
    log_every: int = Field(default=20, ge=1, description="steps between log records")


class TrainConfig(CommonTrainConfig):
    """Training of a model of the next item."""

    windows: Literal["newest", "all"] = Field(
        default="all",
        description="train on the newest max_length events of a history, or on all, in windows of that many")
    stochastic_length: StochasticLengthConfig | None = Field(
        default=None, description="thin long histories in training; null: read them whole")


class RankingTrainConfig(CommonTrainConfig):
    """Training of a ranking model: a batch holds states, whose events and candidates count as its events.

    Validation measures the samples of `validation_examples` states at most.
    """

    monitor: str = Field(default="log_loss", description="the validation metric that chooses the epoch")


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


class RankingRunConfig(Config):
    """A whole run of a ranking model, from a log and its side tables to a trained and tested model."""

    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    features: FeaturesConfig = FeaturesConfig()
    samples: SamplesConfig
    model: RankingConfig
    train: RankingTrainConfig = RankingTrainConfig()
    evaluate: PredictionsConfig = PredictionsConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        told = [*self.samples.labels, *([self.samples.negatives.label] if self.samples.negatives else [])]
        for task in self.model.tasks:
            _among("labels of samples", f"the field of task {task.name!r}", task.field, told)
        for history in self.model.histories:
            _among("histories of features", "a history of the model", history.name, self.features.histories)
        for place, reads, there in self._read():
            for name in reads:
                _among(place, "what the model reads", name, there)
        measured = measured_names(self.model)
        if not measured:
            raise ValueError("model.tasks: expected a binary task at least, which is what is measured")
        if self.train.monitor not in measured:
            raise ValueError(f"train.monitor must be one of {', '.join(measured)}")
        if self.model.sparse:
            raise ValueError("model.sparse: expected false, as one optimiser trains all weights of a run")
        return self

    def _read(self) -> list[tuple[str, list[str], dict[str, str]]]:
        """Return where the model reads, what, and what is there: name → kind, for candidates, context, events."""
        features = self.features
        items, users = ({} if side is None else {column.name: column.kind for column in side.columns}
                        for side in (features.items, features.users))
        events = {column.name: column.kind for column in features.events}
        there = {"candidates": {"item": "categorical", **items, **{name: events[name] for name in features.shown}},
                 "context": {"user": "categorical", **users}}
        read = [(f"{feature.kind} features of {side}", [feature.name],
                 {name: kind for name, kind in there[side].items() if kind == feature.kind})
                for feature in self.model.features for side in (feature.of,)]
        of_events = {name: kind for name, kind in {"item": "categorical", **items, **events}.items()
                     if kind == "categorical"}
        return read + [(f"fields of history {history.name!r}", [field.name for field in history.fields], of_events)
                       for history in self.model.histories]


AnyRunConfig = RunConfig | RankingRunConfig


def parse_run(values: dict[str, Any]) -> AnyRunConfig:
    """Return the configuration of a run of the kind that `model.kind` tells; raise `InvalidConfig` for a wrong one."""
    model = values.get("model")
    ranks = isinstance(model, dict) and model.get("kind") == RankingConfig.model_fields["kind"].default
    return (RankingRunConfig if ranks else RunConfig).parse(values)


def next_item_run(config: AnyRunConfig) -> RunConfig:
    """Return the configuration where it is one of a model of the next item; raise `InvalidConfig` where it ranks."""
    if isinstance(config, RankingRunConfig):
        raise InvalidConfig("config: model.kind: expected a model of the next item, got 'ranking'")
    return config


def measured_names(model: RankingConfig) -> list[str]:
    """Return the metrics that may choose the epoch: those of `METRICS` of the binary tasks, by their names if several.

    Calibration is none, since more of it is not better.
    """
    names = [task.name for task in model.tasks if isinstance(task, BinaryTask)]
    metrics = [metric for metric in METRICS if metric != "calibration"]
    return metrics if len(names) == 1 else [f"{name}.{metric}" for name in names for metric in metrics]


def _among(place: str, role: str, name: str, there: Iterable[str]) -> None:
    if name not in there:
        raise ValueError(f"{role} is {name!r}, which is not among the {place}: {', '.join(there) or 'none'}"
                         f"{suggest(name, there)}")
