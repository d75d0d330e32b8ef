"""`Predictions`: what a model said of samples, beside what came true; its metrics, and how it compares with another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgument, suggest
from .bootstrap import Estimate, Resamples, intervals
from .probabilities import CalibrationBin, calibration_curve, entropy, group_aucs, log_losses

METRICS = ("auc", "grouped_auc", "log_loss", "ne", "ne_training", "calibration")
LOWER_IS_BETTER = frozenset({"log_loss", "ne", "ne_training"})
_CELLS = 2**19  # resamples × samples at a time: what stays in a processor's cache


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """`M` probabilities of yes, what came true, and whose they are.

    Attributes:
        probabilities: `(M,)` floating.
        truth: `(M,)`, 1 or True for yes, 0 or False for no.
        users: `(M,)` int64, whom each sample belongs to: the group of `grouped_auc`, and what the bootstrap draws.
        training_rate: how often yes came true in training, the base rate of `ne_training`; None: without that metric.
        confidence: share of the resampled values within an interval.
        resamples: of the users.
        seed: of the draws.

    Raises:
        InvalidArgument: shapes that do not fit, nothing to measure, or what is no probability or no truth.
    """

    probabilities: Tensor
    truth: Tensor
    users: Tensor
    training_rate: float | None = None
    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the parts against each other; see the class."""
        log_losses(self.probabilities, self.truth)
        if self.users.shape != self.probabilities.shape:
            raise InvalidArgument("users", f"shape {tuple(self.probabilities.shape)}, as probabilities",
                                  tuple(self.users.shape))
        if self.training_rate is not None and not 0 < self.training_rate < 1:
            raise InvalidArgument("training_rate", "between 0 and 1", self.training_rate)

    def __len__(self) -> int:
        return len(self.probabilities)

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {value:.4f}" for name, value in self.values().items())
        return f"Predictions({len(self)} samples: {values})"

    def select(self, index: Tensor) -> "Predictions":
        """Return the samples at `index` (positions or a mask)."""
        return Predictions(self.probabilities[index], self.truth[index], self.users[index], self.training_rate,
                           self.confidence, self.resamples, self.seed)

    def segments(self, values: Tensor) -> dict[Any, "Predictions"]:
        """Return value → the samples that have it, of `values` `(M,)`, in ascending order."""
        if values.shape != self.probabilities.shape:
            raise InvalidArgument("values", f"shape {tuple(self.probabilities.shape)}, as probabilities",
                                  tuple(values.shape))
        return {value: self.select(values == value) for value in values.unique().tolist()}

    def values(self) -> dict[str, float]:
        """Return name → value of each metric that is defined, without intervals.

        - `auc`: of all pairs of a yes and a no, the share that stands right; ties count half.
        - `grouped_auc`: the mean of the AUC of each user who has both, by the number of their samples.
        - `log_loss`: the mean, in nats.
        - `ne`: log loss over the entropy of how often yes comes true in these samples.
        - `ne_training`: over the entropy of how often it came true in training.
        - `calibration`: the sum of the probabilities over how often yes came true.
        """
        return {name: float(value) for name, value in self._whole.items() if not value.isnan()}

    def metrics(self) -> dict[str, Estimate]:
        """Return name → estimate of each metric that is defined, with bootstrap intervals by user."""
        values = self.values()
        names = list(values)
        resampled = torch.cat([torch.stack([part[name] for name in names], 1) for part in self._resampled(names)])
        found = intervals(resampled.new_tensor(list(values.values())), resampled, self.confidence)
        return dict(zip(names, found, strict=True))

    def difference(self, other: "Predictions", metric: str) -> Estimate:
        """Estimate the paired difference of a metric, this less `other`: the same users are drawn for both.

        An interval without 0 is a difference beyond chance; see `LOWER_IS_BETTER` for whom it speaks.

        Raises:
            InvalidArgument: predictions of other samples, or a metric that is not defined.
        """
        return mean_difference([(self, other)], metric)

    def calibration_curve(self, bins: int = 10) -> list[CalibrationBin]:
        """Return bins of equal mass, in ascending order of the probabilities."""
        return calibration_curve(self.probabilities, self.truth, bins)

    @cached_property
    def _sums(self) -> Tensor:
        """What of each sample adds up to the metrics that are ratios of sums, `(M, 6)` float64."""
        yes = self.truth.double()
        losses = log_losses(self.probabilities, self.truth)
        user = self.users.unique(return_inverse=True)[1]
        auc_of_user = group_aucs(self.probabilities, self.truth, self.users)[0][user]
        # each sample adds its user's AUC once, which weighs that by the samples
        return torch.stack([torch.ones_like(yes), losses, self.probabilities.double(), yes,
                            auc_of_user.nan_to_num(), (~auc_of_user.isnan()).double()], 1)

    @cached_property
    def _whole(self) -> dict[str, Tensor]:
        values = self._ratios(self._sums.sum(0, keepdim=True))
        values["auc"] = self._ranked.aucs(torch.ones(1, 1), torch.zeros(len(self), dtype=torch.int64))
        return {name: values[name] for name in METRICS if name in values}

    @cached_property
    def _ranked(self) -> "_Ranked":
        return _Ranked(self.probabilities, self.truth)

    def _resampled(self, names: list[str], drawn: Resamples | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield name → resampled values `(rows,)`, some resamples at a time."""
        drawn = drawn or Resamples(self.users, self.resamples, self.seed)
        totals = drawn.totals(self._sums)
        for times in drawn:
            values = self._ratios(times.double() @ totals)
            if "auc" in names:
                values["auc"] = torch.cat([self._ranked.aucs(part, drawn.group)
                                           for part in times.split(max(1, _CELLS // len(self)))])
            yield values

    def _ratios(self, sums: Tensor) -> dict[str, Tensor]:
        """Return name → value of sums `(rows, 6)`, NaN where it is not defined."""
        count, losses, predicted, yes, aucs, of_both = sums.unbind(1)
        found = {"grouped_auc": aucs / of_both, "log_loss": losses / count, "calibration": predicted / yes,
                 "ne": losses / count / entropy(yes / count)}
        if self.training_rate is not None:
            found["ne_training"] = losses / count / entropy(sums.new_tensor(self.training_rate))
        return {name: value.where(value.isfinite(), float("nan")) for name, value in found.items()}


def mean_difference(pairs: Sequence[tuple[Predictions, Predictions]], metric: str) -> Estimate:
    """Estimate the mean over pairs, one a seed, of the first's metric less the second's: see `Predictions.difference`.

    The same users are drawn for all pairs, so the interval tells what other users would change, not other seeds.

    Raises:
        InvalidArgument: no pair, predictions of other samples, or a metric that is not defined for all of them.
    """
    if not pairs:
        raise InvalidArgument("pairs", "at least one", "none")
    every = [predictions for pair in pairs for predictions in pair]
    first = every[0]
    for other in every[1:]:
        if not torch.equal(first.users, other.users) or not torch.equal(first.truth.double(), other.truth.double()):
            raise InvalidArgument("other", "predictions of the same samples", f"{len(other)} against {len(first)}")
    known = [name for name in first.values() if all(name in each.values() for each in every)]
    if metric not in known:
        raise InvalidArgument("metric", f"one of {', '.join(known)}{suggest(metric, known)}", repr(metric))
    drawn = Resamples(first.users, first.resamples, first.seed)

    def column(of: Predictions) -> Tensor:
        """What was measured, then each resample."""
        return torch.cat([of._whole[metric].reshape(1), *(part[metric] for part in of._resampled([metric], drawn))])

    differences = torch.stack([column(own) - column(other) for own, other in pairs]).mean(0)
    return intervals(differences[:1], differences[1:, None], first.confidence)[0]


class _Ranked:
    """Samples in order of their probabilities, for the AUC of many resamples at once."""

    def __init__(self, probabilities: Tensor, truth: Tensor):
        yes, p = truth > 0.5, probabilities.double()
        self.positive, self.negative = (side.nonzero().squeeze(1)[p[side].argsort()] for side in (yes, ~yes))
        of_yes, of_no = p[self.positive], p[self.negative]
        self.below = torch.searchsorted(of_no, of_yes)  # noes with a smaller probability than each yes
        self.up_to = torch.searchsorted(of_no, of_yes, right=True)  # and those with the same

    def aucs(self, times: Tensor, group: Tensor) -> Tensor:
        """Return the AUC `(rows,)` where each `group` `(M,)` counts `times` `(rows, G)`, NaN without a yes or a no."""
        counted = times.T.double().contiguous()  # a row a group, so that gathering copies rows
        yes = counted[group[self.positive]]
        noes = counted.new_zeros(len(self.negative) + 1, len(times))
        torch.cumsum(counted[group[self.negative]], 0, out=noes[1:])
        pairs = (yes * (noes[self.below] + noes[self.up_to])).sum(0) / 2  # a tie counts half
        return pairs / (yes.sum(0) * noes[-1])
