"""What is known of samples without a model: how often yes comes true, of each item, of each user and item together."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..data import Samples
from .probabilities import log_losses

Rate = Callable[[Samples], Tensor]
_PRIORS = (1.0, 4.0, 16.0, 64.0)  # samples of the base rate that each item is given beside its own
_RIDGES = (0.25, 1.0, 4.0, 16.0)  # of users and items, per half squared weight


def fit_rates(train: Samples, truth: Tensor, validation: Samples, validation_truth: Tensor) -> dict[str, Rate]:
    """Return name → what gives the probability of yes of samples, `(M,)` float32, fitted to training samples.

    - `base rate`: how often yes came true, the same for all.
    - `item rate`: how often of this item, drawn towards the base rate where it has few samples.
    - `user + item`: a logistic regression on who is shown and what, with a ridge penalty.

    How strongly the latter two are drawn is what gives the least log loss on the validation samples.

    Args:
        train: samples to count.
        truth: `(M,)`, 1 where yes came true of them, else 0.
        validation: samples that choose.
        validation_truth: the same of these.
    """
    base = truth.double().mean()

    def best(rates: list[Rate]) -> Rate:
        return min(rates, key=lambda rate: float(log_losses(rate(validation), validation_truth).mean()))

    return {"base rate": lambda samples: base.float().expand(len(samples)),
            "item rate": best([_item_rate(train, truth, prior) for prior in _PRIORS]),
            "user + item": best([_regression(train, truth, ridge) for ridge in _RIDGES])}


def _item_rate(train: Samples, truth: Tensor, prior: float) -> Rate:
    items = torch.from_numpy(train.items)
    yes = torch.bincount(items, weights=truth.double())
    rates = (yes + prior * truth.double().mean()) / (torch.bincount(items) + prior)
    return lambda samples: _of(rates, torch.from_numpy(samples.items), truth.double().mean()).float()


def _regression(train: Samples, truth: Tensor, ridge: float) -> Rate:
    users, items = torch.from_numpy(train.users), torch.from_numpy(train.items)
    base = nn.Parameter(torch.zeros(1))
    of_user, of_item = (nn.Parameter(torch.zeros(int(ids.max()) + 1)) for ids in (users, items))
    optimizer = torch.optim.LBFGS([base, of_user, of_item], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = base + of_user[users] + of_item[items]
        total = nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
        total = total + ridge / 2 * (of_user.square().sum() + of_item.square().sum())
        total.backward()
        return total

    optimizer.step(loss)
    nothing = torch.zeros(())
    return lambda samples: (base + _of(of_user, torch.from_numpy(samples.users), nothing)
                            + _of(of_item, torch.from_numpy(samples.items), nothing)).detach().sigmoid()


def _of(values: Tensor, ids: Tensor, otherwise: Tensor) -> Tensor:
    """Return `values` at `ids` `(M,)`, and `otherwise` for those beyond them, which training has not seen."""
    return torch.where(ids < len(values), values[ids.clamp(max=len(values) - 1)], otherwise)
