"""Evaluations, of rankings or of predictions, as plain rows: for `metrics.json`, the command line and the report."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

from .bootstrap import Estimate


class Measured(Protocol):
    """What has metrics: an `Evaluation` of rankings, or `Predictions`."""

    def metrics(self) -> dict[str, Estimate]:
        """Return name → estimate of every metric."""
        ...

    def difference(self, other: Self, metric: str) -> Estimate:
        """Estimate the paired difference of a metric, this less `other`."""
        ...


_Measured = TypeVar("_Measured", bound=Measured)


def table(evaluations: Mapping[str, Measured], split: str = "test") -> list[dict[str, Any]]:
    """Return one row a model: `{"model", "split", "metrics": {name: {"value", "low", "high"}}}`."""
    return [{"model": model, "split": split,
             "metrics": {name: estimate.plain() for name, estimate in evaluation.metrics().items()}}
            for model, evaluation in evaluations.items()]


def comparisons(evaluations: Mapping[str, _Measured], model: str,
                metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return the paired difference of `model` to each other one, a row a metric.

    A row is `{"model", "baseline", "metric", "value", "low", "high"}`; a value above 0 speaks for `model`, of
    a metric among `LOWER_IS_BETTER` one below.
    """
    return [{"model": model, "baseline": baseline, "metric": metric,
             **evaluations[model].difference(evaluations[baseline], metric).plain()}
            for baseline in evaluations if baseline != model for metric in metrics]
