"""Runs whose similarity is a mixture of logits: they learn, know their users, resume exactly, and are served."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from serrate.data import ColumnMapping, DataConfig, history_batch, prepare, with_user_keys
from serrate.distributed import World
from serrate.errors import InvalidRun
from serrate.serve import Predictor
from serrate.train import resume, train
from serrate.train.loop import Trainer
from serrate.train.next_item import NextItem

MIXTURE = {"kind": "mol", "query_components": 3, "item_components": 2, "component_width": 8, "gate_hidden": 16,
           "query_hidden": 16, "user_buckets": 70}
SAMPLED = {"kind": "sampled-softmax", "negatives": 16}


@pytest.fixture(scope="module")
def config(small):
    return small(model={"similarity": MIXTURE}, loss=SAMPLED)


@pytest.fixture(scope="module")
def run(config, histories, tmp_path_factory):
    return train(config, histories, tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("loss", [SAMPLED, {"kind": "sampled-softmax", "negatives": 16, "shared": False},
                                  {"kind": "bce", "negatives": 8}], ids=["shared", "each", "bce"])  # fmt: skip
def test_it_learns_what_follows(small, tmp_path, loss):
    rows = [(user, (7 * user + step) % 20, step) for user in range(60) for step in range(12)]  # after each the next one
    log = pa.table(dict(zip(("user", "item", "time"), map(list, zip(*rows, strict=True)), strict=True)))
    histories = prepare(log, DataConfig(columns=ColumnMapping(time="time"), threads=1))
    config = small(model={"width": 16, "similarity": {**MIXTURE, "user_buckets": 0}}, loss=loss,
                   train={"epochs": 25, "learning_rate": 0.02})
    metrics = train(config, histories, tmp_path / "run").read_metrics()
    found = {row["model"]: row["metrics"]["mrr"]["value"] for row in metrics["rows"] if row["split"] == "test"}
    assert found["popularity"] < 0.4
    assert found["transformer"] > 0.9
    assert not (tmp_path / "run" / "users.parquet").exists()


def test_the_users_that_it_knows_are_kept(run, config, histories):
    trained = np.unique(NextItem(config, histories, torch.device("cpu")).material.windows.rows)
    assert 0 < len(trained) < histories.num_users
    assert pq.read_table(run.users_path)["id"].to_pylist() == histories.users.decode(trained)


def test_a_killed_run_resumes_to_the_same(config, histories, tmp_path, files, run):
    stopped = Trainer(config, histories, tmp_path / "run", World())
    stopped.folder.write_config(run.read_config())
    stopped._record({"event": "start", **stopped._plan()})
    stopped._save()
    stopped._epoch()
    resumed = resume(tmp_path / "run", histories)
    assert files(resumed.path) == files(run.path)


def test_users_of_whom_nothing_is_trained_on_are_unknown(config, histories):
    """A window takes two events beside those of validation and test: a few users here have less."""
    objective = NextItem(config, histories, torch.device("cpu"))
    trained = histories.lengths >= 4
    assert 0 < int((~trained).sum()) < 10
    expected = torch.where(trained, torch.from_numpy(histories.users.keys()), -1)
    assert torch.equal(objective.user_keys, expected)


def test_batches_carry_the_keys_of_their_users(config, histories):
    objective = NextItem(config, histories, torch.device("cpu"))
    index = np.array([3, 0, 5])
    batch = objective.batch(0, index)
    rows = objective.material.windows.rows[index]
    assert batch.context["user_key"].tolist() == histories.users.keys()[rows].tolist()


def test_what_is_served_is_what_was_tested(run, config, histories):
    predictor = Predictor.open(run.path, device="cpu")
    objective = NextItem(config, histories, torch.device("cpu"))
    examples, index = objective.material.parts.test, torch.arange(5)
    batch = history_batch(histories, examples, index, 16)
    with torch.inference_mode():
        known = predictor.model.score(with_user_keys(batch, objective.user_keys))
        unknown = predictor.model.score(batch)
    raw = [histories.items.decode(histories.fields["item"][histories.offsets[row] : histories.offsets[row] + end])
           for row, end in zip(examples.rows[:5], examples.ends[:5], strict=True)]
    users = histories.users.decode(examples.rows[:5])
    for scores, told in ((known, {"users": users}), (unknown, {}), (unknown, {"users": ["nobody"] * 5})):
        answers = predictor.recommend(raw, k=histories.num_items, exclude_seen=False, **told)
        for row, answer in zip(scores, answers, strict=True):
            found = torch.tensor(answer.scores)
            torch.testing.assert_close(found, row.sort(descending=True).values, rtol=1e-5, atol=1e-5)
    assert (known - unknown).abs().max() > 1e-3


def test_the_test_knows_users(run, config, histories):
    objective = NextItem(config, histories, torch.device("cpu"))
    model = Predictor.open(run.path, device="cpu").model
    tested = next(row for row in run.read_metrics()["rows"] if row["split"] == "test")
    with_users = objective.evaluate(model, objective.material.parts.test).values()
    assert tested["metrics"]["mrr"]["value"] == pytest.approx(with_users["mrr"])
    objective.user_keys = None
    assert objective.evaluate(model, objective.material.parts.test).values()["mrr"] != with_users["mrr"]


def test_a_run_without_its_users_is_damaged(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "users.parquet").unlink()
    with pytest.raises(InvalidRun, match=r"users\.parquet: cannot read the ids \(no such file\)"):
        Predictor.open(tmp_path / "run", device="cpu")


def test_the_loss_has_the_penalty_of_the_similarity(histories, small, tmp_path):
    """A penalty is of the mean event, a loss the sum over events: it counts as often as there are events."""

    def loss(**penalty):
        config = small(model={"dropout": 0.0, "similarity": {
            **MIXTURE, "gate_dropout": 0.0, "item_dropout": 0.0, "user_dropout": 0.0, **penalty}}, loss=SAMPLED)
        trainer = Trainer(config, histories, tmp_path / json.dumps(penalty), World())
        batch = trainer.objective.batch(0, np.arange(4))
        torch.manual_seed(0)
        total, weight = trainer.objective.loss(trainer.model, batch)
        similarity, users = trainer.model.similarity, trainer.model.users(batch)[batch["target"].row_index()]
        queries = similarity.queries(trainer.model(batch).values, users)
        items = similarity.items(trainer.model.items(batch["target"].values))
        return total.item(), similarity.penalty(queries, items, users=users).item() * weight

    plain, nothing = loss(load_balancing=0, user_penalty=0)
    more, penalty = loss(load_balancing=0.5, user_penalty=2)
    assert nothing == 0
    assert more - plain == pytest.approx(penalty, rel=1e-3)
    assert abs(penalty) > 1e-3
