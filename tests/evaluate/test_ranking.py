"""Ranks: pessimistic ties, seen items, any chunking, bounded memory."""

from math import inf, log2

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serrate.errors import InvalidArgument
from serrate.evaluate import EvaluateConfig, evaluate

CONFIG = EvaluateConfig(cutoffs=(1, 2))


@pytest.fixture
def three_users(make_histories, make_examples, table_scorer):
    """Six items; histories are 0 | 1 2 | 3; to predict are 2 | 0 3 | 3 again."""
    histories = make_histories([[0, 2], [1, 2, 0, 3], [3, 3]], 6)
    examples = make_examples((0, 1, 2), (1, 2, 4), (2, 1, 2))
    scorer = table_scorer(torch.tensor([[9.0, 5.0, 4.0, 3.0, 2.0, 1.0],
                                        [1.0, 9.0, 8.0, 7.0, 7.0, 0.0],
                                        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    return scorer, histories, examples


def test_three_users_by_hand(three_users):
    found = evaluate(*three_users, CONFIG)
    # user 0: 0 is seen, so 1 leads and 2 is second. user 1: 1 and 2 are seen; 3 ties with 4, so it is second, and
    # 0 is third. user 2: the item to predict was seen.
    assert found.ranks.tolist() == [[2.0], [3.0, 2.0], [inf]]
    assert found.users.tolist() == [0, 1, 2]
    assert (found.seen_truths, found.without_truth) == (1, 0)
    values, second = found.values(), 1 / log2(3)
    assert values["hr@1"] == 0
    assert values["hr@2"] == pytest.approx(2 / 3)
    assert values["recall@2"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert values["ndcg@2"] == pytest.approx((second + second / (1 + second)) / 3)
    assert values["mrr"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert values["coverage@1"] == pytest.approx(3 / 6)  # 1 | 3 | 0
    assert values["coverage@2"] == pytest.approx(5 / 6)  # 1 2 | 3 4 | 0 1


def test_seen_items_stay_candidates_on_request(three_users):
    found = evaluate(*three_users, CONFIG.model_copy(update={"exclude_seen": False}))
    assert found.ranks.tolist() == [[3.0], [5.0, 4.0], [6.0]]  # user 2: all six tie
    assert found.seen_truths == 0


@pytest.mark.parametrize("keys", [None, [7, -1, 5]])
def test_a_scorer_sees_the_keys_of_the_users_where_they_are_given(three_users, keys):
    scorer, histories, examples = three_users
    seen, score = [], scorer.score

    def keep(batch):
        seen.extend(batch.context["user_key"].tolist() if "user_key" in batch.context else [None] * len(batch))
        return score(batch)

    scorer.score = keep
    evaluate(scorer, histories, examples, CONFIG.model_copy(update={"tokens_per_batch": 1}),
             user_keys=None if keys is None else torch.tensor(keys))
    assert seen == (keys or [None] * 3)


def test_a_constant_score_is_worth_nothing(make_histories, make_examples, table_scorer):
    histories, examples = make_histories([[0, 1]], 100), make_examples((0, 1, 2))
    assert evaluate(table_scorer(torch.ones(1, 100)), histories, examples, CONFIG).ranks.tolist() == [[99.0]]


def test_an_item_to_predict_twice_counts_once(make_histories, make_examples, table_scorer):
    histories, examples = make_histories([[0, 1, 2, 1, 1]], 4), make_examples((0, 1, 5))
    found = evaluate(table_scorer(torch.tensor([[0.0, 3.0, 2.0, 1.0]])), histories, examples, CONFIG)
    assert found.ranks.tolist() == [[1.0, 2.0]]
    assert found.values()["ndcg@2"] == pytest.approx(1.0)


def test_an_empty_history_is_an_example(make_histories, make_examples, table_scorer):
    histories, examples = make_histories([[1]], 2), make_examples((0, 0, 1))
    assert evaluate(table_scorer(torch.tensor([[0.0, 1.0]])), histories, examples, CONFIG).ranks.tolist() == [[1.0]]


def test_examples_without_truth_are_left_out_and_counted(three_users, make_examples):
    scorer, histories, _ = three_users
    found = evaluate(scorer, histories, make_examples((2, 2, 2), (1, 2, 4), (1, 2, 2), (0, 1, 2)), CONFIG)
    assert found.users.tolist() == [1, 0]
    assert found.ranks.tolist() == [[3.0, 2.0], [2.0]]
    assert found.without_truth == 2


def test_the_scorer_sees_the_newest_events_and_the_filter_all(make_histories, make_examples):
    class Newest:
        num_items = 5

        def score(self, batch):
            assert batch["item"].tolist() == [[2, 3]]
            return torch.tensor([[9.0, 8.0, 7.0, 6.0, 0.0]])

    histories, examples = make_histories([[0, 1, 2, 3, 4]], 5), make_examples((0, 4, 5))
    assert evaluate(Newest(), histories, examples, CONFIG, max_length=2).ranks.tolist() == [[1.0]]


@pytest.mark.parametrize("bad", [float("nan"), inf, -inf])
def test_scores_that_are_not_finite_give_one_clear_line(three_users, bad):
    scorer, histories, examples = three_users
    scorer.table[1, 4] = bad
    with pytest.raises(InvalidArgument, match=r"^scorer: expected finite scores, got ") as error:
        evaluate(scorer, histories, examples, CONFIG)
    assert "\n" not in str(error.value)


def test_other_malformed_input(three_users, table_scorer, make_examples):
    scorer, histories, examples = three_users
    with pytest.raises(InvalidArgument, match=r"^scorer: expected 6 items, as histories, got 5"):
        evaluate(table_scorer(torch.zeros(3, 5)), histories, examples, CONFIG)
    with pytest.raises(InvalidArgument, match=r"^examples: expected at least one example with an event to predict"):
        evaluate(scorer, histories, make_examples(), CONFIG)
    scorer.num_items, scorer.table = 6, torch.zeros(3, 7)
    with pytest.raises(InvalidArgument, match=r"^scorer: expected scores of shape \(3, 6\), got \(3, 7\)"):
        evaluate(scorer, histories, examples, CONFIG)


def test_a_module_is_evaluated_without_dropout_or_gradients(make_histories, make_examples):
    class Model(nn.Module):
        num_items = 3

        def score(self, batch):
            assert not self.training
            assert torch.is_inference_mode_enabled()
            return torch.zeros(len(batch), 3)

    model = Model().train()
    evaluate(model, make_histories([[0, 1]], 3), make_examples((0, 1, 2)), CONFIG)
    assert model.training


rows_of_items = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=8), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rows=rows_of_items, data=st.data())
def test_ranks_by_brute_force_whatever_the_chunks(make_histories, make_examples, table_scorer, rows, data):
    histories = make_histories(rows, 8)
    parts = [(user, end := data.draw(st.integers(0, len(row) - 1)), data.draw(st.integers(end + 1, len(row))))
             for user, row in enumerate(rows)]
    row_of_scores = st.lists(st.integers(0, 4), min_size=8, max_size=8)
    table = data.draw(st.lists(row_of_scores, min_size=len(rows), max_size=len(rows)))
    exclude = data.draw(st.booleans())
    config = EvaluateConfig(cutoffs=(1, 3), exclude_seen=exclude, score_budget=data.draw(st.integers(1, 40)),
                            tokens_per_batch=data.draw(st.integers(1, 20)))
    expected, top = [], set()
    for user, end, truth_end in parts:
        seen = set(rows[user][:end]) if exclude else set()
        candidates = [item for item in range(8) if item not in seen]
        expected.append([inf if item in seen else
                         1.0 + sum(table[user][other] >= table[user][item] for other in candidates if other != item)
                         for item in sorted(set(rows[user][end:truth_end]))])
        top |= set(sorted(candidates, key=lambda item, user=user: (-table[user][item], item))[:3])
    scorer = table_scorer(torch.tensor(table, dtype=torch.float32))
    found = evaluate(scorer, histories, make_examples(*parts), config)
    assert found.ranks.tolist() == expected
    assert found.coverage[3] == len(top) / 8
    assert all(count * 8 <= max(config.score_budget, 8) for count, _ in scorer.batches)


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation gives."""

    cells = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.cells = max([self.cells, *sizes])
        return out


def test_memory_does_not_grow_with_users_times_items(make_histories, make_examples):
    users, items, budget = 3000, 500, 10_000

    class Constant:
        num_items = items

        def score(self, batch):
            return torch.arange(items).expand(len(batch), items).float()

    histories = make_histories([[user % items] * 2 + [0] * 3 for user in range(users)], items)
    examples = make_examples(*((user, 2, 5) for user in range(users)))
    with LargestTensor() as largest:
        evaluate(Constant(), histories, examples, EvaluateConfig(score_budget=budget))
    assert largest.cells <= max(2 * budget, 5 * users)  # and not users × items, a hundred times more
