"""The loop: windows, a falling loss, validation that chooses, weights, exact resume inside one process."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import serrate.train.loop as loop
import serrate.train.next_item as next_item
from serrate.data import ColumnMapping, DataConfig, Examples, TokenBatches, prepare, training_batch
from serrate.distributed import World
from serrate.errors import InvalidArgument, InvalidConfig, InvalidData
from serrate.models import HSTUConfig
from serrate.train import resume, train
from serrate.train.lengths import padding_avoided
from serrate.train.loop import Trainer
from serrate.train.next_item import NextItem, prepare_material, training_windows

# --- windows ---


def examples_of(*lengths: int) -> Examples:
    ends = np.array(lengths, dtype=np.int64)
    return Examples(np.arange(len(lengths)), ends, ends)


def windows(lengths, max_length: int, *, every: bool) -> list[tuple[int, int]]:
    made = training_windows(examples_of(*lengths), max_length, every=every)
    assert made.rows.dtype == made.ends.dtype == np.int64
    assert np.array_equal(made.ends, made.truth_ends)
    return list(zip(made.rows.tolist(), made.ends.tolist(), strict=True))


def test_windows_by_hand():
    # a history of 8 events has 7 targets: three windows of 3, 3 and 1 of them
    assert windows([8], 3, every=True) == [(0, 8), (0, 5), (0, 2)]
    assert windows([8], 3, every=False) == [(0, 8)]
    assert windows([0, 1, 2, 4, 5], 3, every=True) == [(2, 2), (3, 4), (4, 5), (4, 2)]
    assert windows([0, 1, 2, 4, 5], 3, every=False) == [(2, 2), (3, 4), (4, 5)]
    assert windows([], 3, every=True) == windows([1, 1], 3, every=True) == []


@given(st.lists(st.integers(0, 20), max_size=6), st.integers(1, 7))
def test_every_target_is_in_exactly_one_window(lengths, max_length):
    targets = [(row, event) for row, end in windows(lengths, max_length, every=True)
               for event in range(max(1, end - max_length), end)]  # targets end - max_length … end - 1
    assert sorted(targets) == [(row, event) for row, n in enumerate(lengths) for event in range(1, n)]


def test_windows_give_the_batches_they_promise(histories, small):
    material = prepare_material(small(), histories)
    index = np.arange(len(material.windows))
    batch = training_batch(histories, material.windows, index, 16)
    assert batch.lengths.tolist() == material.batches.lengths.tolist()
    assert batch.lengths.min() > 0
    assert batch.longest == 16
    train = material.parts.train
    assert batch.num_events == int((train.ends - 1).clip(min=0).sum())
    newest = prepare_material(small(train={"windows": "newest"}), histories)
    assert len(newest.windows) == int((train.ends > 1).sum()) < len(material.windows)


def test_the_padding_that_jagged_batches_avoid():
    # one batch of rows of 1 and 3 events: padded to 2 rows of 3, of which 2 are padding
    assert padding_avoided(TokenBatches(np.array([1, 3]), 10, seed=0)) == pytest.approx(2 / 6)
    assert padding_avoided(TokenBatches(np.array([4, 4]), 10, seed=0)) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["a"] * 2, ["b"]], "split: leave-last-two-out needs a user with 3 events or more, got none"),
        ([["a"] * 3], "data: no training history has two events, so there is no next event to learn"),
    ],
)
def test_a_log_with_nothing_to_learn_is_one_line(small, rows, message):
    users = [user for user, row in enumerate(rows) for _ in row]
    log = pa.table({"user": users, "item": [item for row in rows for item in row]})
    with pytest.raises(InvalidData) as caught:
        prepare_material(small(), prepare(log, DataConfig()))
    assert str(caught.value) == message


def test_a_model_of_time_needs_a_log_with_times(small):
    log = pa.table({"user": [1, 1, 1, 1], "item": [7, 8, 9, 7]})
    with pytest.raises(InvalidData) as caught:
        prepare_material(small(model=HSTUConfig(time=True)), prepare(log, DataConfig()))
    assert str(caught.value) == "data: model.time needs the time of each event, and this log has none (columns.time)"


# --- training ---


def losses(out) -> list[float]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "step"]


@pytest.mark.parametrize("loss", [{"kind": "full-softmax"}, {"kind": "bce", "negatives": 2},
                                  {"kind": "sampled-softmax", "negatives": 64, "smoothing": 0.5},
                                  {"kind": "sampled-softmax", "negatives": 64, "shared": False}],
                         ids=["full", "bce", "sampled", "sampled per event"])  # fmt: skip
def test_the_loss_falls(histories, small, tmp_path, loss):
    train(small(loss=loss, train={"epochs": 12, "learning_rate": 0.05}), histories, tmp_path / "run")
    seen = losses(tmp_path / "run")
    assert len(seen) >= 12
    assert np.mean(seen[-3:]) < 0.95 * np.mean(seen[:3])


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(histories, small, tmp_path, files):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(small(seed=seed), histories, tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["model.safetensors"] != files(tmp_path / "c")["model.safetensors"]


class Stopped(Exception):  # noqa: N818
    pass


def stopper(records: int):
    """A listener that stops the run, as a crash would, at the given record."""
    left = iter(range(records))

    def listen(record) -> None:
        if next(left, None) is None:
            raise Stopped
    return listen


@pytest.mark.parametrize("checkpoint_seconds", [0, 1e9], ids=["every step", "every epoch"])
def test_a_run_stopped_anywhere_resumes_to_the_same_result(histories, small, tmp_path, files, checkpoint_seconds):
    config = small(train={"checkpoint_seconds": checkpoint_seconds, "log_every": 2})
    records = []
    train(config, histories, tmp_path / "whole", listeners=[records.append])
    for at in range(len(records)):
        out = tmp_path / f"{at}"
        with pytest.raises(Stopped):
            train(config, histories, out, listeners=[stopper(at)])
        resume(out)
        assert files(out) == files(tmp_path / "whole"), at


def test_a_model_of_time_resumes_to_the_same_result(histories, small, tmp_path, files):
    model = HSTUConfig(width=8, blocks=1, max_length=16, time=True, attention_dropout=0.2)
    config = small(model=model, train={"checkpoint_seconds": 0})
    train(config, histories, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, histories, tmp_path / "run", listeners=[stopper(4)])
    resume(tmp_path / "run")
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_a_run_stopped_again_and_again_resumes_to_the_same_result(histories, small, tmp_path, files):
    config = small(train={"checkpoint_seconds": 0})
    train(config, histories, tmp_path / "whole")
    out, stops = tmp_path / "stopped", 0
    with pytest.raises(Stopped):
        train(config, histories, out, listeners=[stopper(2)])
    while not (out / "metrics.json").exists():
        try:
            resume(out, listeners=[stopper(2)])
        except Stopped:
            stops += 1
    assert stops > 3
    assert files(out) == files(tmp_path / "whole")


def test_an_earlier_log_does_not_stay_when_a_run_begins_again(histories, small, tmp_path, files):
    train(small(), histories, tmp_path / "whole")
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(small(), histories, out, listeners=[stopper(0)])  # logged, and no checkpoint yet
    assert not (out / "checkpoints").exists()
    resume(out)
    assert files(out) == files(tmp_path / "whole")
    (tmp_path / "again").mkdir()
    (out / "config.json").rename(tmp_path / "again" / "config.json")
    (tmp_path / "again" / "checkpoints" / ".step-000000000-epoch-000000.partial").mkdir(parents=True)
    resume(tmp_path / "again")  # killed while it wrote its first checkpoint
    assert files(tmp_path / "again") == files(tmp_path / "whole")


# --- validation chooses ---


def scripted(monkeypatch, values: list[float]) -> list[torch.Tensor]:
    """Make the validations of training return `values`; return the item table as it is at each of them."""
    tables, left = [], list(values)

    def validate(self, model):
        tables.append(model.items.weight.detach().clone())
        return {"ndcg@10": left.pop(0)}

    monkeypatch.setattr(NextItem, "validate", validate)
    return tables


@pytest.mark.parametrize(
    ("values", "patience", "every", "epochs", "best"),
    [
        ([0.1, 0.3, 0.2], 5, 1, 3, 2),  # ran to the end, the second epoch is kept
        ([0.1, 0.3, 0.2, 0.1, 0.9], 2, 1, 4, 2),  # two without improvement: stopped
        ([0.2, 0.2, 0.2], 2, 1, 3, 1),  # as good is not better
        ([0.1, 0.4, 0.3], 1, 2, 5, 4),  # validated after epochs 2, 4 and 5, the last
    ],
)
def test_validation_stops_the_run_and_chooses_the_epoch(
        histories, small, tmp_path, monkeypatch, values, patience, every, epochs, best):
    tables = scripted(monkeypatch, values)
    config = small(train={"epochs": 5 if len(values) > 3 or every > 1 else 3, "patience": patience,
                          "validate_every": every})
    run = train(config, histories, tmp_path / "run")
    log = [json.loads(line) for line in run.log_path.read_text().splitlines()]
    assert log[-1]["event"] == "end"
    assert (log[-1]["epoch"], log[-1]["best_epoch"]) == (epochs, best)
    validations = [record for record in log if record["event"] == "validation"]
    assert [record["best"] for record in validations] == [
        value > max(values[:n], default=-1) for n, value in enumerate(values[: len(validations)])]
    assert run.read_metrics()["best_epoch"] == best
    kept = loop.checkpoint.load_file(run.model_path)["items.weight"]
    chosen = [torch.equal(kept, table) for table in tables]
    assert chosen.index(True) == [record["epoch"] for record in validations].index(best)


def test_a_validation_ranks_so_many_examples_at_most(histories, small, tmp_path):
    trainer = Trainer(small(train={"validation_examples": 7}), histories, tmp_path, World())
    some, again = trainer.objective.validation_examples(), trainer.objective.validation_examples()
    assert len(some) == 7
    assert np.array_equal(some.rows, again.rows)
    assert len(np.unique(some.rows)) == 7
    trainer = Trainer(small(), histories, tmp_path, World())
    assert trainer.objective.validation_examples() is trainer.objective.material.parts.validation


def test_the_test_split_is_read_once_and_after_training(histories, small, tmp_path, monkeypatch):
    ranked = []

    def spy(scorer, histories, examples, *arguments, **more):
        ranked.append(examples)
        return plain(scorer, histories, examples, *arguments, **more)

    plain = next_item.evaluate
    monkeypatch.setattr(next_item, "evaluate", spy)
    batches = []
    monkeypatch.setattr(next_item, "training_batch", lambda *a: batches.append(training_batch(*a)) or batches[-1])
    train(small(), histories, tmp_path / "run")
    lengths = histories.lengths.numpy()
    tests = [bool((examples.truth_ends == lengths[examples.rows]).any()) for examples in ranked]
    assert not any(tests[:3])  # three epochs
    assert tests.count(True) == 1
    held = lengths - 2  # neither of the last two events of a user is ever an input or a target of training
    for batch in batches:
        for user, row in zip(batch.context["user"].tolist(), batch["target"], strict=True):
            start = int(histories.offsets[user])
            known = histories.fields["item"][start : start + held[user]].tolist()
            assert str(row.tolist())[1:-1] in str(known)


# --- weights, odd losses ---


def weighted_log(newest: list[int], weight: float) -> pa.Table:
    """Ten users; the newest training event of user u is item `newest[u]`, of the given weight."""
    rng = np.random.default_rng(0)
    rows = [[*rng.integers(0, 6, 4).tolist(), last, 1, 2] for last in newest]
    weights = [1.0, 1.0, 1.0, 1.0, weight, 1.0, 1.0] * len(rows)
    return pa.table({"user": np.repeat(np.arange(len(rows)), 7), "item": np.concatenate(rows), "weight": weights})


@pytest.mark.parametrize(("weight", "same"), [(0.0, True), (0.5, False)])
def test_an_event_of_weight_zero_is_no_target(small, tmp_path, weight, same):
    # The newest training event is a target and no input, so with weight 0 it does not matter which item it is.
    newest = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    data = DataConfig(columns=ColumnMapping(weight="weight"))
    for name, items in (("a", newest), ("b", newest[::-1])):
        histories = prepare(weighted_log(items, weight), data)
        config = small(train={"epochs": 1}, evaluate={"exclude_seen": False})
        train(config, histories, tmp_path / name)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert (a == b) is same


def test_weights_that_are_all_zero_train_nothing_and_break_nothing(small, tmp_path):
    log = weighted_log([0, 1, 2, 3], 0.0)
    log = log.set_column(2, "weight", pa.array(np.zeros(len(log))))
    histories = prepare(log, DataConfig(columns=ColumnMapping(weight="weight")))
    train(small(train={"epochs": 1, "weight_decay": 0.0}), histories, tmp_path / "run")
    assert losses(tmp_path / "run") == [0.0] * len(losses(tmp_path / "run"))


@pytest.mark.parametrize("log_every", [1, 1000])
def test_a_loss_that_is_not_a_number_is_one_line(histories, small, tmp_path, log_every):
    config = small(train={"learning_rate": 1e30, "warmup_steps": 0, "log_every": log_every})
    with pytest.raises(InvalidConfig) as caught:
        train(config, histories, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith("train: the loss became ")
    assert message.endswith("; try a train.learning_rate below 1e+30")


def test_a_gpu_that_is_not_there_is_one_line(histories, small, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidConfig, match=r"train\.device: expected a device that is there, got 'cuda'"):
        train(small(train={"device": "cuda"}), histories, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bfloat16_is_served_on_the_cpu_too(histories, small, tmp_path):
    train(small(train={"precision": "bfloat16", "epochs": 1}), histories, tmp_path / "run")
    assert np.isfinite(losses(tmp_path / "run")).all()


@pytest.mark.parametrize(("similarity", "times"), [("dot", 1), ({"kind": "mol", "component_width": 4}, 2)])
def test_a_compiled_run_is_the_same_and_is_compiled_once(histories, small, tmp_path, monkeypatch, similarity, times):
    """The model, and what a mixture computes for every pair, which losses call past the model."""
    seen, model = [], {"similarity": similarity}
    compiled = torch.compile

    def compile_(function, **options):
        seen.append(options)
        return compiled(function, backend="eager", **options)  # there may be no compiler here

    train(small(model=model), histories, tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", compile_)
    train(small(model=model, train={"compile": True}), histories, tmp_path / "compiled")
    torch.compiler.reset()
    assert seen == [{"dynamic": True}] * times
    assert losses(tmp_path / "compiled") == losses(tmp_path / "plain")
    weights = [load_file(tmp_path / run / "model.safetensors") for run in ("plain", "compiled")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


TRANSFORMER_MATRICES = {f"blocks.0.{layer}.weight" for layer in
                        ("attention.project_in", "attention.project_out", "feedforward.0", "feedforward.3")}
HSTU_WITH_TABLES = HSTUConfig(width=8, blocks=1, max_length=16, time=True, bias_per_head=True, similarity="dot")


@pytest.mark.parametrize(("changes", "matrices"), [
    ({}, TRANSFORMER_MATRICES),
    ({"model": HSTU_WITH_TABLES}, {"layers.0.project_in.weight", "layers.0.project_out.weight"})],
    ids=["transformer", "hstu"])  # fmt: skip
def test_weight_decay_spares_tables_norms_and_biases(histories, small, tmp_path, changes, matrices):
    trainer = Trainer(small(train={"weight_decay": 0.3}, **changes), histories, tmp_path, World())
    decays = {id(parameter): group["weight_decay"] for group in trainer.optimizer.param_groups
              for parameter in group["params"]}
    decayed = {name for name, parameter in trainer.model.named_parameters() if decays[id(parameter)] == 0.3}
    assert decayed == matrices
    assert len(decays) == len(list(trainer.model.parameters()))


def test_a_metric_that_the_evaluation_does_not_know_is_refused(small):
    with pytest.raises((InvalidConfig, InvalidArgument), match="monitor"):
        small(train={"monitor": "ndcg@11"})


def test_no_two_steps_draw_the_same_dropout(histories, small, tmp_path):
    drawn = []

    def keep(module, arguments, output):
        drawn.append((output != 0).flatten()[:64].tolist())

    trainer = Trainer(small(model={"dropout": 0.5}, train={"epochs": 1}), histories, tmp_path / "run", World())
    trainer.model.dropout.register_forward_hook(keep)
    trainer.train()
    steps = trainer.position.step

    assert steps > 2
    assert len({tuple(mask) for mask in drawn[:steps]}) == steps


@pytest.mark.parametrize(("similarity", "given", "temperature"),
                         [("dot", None, 1.0), ("cosine", None, 0.07), ("cosine", 0.5, 0.5), ("dot", 0.5, 0.5)])
def test_the_temperature_follows_the_similarity_unless_it_is_given(
        histories, small, tmp_path, similarity, given, temperature):
    config = small(model={"similarity": similarity}, loss={"temperature": given, "kind": "full-softmax"})

    assert Trainer(config, histories, tmp_path / "run", World()).objective.losses.temperature == temperature


def test_a_mixture_has_its_temperature_inside(histories, small, tmp_path):
    config = small(model={"similarity": {"kind": "mol"}}, loss={"kind": "sampled-softmax"})

    assert Trainer(config, histories, tmp_path / "run", World()).objective.losses.temperature == 1
