"""Where an event stands in its row."""

import torch
from torch import Tensor

from ..jagged import JaggedTensor


def ages(x: JaggedTensor) -> Tensor:
    """`(T,)` int64: how many events of its row are newer than each event; the newest has age 0.

    Counting from the newest keeps an event's position unchanged when older history is cut off. No synchronisation.
    """
    ends = x.offsets[1:].to(torch.int64)
    return ends[x.row_index()] - 1 - torch.arange(x.num_events, device=x.device)
