"""Training on shortened histories, and in the order of the users: what a batch holds, exact resume, refusals."""

import json
from itertools import pairwise

import pytest

import serrate.train.loop as loop
from serrate.distributed import World
from serrate.errors import InvalidConfig
from serrate.train import RunConfig, resume, train
from serrate.train.loop import Trainer
from serrate.train.next_item import prepare_material

SHORT = {"stochastic_length": {"alpha": 1.3}}  # 16 events at most: histories of more than 6 are thinned to 6


@pytest.fixture
def batches(monkeypatch):
    """Collect the batches that a training steps on."""
    seen, plain = [], loop.to_device
    monkeypatch.setattr(loop, "to_device", lambda batch, device: seen.append(batch) or plain(batch, device))
    return seen


def test_training_reads_the_lengths_drawn_for_each_epoch(histories, small, tmp_path, batches):
    trainer = Trainer(small(train={**SHORT, "epochs": 2}), histories, tmp_path, World())
    planned = trainer.objective.material.batches
    trainer.train()
    for epoch in range(2):
        mine = [batches.pop(0) for _ in range(planned.num_batches(epoch))]
        lengths = planned.lengths_in(epoch)
        assert sorted(n for batch in mine for n in batch.lengths.tolist()) == sorted(lengths.tolist())
        assert all(batch.num_events <= 512 for batch in mine)
        assert lengths.sum() < 0.8 * planned.lengths.sum()
        assert set(lengths[lengths != planned.lengths].tolist()) == {6}
    assert planned.lengths_in(0).tolist() != planned.lengths_in(1).tolist()
    start = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert (start["events"], start["batches"]) == (planned.lengths_in(0).sum(), planned.num_batches(0))


def test_what_comes_next_is_what_truly_came_next(histories, small, tmp_path, batches):
    Trainer(small(train={**SHORT, "epochs": 1}), histories, tmp_path, World()).train()
    items, offsets = histories.fields["item"].tolist(), histories.offsets.tolist()
    thinned = 0
    for batch in batches:
        for user, row, target in zip(batch.context["user"].tolist(), batch["item"].tolist(), batch["target"].tolist(),
                                     strict=True):
            history = items[offsets[user]:offsets[user + 1]]
            followed = set(pairwise(history))
            assert set(zip(row, target, strict=True)) <= followed
            thinned += not set(pairwise(row)) <= followed
    assert thinned > 10


def test_evaluation_reads_whole_histories(histories, small, tmp_path, monkeypatch):
    read = []
    trainer = Trainer(small(train=SHORT), histories, tmp_path, World())
    plain = trainer.model.score
    monkeypatch.setattr(trainer.model, "score", lambda batch: read.append(batch.longest) or plain(batch))
    trainer.objective.evaluate(trainer.model, trainer.objective.material.parts.test)
    assert max(read) == 16


def test_a_stopped_run_of_shortened_histories_resumes_to_the_same_result(histories, small, tmp_path, files):
    config = small(train={**SHORT, "checkpoint_seconds": 0})
    train(config, histories, tmp_path / "whole")

    class Stopped(Exception):  # noqa: N818
        pass

    for at in (2, 5, 8):
        left = iter(range(at))

        def listen(record, left=left):
            if next(left, None) is None:
                raise Stopped

        with pytest.raises(Stopped):
            train(config, histories, tmp_path / f"{at}", listeners=[listen])
        resume(tmp_path / f"{at}")
        assert files(tmp_path / f"{at}") == files(tmp_path / "whole"), at


def test_without_shuffling_users_train_in_their_order(histories, small, tmp_path, batches):
    trainer = Trainer(small(train={"shuffle": False, "windows": "newest", "epochs": 2}), histories, tmp_path, World())
    trainer.train()
    users = [user for batch in batches for user in batch.context["user"].tolist()]
    learnt = [user for user, length in enumerate(histories.lengths.tolist()) if length - 2 >= 2]  # two are held out
    assert users == learnt * 2


def test_alpha_2_is_the_plain_run(histories, small):
    plain, same = (prepare_material(small(train=train), histories)
                   for train in ({}, {"stochastic_length": {"alpha": 2}}))
    assert plain.batches.lengths.tolist() == same.batches.lengths_in(0).tolist()


@pytest.mark.parametrize(("values", "message"), [
    ({"alpha": 1}, "config: train.stochastic_length.alpha: expected greater than 1, got 1"),
    ({"alpha": 2.5}, "config: train.stochastic_length.alpha: expected less than or equal to 2, got 2.5"),
    ({"sampler": "oldest"}, "config: train.stochastic_length.sampler: expected 'age', 'uniform' or 'newest', "
                            "got 'oldest'"),
    ({"alfa": 1.5}, "config: unknown key 'train.stochastic_length.alfa' (did you mean 'alpha'?)"),
])
def test_what_is_wrong_is_one_line(values, message):
    with pytest.raises(InvalidConfig) as caught:
        RunConfig.parse({"train": {"stochastic_length": values}})
    assert str(caught.value) == message
