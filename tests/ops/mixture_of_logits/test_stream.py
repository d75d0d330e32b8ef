"""One pass over items, on scores that are given: whole numbers, so that there are ties wherever chunks end."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.ops.direct import INTERPRETED
from serrate.ops.mixture_of_logits import Filters, Gate, Problem, cpu
from serrate.ops.mixture_of_logits.stream import best


def problem_of(rows: int, count: int, device: str = "cpu") -> Problem:
    """Return a problem of this size; scores do not come from it."""
    one = torch.ones(1, 1, device=device)
    gate = Gate(one, one[0], one, one[0])
    queries, items = torch.ones(rows, 1, device=device), torch.ones(count, 1, device=device)
    return Problem(queries[..., None], queries, items[..., None], items, gate, 1.0)


def search(scores, k, chunk, keep, exclude=None):
    def fill(first, last, out):
        assert first % 8 == 0
        assert out.shape == (len(scores), last - first)
        out.copy_(scores[:, first:last])

    return best(problem_of(*scores.shape, scores.device.type), k, Filters(exclude, None), chunk, fill, keep)


def by_sorting(scores, k, exclude=None):
    """Return the same from a stable sort."""
    scores = scores.clone()
    for row in range(len(scores) if exclude else 0):
        scores[row, exclude[1][exclude[0][row]:exclude[0][row + 1]]] = -math.inf
    pad = max(0, k - scores.shape[1])
    values, ids = torch.nn.functional.pad(scores, (0, pad), value=-math.inf).sort(
        dim=1, descending=True, stable=True)
    return values[:, :k], ids[:, :k].masked_fill(values[:, :k] == -math.inf, -1)


@given(st.data())
def test_any_scores_any_k_any_chunks(data):
    rows, count, k = (data.draw(st.integers(low, most)) for low, most in ((1, 3), (0, 60), (0, 70)))
    numbers = st.sampled_from([-math.inf, -1.0, 0.0, 1.0, 2.0, math.inf])
    scores = torch.tensor([data.draw(st.lists(numbers, min_size=count, max_size=count)) for _ in range(rows)])
    scores = scores.view(rows, count)
    exclude = None
    if count and data.draw(st.booleans()):
        lengths = data.draw(st.lists(st.integers(0, 20), min_size=rows, max_size=rows))
        ids = data.draw(st.lists(st.integers(0, count - 1), min_size=sum(lengths), max_size=sum(lengths)))
        exclude = torch.tensor([0, *lengths]).cumsum(0), torch.tensor(ids, dtype=torch.int64)
    found = search(scores, k, data.draw(st.integers(0, 64)), cpu._keep, exclude)
    for one, other in zip(found, by_sorting(scores, k, exclude), strict=True):
        assert torch.equal(one, other)


def test_by_hand():
    scores = torch.tensor([[3.0, 5, 5, 1, 5, 5, 0, 2, 9, 5], [0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    found = search(scores, 4, 8, cpu._keep, (torch.tensor([0, 1, 3]), torch.tensor([1, 0, 9])))
    assert found[0].tolist() == [[9, 5, 5, 5], [0, 0, 0, 0]]
    assert found[1].tolist() == [[8, 2, 4, 5], [1, 2, 3, 4]]


def rows_with_ties(count: int, device: str) -> torch.Tensor:
    """Return five rows: many scores, few, one, nearly none, and descending ones."""
    generator = torch.Generator(device).manual_seed(0)
    scores = torch.randint(-300, 300, (5, count), generator=generator, device=device).float()
    scores[1] = scores[1].abs() // 100
    scores[2] = 7.0
    scores[3, 5:] = -math.inf
    scores[4] = -torch.arange(count, device=device) // 2
    return scores


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")
@pytest.mark.parametrize("held", [512, 2**14])
@pytest.mark.parametrize("k", [1, 100, 2048, 4999, 6000])
def test_the_triton_kernels_over_several_blocks(k, held, monkeypatch):
    from serrate.ops.mixture_of_logits.triton import selection
    from serrate.ops.mixture_of_logits.triton.selection import keep

    monkeypatch.setattr(selection, "_HELD", held)
    monkeypatch.setattr(selection, "_ALONE", 4 * held)
    scores = rows_with_ties(5000, "cpu")
    for chunk in (2400, 5000):
        for one, other in zip(search(scores, k, chunk, keep), by_sorting(scores, k), strict=True):
            assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("chunk", [2**12, 2**15, 2**17])
@pytest.mark.parametrize("k", [1, 100, 10_000, 70_000])
def test_the_triton_kernels_on_cuda(chunk, k):
    from serrate.ops.mixture_of_logits.triton.selection import keep

    scores = rows_with_ties(70_001, "cuda")
    for one, other in zip(search(scores, k, chunk, keep), by_sorting(scores, k), strict=True):
        assert torch.equal(one, other)
