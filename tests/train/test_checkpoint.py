"""Checkpoints: everything comes back bit for bit, the newest whole one counts, damage is one line."""

import pytest
import torch
from torch import nn

from serrate.errors import InvalidRun
from serrate.train import checkpoint
from serrate.train.checkpoint import Position


def trained(steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[1].parameters()}], lr=0.1)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_model_optimizer_and_position_come_back(tmp_path, steps):
    model, optimizer = trained(steps)
    position = Position(epoch=2, batch=5, step=steps, best=0.1 + 0.2, best_epoch=1, stale=1, log_bytes=77,
                        loss_sum=0.1, loss_weight=3.0)
    checkpoint.save(tmp_path, position, model, optimizer)
    other, other_optimizer = trained(2, seed=1)
    other_optimizer = torch.optim.AdamW(other_optimizer.param_groups)
    assert checkpoint.load(tmp_path, other, other_optimizer) == position
    assert_same(model, other)
    for each in ((model, optimizer), (other, other_optimizer)):
        step(*each)
    assert_same(model, other)  # the optimiser's state came back too


def test_the_newest_checkpoint_alone_stays(tmp_path):
    model, optimizer = trained(1)
    for epoch, number in ((0, 0), (0, 9), (0, 10), (1, 10)):
        checkpoint.save(tmp_path, Position(epoch=epoch, step=number), model, optimizer)
        assert len(list(tmp_path.glob("step-*"))) == 1
    assert checkpoint.load(tmp_path, model, optimizer) == Position(epoch=1, step=10)


def test_of_two_that_a_killed_process_left_the_newer_counts(tmp_path):
    model, optimizer = trained(1)
    checkpoint.save(tmp_path / "a", Position(epoch=0, step=10), model, optimizer)
    checkpoint.save(tmp_path / "b", Position(epoch=1, step=10), model, optimizer)
    for place in [*tmp_path.glob("a/*"), *tmp_path.glob("b/*")]:
        place.rename(tmp_path / place.name)
    (tmp_path / ".step-000000011-epoch-000001.partial").mkdir()
    assert checkpoint.load(tmp_path, model, optimizer).epoch == 1


def test_there_is_none(tmp_path):
    assert not checkpoint.exists(tmp_path / "checkpoints")
    with pytest.raises(InvalidRun, match="has no checkpoint to resume from"):
        checkpoint.load(tmp_path / "checkpoints", *trained(0))


def cut(path):
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: cut(place / "state.safetensors"),
        lambda place: (place / "state.safetensors").unlink(),
        lambda place: cut(place / "position.json"),
        lambda place: (place / "position.json").write_text('{"steps": 3}'),
        lambda place: (place / "position.json").write_text("[]"),
        lambda place: (place / "position.json").unlink(),
    ],
)
def test_damage_is_one_line(tmp_path, damage):
    model, optimizer = trained(1)
    checkpoint.save(tmp_path, Position(step=1), model, optimizer)
    damage(tmp_path / "step-000000001-epoch-000000")
    with pytest.raises(InvalidRun, match=r"^run: checkpoint .* cannot be used \(.+\)$"):
        checkpoint.load(tmp_path, model, optimizer)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoint.save(tmp_path, Position(), *trained(1))
    other = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    with pytest.raises(InvalidRun, match="cannot be used"):
        checkpoint.load(tmp_path, other, torch.optim.AdamW(other.parameters()))


def test_the_best_weights_come_back_and_none_are_needed(tmp_path):
    model, _ = trained(3)
    checkpoint.save_best(tmp_path, model)
    other, _ = trained(0, seed=1)
    checkpoint.load_best(tmp_path, other)
    assert_same(model, other)
    checkpoint.load_best(tmp_path / "nothing", other)
    assert_same(model, other)
