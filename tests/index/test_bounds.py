"""What the gate lets a score be: never less than the score, and less than the largest logit where the gate is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.index import ExactIndex, TwoPassIndex
from serrate.index.bounds import cross_interval, gate_bound
from serrate.index.sides import component_logits
from serrate.nn.similarity import MixtureOfLogits, MixtureOptions

from .made import exact


def world(seed, spread, cross):
    """Return a mixture, the sides of 4 queries and 80 items, gates of a `spread` and weights of a `cross` gate."""
    torch.manual_seed(seed)
    similarity = MixtureOfLogits(8, MixtureOptions(2, 3, 4, 8, 8)).eval()
    for parameter in similarity.cross.parameters():
        torch.nn.init.normal_(parameter, std=cross)
    with torch.no_grad():
        queries, items = similarity.queries(torch.randn(4, 8)), similarity.items(torch.randn(80, 8))
    return similarity, *({**sides, "gate": spread * torch.randn_like(sides["gate"])} for sides in (queries, items))


def bound_of(similarity, queries, items):
    logits = component_logits(queries, items, similarity.temperature)
    return logits, gate_bound(logits, queries["gate"][:, :, None] * items["gate"].T, similarity)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.1, 1.0, 5.0]), cross=st.sampled_from([0.0, 0.05, 1.0]))
def test_no_score_is_above_its_bound_and_no_bound_above_the_largest_logit(seed, spread, cross):
    similarity, queries, items = world(seed, spread, cross)
    logits, bound = bound_of(similarity, queries, items)
    scores = similarity.score(queries, items).detach()
    assert bool((scores <= bound + 1e-3).all())
    assert bool((bound <= logits.amax(1) + 1e-3).all())


def test_a_gate_that_is_known_whole_gives_the_score_itself():
    similarity, queries, items = world(0, 1.0, 0.0)
    _, bound = bound_of(similarity, queries, items)
    torch.testing.assert_close(bound, similarity.score(queries, items).detach(), rtol=1e-4, atol=1e-4)


def test_the_interval_of_the_cross_gate_holds_and_closes_on_a_point():
    similarity, _, _ = world(0, 1.0, 0.5)
    low, high = torch.full((1, 6), -2.0), torch.full((1, 6), 3.0)
    least, largest = cross_interval(low, high, similarity)
    drawn = similarity.cross(low + (high - low) * torch.rand(5_000, 6)).detach()
    assert bool((drawn >= least - 1e-5).all())
    assert bool((drawn <= largest + 1e-5).all())
    point, again = cross_interval(low, low, similarity)
    torch.testing.assert_close(point, similarity.cross(low).detach())
    torch.testing.assert_close(again, point)


@pytest.mark.parametrize(("cross", "helps"), [(0.0, True), (0.02, True), (1.0, False)])
def test_two_passes_keep_less_by_it_and_stay_exact(cross, helps):
    similarity, queries, items = world(1, 2.0, cross)
    expected = ExactIndex.build(similarity, items).search(queries, 5)
    found = {bound: TwoPassIndex.build(similarity, items, config={"bound": bound}).search(queries, 5)
             for bound in ("component", "gate")}
    for each in found.values():
        torch.testing.assert_close(each.scores, expected.scores, rtol=1e-4, atol=1e-4)
    less = float(found["gate"].share.mean()) / float(found["component"].share.mean())
    assert less < 0.7 if helps else less == 1


def test_what_has_no_such_gate_is_refused():
    similarity, sides = exact("dot")
    with pytest.raises(InvalidArgument, match=r"^similarity: expected a mixture of logits"):
        TwoPassIndex.build(similarity, sides(0, 3), config={"bound": "gate"})
