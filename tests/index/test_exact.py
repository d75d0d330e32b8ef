"""Top-k: every tie has one right answer, filters hold, odd shapes are ordinary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serrate.errors import InvalidArgument
from serrate.index import mask_items, top_k
from serrate.jagged import JaggedTensor

INF = float("inf")


def jagged(rows: list[list[int]]) -> JaggedTensor:
    values = torch.tensor([value for row in rows for value in row], dtype=torch.int64)
    return JaggedTensor.from_lengths(values, torch.tensor([len(row) for row in rows], dtype=torch.int64))


def slow_top_k(scores: Tensor, k: int, filtered: list[set[int]]) -> tuple[list[list[float]], list[list[int]]]:
    """Sort everything in Python: the oracle."""
    best_scores, best_ids = [], []
    for row, out in zip(scores.tolist(), filtered, strict=True):
        candidates = [(-score, item) for item, score in enumerate(row) if item not in out and score > -INF]
        order = sorted(candidates)[:k]
        missing = k - len(order)
        best_scores.append([-score for score, _ in order] + [-INF] * missing)
        best_ids.append([item for _, item in order] + [-1] * missing)
    return best_scores, best_ids


def test_ties_go_to_the_smaller_id_also_at_the_last_place():
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0]])
    values, ids = top_k(scores, 3)
    assert ids.tolist() == [[1, 3, 2]]
    assert values.tolist() == [[3.0, 3.0, 2.0]]
    assert ids.dtype == torch.int64


def test_a_row_of_one_score_gives_the_first_ids():
    assert top_k(torch.zeros(2, 1000), 4)[1].tolist() == [[0, 1, 2, 3]] * 2


def test_filters_and_missing_places():
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0], [5.0, 4.0, 3.0, 2.0]])
    values, ids = top_k(scores, 3, exclude=jagged([[0, 0], []]), deny=torch.tensor([1], dtype=torch.int32),
                        allow=torch.tensor([0, 1, 2]))
    assert ids.tolist() == [[2, -1, -1], [0, 2, -1]]
    assert values.tolist() == [[3.0, -INF, -INF], [5.0, 3.0, -INF]]
    assert scores[0, 0] == 5.0, "the caller's scores are left alone"


def test_an_empty_allow_allows_nothing():
    assert top_k(torch.ones(1, 3), 2, allow=torch.tensor([], dtype=torch.int64))[1].tolist() == [[-1, -1]]


@pytest.mark.parametrize(("rows", "items", "k"), [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0), (2, 3, 7)])
def test_odd_shapes(rows, items, k):
    values, ids = top_k(torch.zeros(rows, items), k, exclude=jagged([[]] * rows))
    assert values.shape == ids.shape == (rows, k)
    assert ids.tolist() == [list(range(min(k, items))) + [-1] * (k - min(k, items))] * rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_strides(dtype):
    scores = torch.tensor([[1.0, 9.0], [3.0, 9.0], [3.0, 9.0], [-2.0, 8.0]], dtype=dtype).T
    values, ids = top_k(scores, 2)
    assert values.dtype == dtype
    assert ids.tolist() == [[1, 2], [0, 1]]


def test_expanded_scores_are_copied_before_they_are_masked():
    scores = torch.tensor([3.0, 2.0, 1.0]).expand(2, 3)
    assert top_k(scores, 1, exclude=jagged([[0], [1]]))[1].tolist() == [[1], [0]]


def test_infinities():
    assert top_k(torch.tensor([[0.0, INF, -INF]]), 3)[1].tolist() == [[1, 0, -1]]


@pytest.mark.parametrize(("call", "message"), [
    (lambda s: top_k(s.fill_(float("nan")), 1), "scores: expected no NaN, got NaN in row 0"),
    (lambda s: top_k(s, -1), "k: expected 0 or more, got -1"),
    (lambda s: top_k(s[0], 1), "scores: expected shape"),
    (lambda s: top_k(s.long(), 1), "scores: expected shape"),
    (lambda s: top_k(s, 1, deny=torch.tensor([3])), "deny: expected item ids from 0 to 2, got 3"),
    (lambda s: top_k(s, 1, allow=torch.tensor([-1])), "allow: expected item ids from 0 to 2, got -1"),
    (lambda s: top_k(s, 1, allow=torch.ones(3).bool()), "allow: expected one axis of integer item ids"),
    (lambda s: top_k(s, 1, exclude=jagged([[0]])), "exclude: expected 2 rows, as scores, got 1"),
    (lambda s: top_k(s, 1, exclude=jagged([[0], [7]])), "exclude: expected item ids from 0 to 2, got 7"),
])
def test_malformed_input_gives_one_clear_line(call, message):
    with pytest.raises(InvalidArgument, match="^" + message) as error:
        call(torch.zeros(2, 3))
    assert "\n" not in str(error.value)


def test_mask_items_fills_only_what_is_filtered():
    masked = mask_items(torch.ones(2, 3), exclude=jagged([[2], []]), deny=torch.tensor([0]))
    assert masked.tolist() == [[-INF, 1.0, -INF], [-INF, 1.0, 1.0]]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_a_full_sort_with_many_ties(data):
    rows, items = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 12))
    k = data.draw(st.integers(0, 15))
    score = st.sampled_from([-INF, -1.5, 0.0, 0.25, 2.0])
    scores = torch.tensor(data.draw(st.lists(st.lists(score, min_size=items, max_size=items), min_size=rows,
                                             max_size=rows)), dtype=torch.float32).reshape(rows, items)
    ids = st.lists(st.integers(0, items - 1), max_size=6)
    exclude = data.draw(st.lists(ids, min_size=rows, max_size=rows))
    allow, deny = data.draw(st.none() | ids), data.draw(st.none() | ids)
    shared = set(deny or []) | (set(range(items)) - set(allow) if allow is not None else set())
    expected = slow_top_k(scores, k, [set(row) | shared for row in exclude])
    values, found = top_k(scores, k, exclude=jagged(exclude),
                          allow=None if allow is None else torch.tensor(allow, dtype=torch.int64),
                          deny=None if deny is None else torch.tensor(deny, dtype=torch.int64))
    assert (values.tolist(), found.tolist()) == expected
