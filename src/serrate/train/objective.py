"""What a run learns. The loop knows this much of it and no more: batches, a loss, a validation, the last figures."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Histories, TokenBatches
from ..run_folder import RunFolder
from .config import AnyRunConfig, RankingRunConfig
from .next_item import NextItem
from .ranking import Ranking


class Objective(Protocol):
    """The next item, or what becomes of items that are shown: all that differs between runs of these kinds.

    A model that is given is the one that it built.

    Attributes:
        config: the whole run, with what its data say filled in.
        histories: the prepared log.
        batches: of the examples of an epoch.
    """

    config: Any
    histories: Histories
    batches: TokenBatches

    def build(self) -> nn.Module:
        """Return the model, its weights drawn from torch's generator."""
        ...

    def batch(self, epoch: int, index: np.ndarray) -> Any:
        """Gather the examples `index` `(B,)` as they are in `epoch`, on the CPU."""
        ...

    def loss(self, model: Any, batch: Any) -> tuple[Tensor, Tensor | int]:
        """Return the loss, summed over the targets of a batch, and the weight of these together, both scalar."""
        ...

    def validate(self, model: Any) -> dict[str, float]:
        """Return name → value of each metric on the validation examples, those by which an epoch is chosen."""
        ...

    def better(self, value: float, best: float) -> bool:
        """Whether a value of the metric that chooses the epoch speaks for the model more than the best so far."""
        ...

    def padding_avoided(self) -> float:
        """Return the share of the cells that padding each batch of epoch 0 to its longest row would add, 0 … 1."""
        ...

    def measure(self, model: Any) -> dict[str, Any]:
        """Test the model, once, beside the baselines; return what metrics.json says of it."""
        ...

    def save(self, folder: RunFolder) -> None:
        """Write what answers need beside the weights."""
        ...


def objective_of(config: AnyRunConfig, histories: Histories, device: torch.device) -> Objective:
    """Return what a run learns; raises what `NextItem` and `Ranking` raise."""
    if isinstance(config, RankingRunConfig):
        return Ranking(config, histories, device)
    return NextItem(config, histories, device)
