import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.data import Examples, TokenBatches, chunks, history_batch, seen_items, shard, training_batch
from serrate.errors import InvalidArgument

LENGTHS = st.lists(st.integers(0, 12), max_size=30)
BATCHES = st.builds(TokenBatches, LENGTHS.map(lambda lengths: np.array(lengths, dtype=np.int64)),
                    st.integers(1, 20), st.integers(0, 3), st.booleans())


@given(batches=BATCHES, epoch=st.integers(0, 3))
def test_an_epoch_is_a_permutation_packed_greedily(batches, epoch):
    lengths, order = batches.lengths, np.arange(len(batches.lengths))
    if batches.shuffle:
        order = np.random.default_rng([batches.seed, epoch]).permutation(len(lengths))
    packed: list[list[int]] = []
    for example in order.tolist():
        if packed and lengths[packed[-1]].sum() + lengths[example] <= batches.tokens_per_batch:
            packed[-1].append(example)
        else:
            packed.append([example])

    made = [index.tolist() for _, index in batches.epoch(epoch)]

    if batches.shuffle:  # the rows of a batch stand in order of length, equal ones as they came
        packed = [sorted(batch, key=lambda example: lengths[example]) for batch in packed]
    assert made == packed
    assert len(made) == batches.num_batches(epoch)


@given(batches=BATCHES, epoch=st.integers(0, 3), start=st.integers(0, 20))
def test_an_epoch_resumes_exactly(batches, epoch, start):
    again = TokenBatches(batches.lengths, batches.tokens_per_batch, batches.seed, batches.shuffle)
    tail = [(number, index.tolist()) for number, index in again.epoch(epoch, start)]
    assert tail == [(number, index.tolist()) for number, index in batches.epoch(epoch)][start:]


def test_the_permutation_is_that_of_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate([index for _, index in TokenBatches(np.ones(50, int), 7, seed).epoch(epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_packing_by_hand():
    batches = TokenBatches(torch.tensor([3, 4, 9, 0, 2, 0]), 7, seed=0, shuffle=False)
    assert [index.tolist() for _, index in batches.epoch(0)] == [[0, 1], [2], [3, 4, 5]]


def test_lengths_may_differ_from_epoch_to_epoch():
    drawn = {0: np.array([1, 2, 3]), 1: np.array([1, 1, 1])}
    batches = TokenBatches(np.array([3, 3, 3]), 3, seed=0, shuffle=False, drawn=drawn.__getitem__)
    packed = [[index.tolist() for _, index in batches.epoch(epoch)] for epoch in (0, 1)]
    assert packed == [[[0, 1], [2]], [[0, 1, 2]]]
    assert [batches.num_batches(epoch) for epoch in (0, 1)] == [2, 1]
    assert [batches.lengths_in(epoch).tolist() for epoch in (0, 1)] == [[1, 2, 3], [1, 1, 1]]
    shuffled = TokenBatches(np.array([3, 3, 3]), 6, seed=0, drawn={0: np.array([3, 1, 2])}.__getitem__)
    assert [index.tolist() for _, index in shuffled.epoch(0)] == [[1, 2, 0]]  # in order of the lengths drawn


@pytest.mark.parametrize(("most_rows", "expected"), [
    (None, [[0, 1], [2], [3, 4, 5]]),
    (2, [[0, 1], [2], [3, 4], [5]]),
    (1, [[0], [1], [2], [3], [4], [5]]),
])
def test_chunks_by_hand(most_rows, expected):
    assert [index.tolist() for index in chunks(torch.tensor([3, 4, 9, 0, 2, 0]), 7, most_rows)] == expected
    assert list(chunks(torch.tensor([], dtype=torch.int64), 7, most_rows)) == []


@pytest.mark.parametrize(("arguments", "name"), [
    (([1, -1], 5, 0), "lengths"),
    (([[1]], 5, 0), "lengths"),
    (([1], 0, 0), "tokens_per_batch"),
    (([1], 5, -1), "seed"),
])
def test_arguments_out_of_range_are_refused(arguments, name):
    with pytest.raises(InvalidArgument, match=f"^{name}:"):
        TokenBatches(np.array(arguments[0]), *arguments[1:])


@given(lengths=LENGTHS.filter(len), world=st.integers(1, 5), data=st.data())
def test_shards_are_the_batch_in_order(lengths, world, data):
    lengths = np.array(lengths)
    index = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True)), dtype=np.int64)
    parts = [shard(index, lengths, rank, world) for rank in range(world)]
    assert np.concatenate(parts).tolist() == index.tolist()
    longest = int(lengths[index].max()) if len(index) else 0
    share = lengths[index].sum() / world
    assert all(lengths[part].sum() <= share + longest for part in parts)


def test_shards_by_hand():
    lengths = np.array([5, 1, 1, 1, 2, 0, 0])
    assert [shard(np.array([0, 1, 2, 3, 4]), lengths, rank, 2).tolist() for rank in (0, 1)] == [[0], [1, 2, 3, 4]]
    assert [shard(np.array([5, 6]), lengths, rank, 2).tolist() for rank in (0, 1)] == [[], [5, 6]]  # no events
    with pytest.raises(InvalidArgument, match="rank: expected 0 … 1, got 2"):
        shard(np.array([0]), lengths, 2, 2)


