"""How good probabilities of yes are: whether they order, and whether they say how often.

Throughout `probabilities` are `(M,)` floating, `truth` `(M,)`: 1 or True for yes, 0 or False for no.
"""

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


def normalised_entropy(probabilities: Tensor, truth: Tensor) -> float:
    """Return the mean log loss as a share of that of one who always says how often yes comes true here; 1 is no help.

    Raises:
        InvalidArgument: as `log_losses`; no yes, or no no.

    Source: Xinran He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014.
    """
    losses = log_losses(probabilities, truth)
    rate = truth.double().mean()
    if rate in (0, 1):
        raise InvalidArgument("truth", "both yes and no", f"{len(truth)} times {'yes' if rate else 'no'}")
    return float(losses.mean() / log_losses(rate.expand(len(truth)), truth).mean())


def calibration(probabilities: Tensor, truth: Tensor) -> float:
    """Return the sum of the probabilities over how often yes came true: 1 where they are right on the whole.

    Raises:
        InvalidArgument: as `log_losses`; no yes.
    """
    yes = _checked(probabilities, truth).sum()
    if not yes:
        raise InvalidArgument("truth", "a yes", "none")
    return float(probabilities.double().sum() / yes)


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
