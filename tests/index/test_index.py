"""What every kind of index keeps: the right answer where it promises one, filters, live changes, clear errors."""

import importlib.util
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serrate.errors import InvalidArgument, InvalidConfig, InvalidData
from serrate.index import KINDS, ExactIndex, kind_named
from serrate.nn.similarity import Similarity

from .made import INF, dot, exact, jagged, mixture, slow_search, whole

HERE = [kind for kind in KINDS if kind != "faiss" or importlib.util.find_spec("faiss")]
EVERYTHING = {"exact": {}, "component": {"each": 500}, "two-pass": {}, "h-indexer": {"keep": 500},
              "faiss": {"factory": "Flat", "keep": 500}}  # nothing left out


def answers(found):
    return found.scores.tolist(), found.ids.tolist()


@pytest.mark.parametrize("kind", HERE)
@pytest.mark.parametrize("name", ["dot", "mixture"])
@settings(max_examples=40)
@given(data=st.data())
def test_equals_a_full_sort_with_ties_duplicates_and_filters(kind, name, data):
    similarity, sides = exact(name)
    number, rows, k = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 4)), data.draw(st.integers(1, 45))
    ids = data.draw(st.lists(st.integers(0, 99), min_size=number, max_size=number, unique=True))
    queries, items = sides(1, rows), sides(2, number)
    few = st.lists(st.integers(0, 120), max_size=8)  # some are of no item
    exclude = data.draw(st.lists(few, min_size=rows, max_size=rows))
    allow, deny = data.draw(st.none() | few), data.draw(st.none() | few)
    shared = set(deny or []) | (set(range(200)) - set(allow) if allow is not None else set())
    index = KINDS[kind].build(similarity, items, torch.tensor(ids, dtype=torch.int64), EVERYTHING[kind])
    found = index.search(queries, k, exclude=jagged(exclude),
                         allow=None if allow is None else torch.tensor(allow, dtype=torch.int64),
                         deny=None if deny is None else torch.tensor(deny, dtype=torch.int64))
    closed = [set(row) | shared for row in exclude]
    assert answers(found) == slow_search(similarity.score(queries, items), ids, k, closed)
    assert found.open.tolist() == [len(set(ids) - row) for row in closed]
    assert found.certified.tolist() == [True] * rows
    assert bool((found.share <= 1).all()) or kind in ("h-indexer", "faiss")  # which pass on what a query excludes


