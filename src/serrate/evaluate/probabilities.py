"""How good probabilities of yes are: whether they order, and whether they say how often.

Throughout `probabilities` are `(M,)` floating, `truth` `(M,)`: 1 or True for yes, 0 or False for no.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument

_LEAST = 1e-7  # nothing is certain: float32 rounds a probability nearer to 1 than this up to it


def auc(probabilities: Tensor, truth: Tensor) -> float:
    """Return how often a yes has a larger probability than a no, over all pairs of the two; ties count half.

    Raises:
        InvalidArgument: shapes that do not fit; no yes, or no no.
    """
    yes = _checked(probabilities, truth) > 0.5
    positive, negative = int(yes.sum()), int((~yes).sum())
    if not positive or not negative:
        raise InvalidArgument("truth", "both yes and no", f"{positive} yes, {negative} no")
    _, level, count = probabilities.double().unique(return_inverse=True, return_counts=True)
    rank = count.cumsum(0) - (count - 1) / 2  # of the examples of a level, mean over these, from 1
    pairs = rank[level[yes]].double().sum() - positive * (positive + 1) / 2
    return float(pairs / (positive * negative))


def log_losses(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Return `-ln` of the probability given to what came true, `(M,)` float64 in nats; one below 1e-7 counts as that.

    Raises:
        InvalidArgument: shapes that do not fit, nothing to measure, or what is no probability.
    """
    yes = _checked(probabilities, truth)
    p = probabilities.double().clamp(_LEAST, 1 - _LEAST)
    return -(yes * p.log() + (1 - yes) * (1 - p).log())


def normalised_entropy(probabilities: Tensor, truth: Tensor, *, training_rate: float | None = None) -> float:
    """Return the mean log loss as a share of the entropy of a base rate: what one has to pay who knows that rate alone.

    The base rate is how often yes comes true in what is evaluated, so that its own constant has 1, and a model that
    helps has less; or, with `training_rate`, how often it came true in training, as some papers have it: name which.

    Raises:
        InvalidArgument: as `log_losses`; no yes, or no no; a training rate that is not between 0 and 1.

    Source: Xinran He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014 (evaluated);
    Zhichen Zeng et al., "InterFormer", CIKM 2025 (training).
    """
    losses = log_losses(probabilities, truth)
    rate = truth.double().mean()
    if rate in (0, 1):
        raise InvalidArgument("truth", "both yes and no", f"{len(truth)} times {'yes' if rate else 'no'}")
    if training_rate is not None:
        if not 0 < training_rate < 1:
            raise InvalidArgument("training_rate", "between 0 and 1", training_rate)
        rate = rate.new_tensor(training_rate)
    return float(losses.mean() / entropy(rate))


def entropy(rate: Tensor) -> Tensor:
    """Return the entropy in nats of something that comes true at a `rate` (0 … 1, any shape, float64)."""
    return -(torch.xlogy(rate, rate) + torch.xlogy(1 - rate, 1 - rate))


def grouped_auc(probabilities: Tensor, truth: Tensor, groups: Tensor) -> float:
    """Return the mean of the AUC within each group, such as a user, by the number of its examples.

    A group that has no yes, or no no, has no AUC and does not count.

    Args:
        probabilities: `(M,)`.
        truth: `(M,)`.
        groups: `(M,)` int64, whose example it is.

    Raises:
        InvalidArgument: shapes that do not fit; no group with both.

    Source: Guorui Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018.
    """
    found, counts = group_aucs(probabilities, truth, groups)
    defined = ~found.isnan()
    if not bool(defined.any()):
        raise InvalidArgument("groups", "a group with both yes and no", "none")
    return float((found * counts)[defined].sum() / counts[defined].sum())


def group_aucs(probabilities: Tensor, truth: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the AUC of each group, in ascending order of these, NaN where not defined, and its examples.

    Both are `(G,)` float64; arguments and errors are those of `grouped_auc`.
    """
    yes = _checked(probabilities, truth)
    if groups.shape != probabilities.shape:
        raise InvalidArgument("groups", f"shape {tuple(probabilities.shape)}, as probabilities", tuple(groups.shape))
    group = groups.unique(return_inverse=True)[1]
    number = int(group.max()) + 1
    _, level = probabilities.unique(return_inverse=True)
    # ranks within each group, ties sharing the mean of theirs: as `auc` has them, less those of the groups before
    _, place, count = (group * (int(level.max()) + 1) + level).unique(return_inverse=True, return_counts=True)
    rank = (count.cumsum(0) - (count - 1) / 2)[place].double()
    examples = torch.bincount(group, minlength=number)
    rank = rank - (examples.cumsum(0) - examples)[group]

    def over_groups(values: Tensor) -> Tensor:
        return torch.zeros(number, dtype=torch.float64, device=values.device).index_add(0, group, values)

    positive = over_groups(yes)
    negative = examples - positive
    return (over_groups(rank * yes) - positive * (positive + 1) / 2) / (positive * negative), examples.double()


def calibration(probabilities: Tensor, truth: Tensor) -> float:
    """Return the sum of the probabilities over how often yes came true: 1 where they are right on the whole.

    Raises:
        InvalidArgument: as `log_losses`; no yes.
    """
    yes = _checked(probabilities, truth).sum()
    if not yes:
        raise InvalidArgument("truth", "a yes", "none")
    return float(probabilities.double().sum() / yes)


@dataclass(frozen=True)
class CalibrationBin:
    """Some examples whose probabilities are alike: how many, their mean probability, how often yes came true."""

    count: int
    predicted: float
    observed: float


def calibration_curve(probabilities: Tensor, truth: Tensor, bins: int = 10) -> list[CalibrationBin]:
    """Return bins of equal mass in ascending order of the probabilities, each of `M / bins` examples or nearly.

    Examples of one probability stay together, so that there are fewer bins where there are fewer probabilities.

    Raises:
        InvalidArgument: as `log_losses`; fewer than one bin.
    """
    yes = _checked(probabilities, truth)
    if bins < 1:
        raise InvalidArgument("bins", "at least 1", bins)
    _, level, count = probabilities.double().unique(return_inverse=True, return_counts=True)
    middle = count.cumsum(0) - count / 2  # of each probability, among all examples
    chosen = (middle * bins / len(yes)).long().clamp(max=bins - 1)[level]

    def sums(values: Tensor) -> list[float]:
        return torch.zeros(bins, dtype=torch.float64, device=values.device).index_add(0, chosen, values).tolist()

    parts = zip(sums(torch.ones_like(yes)), sums(probabilities.double()), sums(yes), strict=True)
    return [CalibrationBin(int(number), p / number, observed / number) for number, p, observed in parts if number]


def _checked(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Return the truth as float64, having looked at both."""
    if probabilities.dim() != 1 or not len(probabilities):
        raise InvalidArgument("probabilities", "shape (M,), M at least 1", tuple(probabilities.shape))
    if truth.shape != probabilities.shape:
        raise InvalidArgument("truth", f"shape {tuple(probabilities.shape)}, as probabilities", tuple(truth.shape))
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise InvalidArgument("probabilities", "numbers from 0 to 1", "others")
    if not bool(((truth == 0) | (truth == 1)).all()):
        raise InvalidArgument("truth", "0 or 1", "others")
    return truth.double()
