"""The attention module and the block, against a loop over rows written with torch's own modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serrate.errors import InvalidArgument
from serrate.jagged import JaggedTensor
from serrate.nn import JaggedMultiheadAttention, TransformerBlock
from serrate.ops.attention import Mask
from serrate.testing import jagged_cases

CASES = pytest.mark.parametrize("case", jagged_cases(), ids=str)


def events(case, width: int = 12) -> JaggedTensor:
    made = case.make((width,), torch.float64)
    return made.with_values(made.values.requires_grad_())


def plain_attention(module: JaggedMultiheadAttention, row: Tensor) -> Tensor:
    """One row `(n, E)` through torch's own multi-head attention with the module's weights."""
    theirs = nn.MultiheadAttention(row.shape[1], module.heads, batch_first=True, dtype=row.dtype)
    theirs.in_proj_weight, theirs.in_proj_bias = module.project_in.weight, module.project_in.bias
    theirs.out_proj = module.project_out
    later = torch.ones(len(row), len(row), dtype=torch.bool).triu(1) if module.mask.causal else None
    return theirs(row[None], row[None], row[None], attn_mask=later, need_weights=False)[0][0]


def plain_block(block: TransformerBlock, row: Tensor) -> Tensor:
    norm, other, wide, narrow = (block.attention_norm, block.feedforward_norm, block.feedforward[0],
                                 block.feedforward[3])  # fmt: skip
    x = row + plain_attention(block.attention, F.layer_norm(row, row.shape[1:], norm.weight, norm.bias))
    normed = F.layer_norm(x, row.shape[1:], other.weight, other.bias)
    return x + F.gelu(normed @ wide.weight.T + wide.bias) @ narrow.weight.T + narrow.bias


def randomised(module: nn.Module) -> nn.Module:
    """The module in float64 with no parameter at a value that hides it (ones, zeros)."""
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return module.double()


def assert_same_as_loop(module: nn.Module, plain, x: JaggedTensor) -> None:
    """Values and gradients, of the events and of every parameter, are those of one row at a time."""
    result = module(x)
    rows = [plain(module, row) for row in x if len(row)]
    expected = torch.cat([x.values[:0], *rows])
    assert torch.equal(result.offsets, x.offsets)
    torch.testing.assert_close(result.values, expected, rtol=1e-10, atol=1e-10)
    leaves = [x.values, *module.parameters()]
    got, want = (torch.autograd.grad(values.square().sum(), leaves, materialize_grads=True, allow_unused=True)
                 for values in (result.values, expected))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@CASES
@pytest.mark.parametrize("mask", [Mask(causal=True), Mask()], ids=["causal", "full"])
def test_attention_is_torchs_own_row_by_row(case, mask):
    assert_same_as_loop(randomised(JaggedMultiheadAttention(12, 3, mask=mask)), plain_attention, events(case))


@CASES
def test_the_block_is_the_formula_row_by_row(case):
    assert_same_as_loop(randomised(TransformerBlock(12, 2, 20)), plain_block, events(case))


def test_the_block_drops_both_branches_in_training_only():
    torch.manual_seed(0)
    block = TransformerBlock(12, 2, 20, dropout=0.999999)
    x = jagged_cases()[-1].make((12,))
    assert not torch.equal(block.eval()(x).values, x.values)
    assert torch.equal(block.train()(x).values, x.values)  # nothing but the residual path is left


@pytest.mark.parametrize("heads", [0, 5, -2])
def test_heads_divide_the_width(heads):
    with pytest.raises(InvalidArgument) as caught:
        JaggedMultiheadAttention(12, heads)
    assert str(caught.value) == f"heads: expected a divisor of width 12, got {heads}"
