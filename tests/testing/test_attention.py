"""The conformance suite of attention can fail: each promise broken a little is found out."""

import pytest
import torch

from serrate.ops.attention import Mask
from serrate.ops.attention import attention as right
from serrate.ops.attention.cases import CASES
from serrate.testing import attention as suite

CASE = next(case for case in CASES if case.name == "everything_cross")


def off(x: torch.Tensor, by: float) -> torch.Tensor:
    """The same value with a gradient that is off."""
    return x + by * (x - x.detach())


WRONG = {
    "output": lambda out, lse: (out * (1 + 2**-7), lse),
    "one output": lambda out, lse: (out.index_fill(0, torch.tensor([5]), 0), lse),
    "not a number": lambda out, lse: (out * torch.where(out == out.max(), torch.nan, 1), lse),
    "lse in half precision": lambda out, lse: (out, lse.half().float()),
    "finite lse of a blind query": lambda out, lse: (out, lse.nan_to_num(neginf=0)),
    "gradient of the output": lambda out, lse: (off(out, 0.1), lse),
    "gradient of lse": lambda out, lse: (
        out, torch.where(lse.isneginf(), lse, off(lse.masked_fill(lse.isneginf(), 0), 0.1))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_found(wrong, dtype, monkeypatch):
    def attention(*arguments, implementation, **others):
        out, lse = right(*arguments, implementation=implementation, **others)
        return WRONG[wrong](out, lse) if implementation == "cpu" else (out, lse)

    tensors = CASE.tensors(dtype)[:3]
    suite.check("cpu", CASE, tensors)
    monkeypatch.setattr(suite, "attention", attention)
    with pytest.raises(AssertionError):
        suite.check("cpu", CASE, tensors)


def test_the_predicate_by_hand():
    mask = Mask(causal=True, window=(2, None), block=4)
    assert suite.sees(mask, 6, 4, keys=9)
    assert not suite.sees(mask, 6, 3, keys=9)  # another block, and too far
    assert not suite.sees(mask, 4, 5, keys=9)  # later
    assert suite.sees(mask, 6, 0, keys=9, context=1)
    assert suite.sees(mask, 8, 8, keys=9, targets=2)
    assert not suite.sees(mask, 8, 7, keys=9, targets=2)


def test_the_plain_mask_of_a_batch_is_block_diagonal():
    seen = suite.visible(CASE)
    assert seen.shape == (sum(CASE.lengths), sum(CASE.kv_lengths))
    assert not seen[:CASE.lengths[0], CASE.kv_lengths[0]:].any()
    assert seen[:CASE.lengths[0], :CASE.kv_lengths[0]].any()


def test_an_implementation_that_cannot_serve_is_skipped_with_its_reason():
    with pytest.raises(pytest.skip.Exception, match="triton: needs a CUDA device, got cpu"):
        suite.usable("triton", CASE, CASE.tensors()[:3])