ROWS = [[1, 2, 3, 4], [5], [6, 7]]
EXAMPLES = Examples(np.array([0, 1, 2, 0]), np.array([4, 1, 2, 2]), np.array([4, 1, 2, 4]))


@pytest.fixture(scope="module")
def histories(histories_of):
    weight = [[0.5, 1.5, 2.5, 3.5], [4.5], [5.5, 6.5]]
    return histories_of(ROWS, time=[[10, 20, 30, 40], [50], [60, 70]], weight=weight)


def test_a_training_batch_predicts_the_next_event(histories):
    batch = training_batch(histories, EXAMPLES, np.array([0, 1, 2, 3]), max_length=2)
    assert batch["item"].tolist() == [[2, 3], [], [6], [1]]
    assert batch["target"].tolist() == [[3, 4], [], [7], [2]]
    assert batch["weight"].tolist() == [[2.5, 3.5], [], [6.5], [1.5]]
    assert batch["time"].tolist() == [[20, 30], [], [60], [10]]
    assert batch["asked"].tolist() == [[30, 40], [], [70], [20]]  # when the target happened
    assert batch.context["user"].tolist() == [0, 1, 2, 0]
    assert batch["item"].dtype == batch["target"].dtype == torch.int64
    assert batch["item"].longest == 2


def test_a_history_batch_holds_the_newest_events_and_the_truth(histories):
    batch = history_batch(histories, EXAMPLES, [3, 0, 1], max_length=3)
    assert batch["item"].tolist() == [[1, 2], [2, 3, 4], [5]]
    assert batch["time"].tolist() == [[10, 20], [20, 30, 40], [50]]
    assert batch["asked"].tolist() == [[20, 30], [30, 40, 40], [50]]  # the first event to predict; none: its own
    assert batch.context["truth"].tolist() == [[3, 4], [], []]
    assert list(batch) == ["item", "time", "asked"]


@pytest.mark.parametrize(("unit", "ticks"), [("integer", 1), ("integer", 10**3), ("integer", 10**6),
                                             ("integer", 10**9), ("microseconds", 10**6)])
def test_times_are_in_seconds(unit, ticks, histories_of):
    start = 1_700_000_000
    times = [[(start + second) * ticks + ticks // 3 for second in row] for row in ([0, 60, 3600], [-5, 5])]
    stored = histories_of([[1, 2, 3], [4, 5]], time_unit=unit, time=times)
    examples = Examples(np.array([0, 1]), np.array([2, 1]), np.array([3, 2]))
    for made in (training_batch(stored, examples.select([0]), np.array([0]), None),
                 history_batch(stored, examples.select([1]), np.array([0]), None)):
        assert made["time"].dtype == made["asked"].dtype == torch.int64
        assert (made["time"].values - start).tolist() in ([0], [-5])
        assert (made["asked"].values - start).tolist() in ([60], [5])
    assert stored.fields["time"].tolist() == [time for row in times for time in row]  # what is stored stays


def test_a_log_without_times_asks_nothing(histories_of):
    stored = histories_of(ROWS, time_unit=None)
    assert list(training_batch(stored, EXAMPLES, np.array([0]), None)) == ["item", "target"]
    assert list(history_batch(stored, EXAMPLES, np.array([0]), None)) == ["item"]


def test_seen_items_are_not_truncated(histories):
    assert seen_items(histories, EXAMPLES, torch.tensor([0, 3])).tolist() == [[1, 2, 3, 4], [1, 2]]


def test_an_empty_batch(histories):
    for made in (training_batch(histories, EXAMPLES, np.empty(0, int), 5),
                 history_batch(histories, EXAMPLES, np.empty(0, int), 5)):
        assert len(made) == 0
        assert made.num_events == 0


@given(rows=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=5),
       max_length=st.one_of(st.none(), st.integers(1, 8)), data=st.data())
def test_batches_are_those_of_the_oracle(histories_of, rows, max_length, data):
    histories = histories_of(rows)
    ends = np.array([data.draw(st.integers(0, len(row))) for row in rows])
    truth_ends = np.array([data.draw(st.integers(end, len(row))) for end, row in zip(ends, rows, strict=True)])
    examples = Examples(np.arange(len(rows)), ends, truth_ends)
    index = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)), dtype=np.int64)
    newest = slice(-max_length, None) if max_length else slice(None)
    training, history = (make(histories, examples, index, max_length) for make in (training_batch, history_batch))
    past = [rows[row][: ends[row]] for row in index]
    assert training["item"].tolist() == [row[:-1][newest] for row in past]
    assert training["target"].tolist() == [row[1:][newest] for row in past]
    assert history["item"].tolist() == [row[newest] for row in past]
    assert history.context["truth"].tolist() == [rows[row][ends[row] : truth_ends[row]] for row in index]
    assert seen_items(histories, examples, index).tolist() == past
    for jagged in (training["item"], history["item"], history.context["truth"]):
        jagged.check()