@pytest.mark.parametrize("kind", HERE)
@pytest.mark.parametrize("name", ["dot", "mixture"])
def test_items_added_and_removed_are_as_if_built_so(kind, name):
    similarity, sides = exact(name)
    items, queries = sides(2, 60), sides(1, 3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    index = KINDS[kind].build(similarity, {key: side[order[:40]] for key, side in items.items()}, order[:40],
                              EVERYTHING[kind])
    for part in (order[40:45], order[45:46], order[46:]):
        index.add(part, {key: side[part] for key, side in items.items()})
    gone = order[[3, 41, 45, 59]]
    index.remove(gone)
    kept = torch.tensor(sorted(set(range(60)) - set(gone.tolist())))
    rebuilt = KINDS[kind].build(similarity, {key: side[kept] for key, side in items.items()}, kept, EVERYTHING[kind])
    assert len(index) == len(rebuilt) == 56
    assert index.ids.tolist() == kept.tolist()
    assert answers(index.search(queries, 70)) == answers(rebuilt.search(queries, 70))
    index.compact()
    assert answers(index.search(queries, 70)) == answers(rebuilt.search(queries, 70))
    index.add(gone[:1], {key: side[gone[:1]] for key, side in items.items()})
    assert int(gone[0]) in index.search(queries, 70).ids[0].tolist(), "what was removed may come back"


@pytest.mark.parametrize("kind", HERE)
def test_all_items_removed_or_excluded_leave_no_answer(kind):
    similarity, sides = exact("mixture")
    index = KINDS[kind].build(similarity, sides(2, 5), config=EVERYTHING[kind])
    nothing = ([[-INF] * 2], [[-1] * 2])
    assert answers(index.search(sides(1, 1), 2, exclude=jagged([[0, 1, 2, 3, 4, 4]]))) == nothing
    assert answers(index.search(sides(1, 1), 2, allow=torch.tensor([], dtype=torch.int64))) == nothing
    index.remove(torch.arange(5))
    found = index.search(sides(1, 1), 2)
    assert answers(found) == nothing
    assert (found.open.tolist(), found.candidates.tolist(), found.share.tolist()) == ([0], [0], [0])
    index.compact()
    assert answers(index.search(sides(1, 1), 2)) == nothing


@pytest.mark.gpu
@pytest.mark.parametrize("kind", HERE)
def test_a_gpu_answers_as_the_cpu_does(kind, tmp_path):
    """Also items added from the CPU, filters on the CPU, and an index that is loaded to the GPU."""
    similarity, queries, items = mixture()
    index = KINDS[kind].build(similarity, items, config=EVERYTHING[kind])
    exclude, allow = jagged([[3, 4]] * 6), torch.arange(0, 300, 2)
    expected = index.search(queries, 20, exclude=exclude, allow=allow)
    index.save(tmp_path / "index")
    similarity.cuda()
    moved = KINDS[kind].load(tmp_path / "index", similarity, device="cuda")
    gone = torch.arange(100, 200)
    moved.remove(gone)
    moved.add(gone, {name: side[gone] for name, side in items.items()})
    found = moved.search(queries, 20, exclude=exclude, allow=allow)
    assert found.ids.is_cuda
    torch.testing.assert_close(found.scores.cpu(), expected.scores, rtol=1e-2, atol=1e-2)  # products in tf32
    same = (found.ids.cpu() == expected.ids).double().mean()
    assert float(same) > 0.9  # scores that are nearly equal may change places


def test_many_additions_leave_few_segments():
    similarity, sides = exact("dot")
    index = ExactIndex.build(similarity, sides(0, 1))
    for item in range(1, 200):
        index.add(torch.tensor([item]), sides(item, 1))
    assert len(index._corpus.segments) <= 8  # log2 of 200
    assert index.ids.tolist() == list(range(200))


@pytest.mark.parametrize("kind", HERE)
def test_a_search_sees_one_moment_while_items_come_and_go(kind):
    """Pairs of items with one score come and go together: an answer has both or neither."""
    similarity, _ = exact("dot")
    index = KINDS[kind].build(similarity, dot(torch.tensor([[1.0]])), config=EVERYTHING[kind])
    stop = threading.Event()

    def change():
        for first in range(1, 2**20, 2):
            pair = torch.tensor([first, first + 1])
            index.add(pair, dot(torch.tensor([[9.0], [9.0]])))
            index.remove(pair)
            if stop.is_set():
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        answered = [index.search(dot(torch.tensor([[1.0]])), 3).ids[0].tolist() for _ in range(150)]
    finally:
        stop.set()
        thread.join()
    for row in answered:
        assert row == [0, -1, -1] or (row[1] == row[0] + 1 and row[0] % 2 == 1 and row[2] == 0), row


class Distance(Similarity):
    """Somebody's own similarity: the negative distance of two numbers."""

    def queries(self, x, users=None):
        return {"number": x[:, 0]}

    def items(self, table):
        return {"number": table[:, 0]}

    def score_each(self, queries, items):
        return -(queries["number"][:, None] - items["number"]).abs()


def test_a_similarity_of_ones_own_is_searched_exactly():
    index = ExactIndex.build(Distance(), {"number": torch.tensor([5.0, 1.0, 3.0])}, torch.tensor([50, 10, 30]))
    found = index.search({"number": torch.tensor([2.9, 9.0])}, 2)
    assert found.ids.tolist() == [[30, 10], [50, 30]]
    for kind in sorted(set(HERE) - {"exact"}):
        with pytest.raises(InvalidArgument, match=f"^items: expected a side called .*{kind}.*, got .* number"):
            KINDS[kind].build(Distance(), {"number": torch.ones(3)})


def test_more_queries_than_a_block_and_more_items_than_a_chunk(monkeypatch):
    similarity, sides = exact("dot")
    monkeypatch.setattr("serrate.index.base.QUERIES_AT_A_TIME", 3)
    monkeypatch.setattr("serrate.index.brute.PAIRS_AT_A_TIME", 20)
    queries, items = sides(1, 7), sides(2, 50)
    exclude = [[item] for item in range(7)]
    found = ExactIndex.build(similarity, items).search(queries, 9, exclude=jagged(exclude))
    expected = slow_search(similarity.score(queries, items), list(range(50)), 9, [set(row) for row in exclude])
    assert answers(found) == expected


def build(**changes):
    similarity, sides = exact("mixture")
    return KINDS["two-pass"].build(**{"similarity": similarity, "items": sides(2, 3)} | changes)


def nan(sides):
    sides["components"][1, 0, 2] = float("nan")
    return sides


@pytest.mark.parametrize(("call", "message"), [
    (lambda i, q: i.search(q, 0), "k: expected a whole number, at least 1, got 0"),
    (lambda i, q: i.search(q, True), "k: expected a whole number, at least 1, got True"),
    (lambda i, q: i.search(nan(q), 1), "queries: expected no NaN, got NaN in row 1 of 'components'"),
    (lambda i, q: i.search({}, 1), "queries: expected sides, tensors by name, got none"),
    (lambda i, q: i.search({"gate": q["gate"]}, 1), "queries: expected a side called 'components' or 'vector'"),
    (lambda i, q: i.search(q | {"gate": q["gate"][:1]}, 1), "queries: expected sides of equal length"),
    (lambda i, q: i.search(q, 1, exclude=jagged([[0]])), "exclude: expected 2 rows, as queries, got 1"),
    (lambda i, q: i.search(q, 1, allow=torch.ones(2)), "allow: expected one axis of integer item ids"),
    (lambda i, q: build(ids=torch.tensor([4, 7, 4])), "ids: expected each id once, got 4 twice"),
    (lambda i, q: build(ids=torch.tensor([4, 7])), "ids: expected 3 ids, one an item, got 2"),
    (lambda i, q: build(ids=torch.tensor([4, -7, 5])), "ids: expected ids of at least 0, got -7"),
    (lambda i, q: build(ids=torch.ones(3)), "ids: expected one axis of integer item ids"),
    (lambda i, q: build(items=nan(exact("mixture")[1](2, 3))), "items: expected no NaN, got NaN in row 1"),
    (lambda i, q: i.add(torch.tensor([9, 2]), exact("mixture")[1](1, 2)),
     "ids: expected ids that the index does not have, got 2"),
    (lambda i, q: i.add(torch.tensor([9]), dot(whole(1, 1, 4))), "items: expected a side 'components' as the index"),
    (lambda i, q: i.remove(torch.tensor([2, 5])), "ids: expected ids that the index has, got 5"),
    (lambda i, q: kind_named("two_pass"), r"kind: expected one of .*\(did you mean 'two-pass'\?\), got 'two_pass'"),
])
def test_malformed_calls_give_one_clear_line_and_change_nothing(call, message):
    similarity, sides = exact("mixture")
    index = KINDS["two-pass"].build(similarity, sides(2, 3))
    with pytest.raises(InvalidArgument, match="^" + message):
        call(index, sides(1, 2))
    assert index.ids.tolist() == [0, 1, 2]


def test_a_similarity_that_still_drops_is_refused():
    similarity, queries, items = mixture()
    index = ExactIndex.build(similarity, items)
    similarity.train()
    with pytest.raises(InvalidArgument, match=r"^similarity: expected a module in evaluation mode"):
        index.search(queries, 1)


def test_an_unknown_setting_is_refused():
    with pytest.raises(InvalidConfig, match=r"'treshold'.*did you mean 'threshold'"):
        build(config={"treshold": "kth"})


@pytest.mark.parametrize("kind", HERE)
def test_half_precision_sides_are_searched(kind):
    similarity, queries, items = mixture()
    half = {name: side.bfloat16() for name, side in items.items()}
    index = KINDS[kind].build(similarity, half, config=EVERYTHING[kind])
    plain = {name: side.float() for name, side in half.items()}
    expected = ExactIndex.build(similarity, plain).search(queries, 10)
    assert torch.allclose(index.search(queries, 10).scores, expected.scores, atol=1e-4)


def test_what_is_no_index_is_told(tmp_path):
    with pytest.raises(InvalidData, match="is not a saved index"):
        ExactIndex.load(tmp_path, exact("dot")[0])
