"""Multi-head self-attention and the pre-norm transformer block, on `JaggedTensor`."""

from torch import nn

from ..errors import InvalidArgument
from ..jagged import JaggedTensor
from ..ops.attention import Mask, attention


class JaggedMultiheadAttention(nn.Module):
    """Multi-head self-attention within each row, one packed projection to queries, keys and values.

    Args:
        width: `E`, the width of an event; a multiple of `heads`.
        heads: `H`.
        mask: which events an event may see.

    Raises:
        InvalidArgument: `width` is not a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int, *, mask: Mask = Mask(causal=True)):  # noqa: B008 - frozen
        super().__init__()
        if heads < 1 or width % heads:
            raise InvalidArgument("heads", f"a divisor of width {width}", heads)
        self.heads = heads
        self.mask = mask
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x: JaggedTensor) -> JaggedTensor:
        """Attend within each row: values `(T, E)` → values `(T, E)`, the same rows."""
        q, k, v = self.project_in(x.values).unflatten(-1, (3, self.heads, -1)).unbind(1)
        attended = attention(q, k, v, x.offsets, mask=self.mask, longest=x.longest)
        return x.with_values(self.project_out(attended.flatten(1)))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: `x + attention(norm(x))`, then `x + feedforward(norm(x))`.

    Args:
        width: `E`, the width of an event.
        heads: attention heads, a divisor of `width`.
        hidden: width of the feed-forward layer.
        dropout: share of each branch's outputs dropped in training.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = JaggedMultiheadAttention(width, heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: JaggedTensor) -> JaggedTensor:
        """Values `(T, E)` → values `(T, E)`, the same rows."""
        attended = self.attention(x.with_values(self.attention_norm(x.values)))
        values = x.values + self.dropout(attended.values)
        return x.with_values(values + self.dropout(self.feedforward(self.feedforward_norm(values))))
