"""Full ranking: the rank of every item to predict among all items, in chunks of bounded memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..data import Examples, Histories, chunks, history_batch, seen_items, with_user_keys
from ..errors import InvalidArgument
from ..index import mask_items, top_k
from ..jagged import EventBatch, JaggedTensor, offsets_from_lengths
from .config import EvaluateConfig
from .evaluation import Evaluation


class Scorer(Protocol):
    """Scores every item as the next event of each history: a model or a baseline."""

    @property
    def num_items(self) -> int:
        """How many items it scores."""
        ...

    def score(self, batch: EventBatch) -> Tensor:
        """Return `(B, num_items)` floating point, finite: higher is more likely to come next."""
        ...


def evaluate(scorer: Scorer, histories: Histories, examples: Examples, config: EvaluateConfig, *,
             max_length: int | None = None, device: torch.device | str = "cpu",
             user_keys: Tensor | None = None) -> Evaluation:
    """Rank the items to predict of each example among all items.

    The rank of an item is 1 + the number of *other* candidates whose score is at least as high: ties are
    resolved against the scorer, so a constant score is worth nothing. Candidates are all items, less those
    of the whole history with `config.exclude_seen`. An item that is to be predicted several times in one
    example counts once; several items to predict compete with each other. At most `config.score_budget`
    scores are held at a time.

    Args:
        scorer: its `score` sees `config.tokens_per_batch` events or fewer at a time; a module is put in
            evaluation mode for the while.
        histories, examples: what to predict, from what; examples without anything to predict are left out.
        config: cutoffs, filter, bounds.
        max_length: how many of the newest events the scorer sees (None: all); the filter knows all.
        device: where batches go before they are scored.
        user_keys: `(num_users,)` int64, by which a scorer knows the users, -1 for unknown ones: the context `user_key`
            of its batches. None: they have none.

    Raises:
        InvalidArgument: no example with anything to predict; a scorer of another number of items; scores
            not finite or of a wrong shape.
    """
    if scorer.num_items != histories.num_items:
        raise InvalidArgument("scorer", f"{histories.num_items} items, as histories", scorer.num_items)
    chosen = examples.select(examples.truth_ends > examples.ends)
    if not len(chosen):
        raise InvalidArgument("examples", "at least one example with an event to predict", "none")
    most_rows = max(1, config.score_budget // histories.num_items)
    lengths = chosen.ends if max_length is None else chosen.ends.clip(max=max_length)

    ranked = []
    covered = torch.zeros(len(config.cutoffs), histories.num_items, dtype=torch.bool)
    with torch.inference_mode(), _evaluation_mode(scorer):
        for index in chunks(lengths, config.tokens_per_batch, most_rows):
            batch = history_batch(histories, chosen, index, max_length)
            batch = batch if user_keys is None else with_user_keys(batch, user_keys)
            truth = batch.context["truth"]
            assert isinstance(truth, JaggedTensor)
            truth = _distinct(truth, histories.num_items)
            scores = _checked(scorer.score(batch.to(device)), len(index), histories.num_items)
            seen = seen_items(histories, chosen, index).to(scores.device) if config.exclude_seen else None
            masked = mask_items(scores, exclude=seen)
            ranked.append(JaggedTensor.trusted(_ranks(masked, truth).cpu(), truth.offsets))
            _, ids = top_k(masked, config.cutoffs[-1])
            for cutoff, items in zip(config.cutoffs, covered, strict=True):
                best = ids[:, :cutoff].flatten().cpu()
                items[best[best >= 0]] = True

    ranks = JaggedTensor.from_lengths(torch.cat([chunk.values for chunk in ranked]),
                                      torch.cat([chunk.lengths for chunk in ranked]))
    coverage = dict(zip(config.cutoffs, covered.double().mean(dim=1).tolist(), strict=True))
    return Evaluation(config, torch.as_tensor(chosen.rows), ranks, coverage,
                      seen_truths=int(ranks.values.isinf().sum()), without_truth=len(examples) - len(chosen))


def _distinct(items: JaggedTensor, num_items: int) -> JaggedTensor:
    """Return each row's items once, ascending."""
    cells = (items.row_index() * num_items + items.values).unique()
    lengths = torch.bincount(cells // num_items, minlength=len(items))
    return JaggedTensor.trusted(cells % num_items, offsets_from_lengths(lengths))


def _ranks(masked: Tensor, truth: JaggedTensor) -> Tensor:
    """Return `(P,)` float64: the rank of each item of `truth` in its row of `masked` `(B, V)`."""
    rows, items = truth.row_index().to(masked.device), truth.values.to(masked.device)
    own = masked[rows, items]
    counts = []
    for row, score in zip(rows.split(len(masked)), own.split(len(masked)), strict=True):  # at most B × V cells
        at_least = masked.index_select(0, row) >= score.unsqueeze(1)
        counts.append(at_least.view(torch.uint8).sum(dim=1, dtype=torch.int32))  # bool.sum is slow
    return torch.cat(counts).double().masked_fill(own == -float("inf"), float("inf"))


def _checked(scores: Tensor, rows: int, num_items: int) -> Tensor:
    if scores.shape != (rows, num_items):
        raise InvalidArgument("scorer", f"scores of shape ({rows}, {num_items})", tuple(scores.shape))
    low, high = scores.aminmax()  # NaN goes through
    if not bool(low.isfinite() & high.isfinite()):
        raise InvalidArgument("scorer", "finite scores", f"between {float(low)} and {float(high)}")
    return scores


@contextmanager
def _evaluation_mode(scorer: Scorer) -> Iterator[None]:
    """Switch dropout and the like off while a module is evaluated."""
    training = isinstance(scorer, nn.Module) and scorer.training
    if isinstance(scorer, nn.Module):
        scorer.eval()
    try:
        yield
    finally:
        if isinstance(scorer, nn.Module):
            scorer.train(training)
