"""Raw ids in, raw ids out: one history at a time is the truth that batches are held to."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serrate import run_folder
from serrate.errors import InvalidArgument, InvalidRun
from serrate.jagged import EventBatch, JaggedTensor
from serrate.serve import Predictor, Recommended
from serrate.serve import predictor as predictor_module


def by_hand(predictor, history, k):
    """The best `k` raw ids by a full sort of the model's scores, the history's own items left out."""
    dense = torch.from_numpy(predictor.items.encode(history))
    known = dense[dense >= 0]
    newest = known[-predictor.model.config.max_length :]
    batch = EventBatch({"item": JaggedTensor.from_lengths(newest, torch.tensor([len(newest)]))})
    with torch.no_grad():
        scores = predictor.model.score(batch)
    order = sorted(range(len(predictor.items)), key=lambda item: (-float(scores[0, item]), item))
    return predictor.items.decode([item for item in order if item not in set(known.tolist())][:k])


@pytest.mark.parametrize(
    "history", [[105], [101, 102, 103], [129, 100, 129, 111], list(range(100, 120)), [999, 104, -1]])
def test_the_best_by_score_without_the_seen(predictor, history):
    (answer,) = predictor.recommend([history], k=7)
    assert answer.ids == by_hand(predictor, history, 7)
    assert answer.scores == sorted(answer.scores, reverse=True)
    assert answer.titles == [None] * 7


def test_seen_items_come_back_when_asked_for(predictor):
    history = list(range(100, 130))
    assert predictor.recommend([history])[0].ids == []
    assert len(predictor.recommend([history], exclude_seen=False)[0].ids) == 10
    old = predictor.recommend([[100, *range(110, 116)]], k=30)[0].ids  # beyond max_length 5, but seen all the same
    assert 100 not in old
    assert len(old) == 23


def test_users_are_known_by_their_raw_ids(acquainted, predictor):
    history = [[101, 102, 103]]

    def best(**told):
        return acquainted.recommend(history, k=30, **told)[0].ids

    nobody = best()
    assert best(users=[3]) == best(users=["3"]) == best(users=[None]) == nobody
    assert best(users=[7]) == best(users=["7"]) == best(users=np.array([7]))
    assert len({tuple(best(users=[user])) for user in (0, 1, 2, 7, 3)}) == 5
    assert predictor.recommend(history, users=[7]) == predictor.recommend(history)  # reads none


@pytest.mark.parametrize(("users", "got"), [([1, 2], "2"), ([], "0"), ("7", "'7'"), (7, "7")])
def test_users_are_one_a_history(acquainted, users, got):
    with pytest.raises(InvalidArgument, match=rf"users: expected .*, got {got}$"):
        acquainted.recommend([[101]], users=users)


def test_unknown_ids_are_reported_and_left_out(predictor):
    known, mixed = predictor.recommend([[101, 102], [7, 101, "x", 102, None, 1.5, 7]])
    assert known.unknown == []
    assert mixed.unknown == [7, "x", None, 1.5, 7]
    assert mixed.ids == known.ids


def test_a_history_without_known_items_gets_the_most_frequent(predictor):
    frequent = [100, 101, 102]  # dense order is by frequency
    for answer in predictor.recommend([[], [7, 8]], k=3):
        assert answer.ids == frequent
    assert predictor.recommend([[]], k=3, deny=[100, 102])[0].ids == [101, 103, 104]


def test_allow_and_deny(predictor):
    everything = predictor.recommend([[101]], k=30)[0].ids
    assert len(everything) == 29
    allowed = predictor.recommend([[101]], k=30, allow=[110, 105, 101, 999])[0].ids
    assert allowed == [item for item in everything if item in (105, 110)]  # 101 was seen, 999 is no item
    assert predictor.recommend([[101]], k=30, deny=everything[:20])[0].ids == everything[20:]
    assert predictor.recommend([[101]], allow=[])[0] == Recommended([], [], [], [])
    assert predictor.recommend([[101]], allow=[999])[0].ids == []
    assert predictor.recommend([[101]], allow={105}, deny=(105,))[0].ids == []
    assert predictor.recommend([[101]], allow=iter([105]))[0].ids == [105]


def test_fewer_than_k(predictor):
    assert len(predictor.recommend([[101]], k=1000)[0].ids) == 29
    assert len(predictor.recommend([[101]], k=10**12)[0].ids) == 29  # no memory is taken for what cannot be


def test_integers_may_be_spelled_as_text_and_the_other_way_round(predictor, predictor_of):
    assert predictor.recommend([["101", "102"]])[0].ids == predictor.recommend([[101, 102]])[0].ids
    named = predictor_of(["7", "a", "B00"], name="named")
    assert named.recommend([[7]])[0] == named.recommend([["7"]])[0]
    assert named.recommend([["a"]], k=3)[0].unknown == []
    assert set(named.recommend([["a"]], k=3)[0].ids) == {"7", "B00"}


def test_titles_come_along(predictor_of):
    titled = predictor_of(["a", "b"], titles=["Alpha", None])
    answer = titled.recommend([[]], k=2)[0]
    assert answer == Recommended(["a", "b"], [0.0, 0.0], ["Alpha", None], [])


@pytest.mark.parametrize("rows", [
    (), [np.array([101, 102]), np.array([103])], np.array([[101, 102], [103, 104]]), ((101,), (102,)),
    pd.Series([[101], [102, 103]]), ([item] for item in (101, 102)), [range(101, 103)]],
    ids=["nobody", "arrays", "array", "tuples", "series", "generator", "range"])
def test_lists_come_in_many_shapes(rows, predictor):
    rows = list(rows) if not isinstance(rows, list) else rows
    plain = [[int(item) for item in row] for row in rows]
    assert predictor.recommend(rows, k=3) == predictor.recommend(plain, k=3)
    assert len(predictor.recommend(iter(rows))) == len(plain)


ROWS = st.lists(st.lists(st.integers(95, 135), max_size=12), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_together_as_one_at_a_time(predictor, rows):
    together = predictor.recommend(rows, k=5)
    assert len(together) == len(rows)
    for row, answer in zip(rows, together, strict=True):
        (alone,) = predictor.recommend([row], k=5)
        assert (answer.ids, answer.unknown) == (alone.ids, alone.unknown)
        assert answer.scores == pytest.approx(alone.scores, abs=1e-5)


@pytest.mark.parametrize(("events", "scores"), [(1, 1), (7, 100), (2**16, 35)])
def test_chunks_do_not_show(events, scores, predictor, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [rng.integers(100, 130, rng.integers(0, 15)).tolist() for _ in range(40)]
    whole = predictor.recommend(rows, k=4)
    monkeypatch.setattr(predictor_module, "_EVENTS_AT_A_TIME", events)
    monkeypatch.setattr(predictor_module, "_SCORES_AT_A_TIME", scores)
    assert [answer.ids for answer in predictor.recommend(rows, k=4)] == [answer.ids for answer in whole]


def test_no_more_scores_at_once_than_there_is_room_for(predictor, monkeypatch):
    sizes = []
    score = predictor.model.score
    monkeypatch.setattr(predictor.model, "score", lambda batch, items: sizes.append(len(batch)) or score(batch))
    monkeypatch.setattr(predictor_module, "_SCORES_AT_A_TIME", 30 * 8)
    predictor.recommend([[101]] * 50)
    assert sum(sizes) == 50
    assert max(sizes) == 8


def test_ties_go_to_the_more_frequent_item(predictor):
    with torch.no_grad():
        predictor.model.items.weight[3:9] = 0  # six items score 0
    alike = [item for item in predictor.recommend([[120]], k=30)[0].ids if 103 <= item < 109]
    assert alike == [103, 104, 105, 106, 107, 108]
    for k in range(1, 30):
        assert predictor.recommend([[120]], k=k)[0].ids == predictor.recommend([[120]], k=30)[0].ids[:k]


@pytest.mark.parametrize(("arguments", "named"), [
    (([101, 102],), "histories"), (("101",), "histories"), ((5,), "histories"), ((None,), "histories"),
    ((["101"],), "histories"), (([{101}],), "histories"), (([[101]], 0), "k"), (([[101]], -1), "k"),
    (([[101]], 2.5), "k"), (([[101]], True), "k"), (([[101]], "3"), "k"),
])
def test_wrong_arguments_are_named(arguments, named, predictor):
    with pytest.raises(InvalidArgument, match=f"^{named}: expected"):
        predictor.recommend(*arguments)


@pytest.mark.parametrize("filters", [{"allow": "101"}, {"deny": 101}, {"allow": 101}])
def test_wrong_filters_are_named(filters, predictor):
    (name,) = filters
    with pytest.raises(InvalidArgument, match=f"^{name}: expected a list of item ids"):
        predictor.recommend([[101]], **filters)


def test_what_open_refuses(run_of, rewrite_config):
    run = run_of([1, 2, 3])
    with pytest.raises(InvalidArgument, match=r"^device: expected auto or cpu"):
        Predictor.open(run, device="tpu")
    rewrite_config(run, model={"kind": "transformer", "widht": 3})
    with pytest.raises(InvalidRun, match=r"config\.json.*did you mean 'width'"):
        Predictor.open(run)
    with pytest.raises(InvalidRun, match="nothing there"):
        Predictor.open(run / "elsewhere")


def test_a_run_of_an_older_format_is_migrated(run_of, rewrite_config, monkeypatch):
    run = run_of([1, 2, 3])
    expected = Predictor.open(run).recommend([[1]])
    rewrite_config(run, format_version=0, models="old")
    monkeypatch.setitem(run_folder.MIGRATIONS, 0, lambda values: values)
    assert Predictor.open(run).recommend([[1]]) == expected
