"""Candidates of components and of their mean: which they are, and when they are known to be enough."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serrate.index import ComponentIndex, ExactIndex
from serrate.index.component import distinct
from serrate.index.sides import component_logits

from .made import exact, mixture


def logits_of(similarity, queries, items):
    """Return `(R, P, V)`, component by component."""
    rows = []
    for n in range(queries["components"].shape[1]):
        for m in range(items["components"].shape[1]):
            rows.append(queries["components"][:, n] @ items["components"][:, m].T / similarity.temperature)
    return torch.stack(rows, 1)


def test_component_logits_against_a_loop():
    similarity, queries, items = mixture()
    torch.testing.assert_close(component_logits(queries, items, similarity.temperature),
                               logits_of(similarity, queries, items), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("each", "mean"), [(3, 0), (0, 9), (3, 9)])
def test_the_candidates_are_the_union_of_the_selectors(each, mean):
    similarity, queries, items = mixture()
    logits = logits_of(similarity, queries, items)
    found = ComponentIndex.build(similarity, items, config={"each": each, "mean": mean}).search(queries, 300)
    for row in range(len(logits)):
        wanted = set(logits[row].topk(each, dim=1).indices.flatten().tolist())
        wanted |= set(logits[row].mean(0).topk(mean).indices.tolist())
        answer = [item for item in found.ids[row].tolist() if item >= 0]
        assert set(answer) == wanted
        assert len(answer) == len(wanted) == int(found.candidates[row])
    scores = similarity.score(queries, items).detach()
    torch.testing.assert_close(found.scores[:, :3], scores.gather(1, found.ids[:, :3]), rtol=1e-5, atol=1e-5)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), each=st.integers(1, 200), k=st.integers(1, 30))
def test_the_gap_bounds_what_was_missed_and_none_certifies_equality(seed, each, k):
    similarity, queries, items = mixture()
    torch.manual_seed(seed)
    queries = {"components": torch.nn.functional.normalize(torch.randn(4, 2, 8), dim=-1), "gate": torch.randn(4, 4)}
    expected = ExactIndex.build(similarity, items).search(queries, k)
    found = ComponentIndex.build(similarity, items, config={"each": each}).search(queries, k)
    missed = expected.scores[:, -1] - found.scores[:, -1]
    assert bool((missed <= found.gap + 1e-4).all())
    sure = found.certified
    torch.testing.assert_close(found.scores[sure], expected.scores[sure], rtol=1e-5, atol=1e-5)


def test_certificates_fire_where_components_are_few_and_never_for_the_mean_alone():
    similarity, sides = exact("dot")  # one component: its best are the answer
    assert ComponentIndex.build(similarity, sides(2, 90), config={"each": 5}).search(sides(1, 4), 5).certified.all()
    similarity, queries, items = mixture()
    by_mean = ComponentIndex.build(similarity, items, config={"each": 0, "mean": 50})
    assert not by_mean.search(queries, 5).certified.any()
    assert ComponentIndex.build(similarity, items, config={"each": 300}).search(queries, 5).certified.all()


def test_distinct_keeps_each_id_once():
    assert distinct(torch.tensor([[5, -1, 5, 2], [7, 7, 7, -1]])).tolist() == [[2, 5], [-1, 7]]
