"""Predictions of several tasks, with one list of metrics."""

from dataclasses import dataclass

from ..errors import InvalidArgument, suggest
from .bootstrap import Estimate
from .predictions import Predictions


@dataclass(frozen=True)
class TaskPredictions:
    """Predictions of the same samples for each task: metrics are called `task.metric`, or plainly where it is one task.

    Attributes:
        of_task: name → its predictions.
    """

    of_task: dict[str, Predictions]

    def values(self) -> dict[str, float]:
        """Return name → value of each metric that is defined, as `Predictions.values`."""
        return {self._name(task, metric): value for task, each in self.of_task.items()
                for metric, value in each.values().items()}

    def metrics(self) -> dict[str, Estimate]:
        """Return name → estimate of each metric that is defined, as `Predictions.metrics`."""
        return {self._name(task, metric): value for task, each in self.of_task.items()
                for metric, value in each.metrics().items()}

    def difference(self, other: "TaskPredictions", metric: str) -> Estimate:
        """Estimate the paired difference of a metric, this less `other`, as `Predictions.difference`.

        Raises:
            InvalidArgument: other samples or tasks, or a metric that is not defined.
        """
        if self.of_task.keys() != other.of_task.keys():
            raise InvalidArgument("other", f"predictions of {', '.join(self.of_task)}", ", ".join(other.of_task))
        places = {self._name(task, name): (task, name) for task, each in self.of_task.items() for name in each.values()}
        if metric not in places:
            raise InvalidArgument("metric", f"one of {', '.join(places)}{suggest(metric, places)}", repr(metric))
        task, name = places[metric]
        return self.of_task[task].difference(other.of_task[task], name)

    def _name(self, task: str, metric: str) -> str:
        return metric if len(self.of_task) == 1 else f"{task}.{metric}"
