"""Several gloo processes: sums that agree, and training that equals one process to rounding."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from serrate.data import ColumnMapping, DataConfig, prepare, synthesize
from serrate.distributed import World, start, stop, sum_gradients
from serrate.train import RunConfig, train


def torchrun(tmp_path: Path, processes: int, script: str, *arguments: str) -> None:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run([*command, str(path), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_one_process_is_a_world_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = start("cpu")
    assert world == World(rank=0, size=1, local_rank=0)
    assert world.leads
    value = torch.ones(2)
    assert world.sum(value) is value
    assert world.agree(value) is value
    parameter = torch.nn.Parameter(torch.ones(2))
    sum_gradients([parameter], world)
    assert parameter.grad is None
    stop()


SUMS = """
    import torch
    from serrate.distributed import start, stop, sum_gradients
    torch.set_num_threads(1)
    world = start("cpu")
    assert (world.size, world.local_rank, world.leads) == (2, world.rank, world.rank == 0)
    assert start("cpu") == world  # a second call joins nothing twice
    mine = torch.tensor([1.0, 10.0]) * (world.rank + 1)
    assert world.sum(mine).tolist() == [3.0, 30.0]
    assert mine.tolist() == [world.rank + 1, 10.0 * (world.rank + 1)]  # left alone
    assert world.agree(mine).tolist() == [1.0, 10.0]
    a, b, c = (torch.nn.Parameter(torch.zeros(n, dtype=d))
               for n, d in ((3, torch.float32), (1, torch.float64), (2, torch.float32)))
    frozen = torch.nn.Parameter(torch.zeros(2))
    (a.sum() * (world.rank + 1) + (b.sum() if world.rank else 0)).backward()
    c.grad = torch.full((2,), 5.0) if world.rank else None  # rank 0 had no event for it
    sum_gradients([a, b, c, frozen], world)
    assert (a.grad.tolist(), b.grad.tolist(), c.grad.tolist()) == ([3.0] * 3, [1.0], [5.0] * 2)
    assert frozen.grad.tolist() == [0.0] * 2
    stop()
"""


def test_two_processes_agree_on_sums(tmp_path):
    torchrun(tmp_path, 2, SUMS)


TRAIN = """
    import json, sys
    import torch
    torch.set_num_threads(1)
    from serrate.data import Histories
    from serrate.distributed import stop
    from serrate.train import RunConfig, train
    for name, config in json.loads(sys.argv[1]).items():
        train(RunConfig.parse(config), Histories.open(sys.argv[2]), f"{sys.argv[3]}/{name}")
    stop()
"""

BASE = {
    "seed": 1,
    "model": {"width": 8, "blocks": 1, "feedforward": 16, "dropout": 0.0, "max_length": 16},
    "train": {"epochs": 2, "tokens_per_batch": 512, "log_every": 1, "device": "cpu", "learning_rate": 0.003},
    "evaluate": {"cutoffs": [10], "resamples": 10},
}
RUNS = {
    "ordinary": BASE,
    # batches of one row: the other process has none
    "fewer rows than processes": {**BASE, "train": {**BASE["train"], "tokens_per_batch": 16, "epochs": 1}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The runs of `RUNS` by one process and by two: name → (folder of one, folder of two)."""
    folder = tmp_path_factory.mktemp("world")
    log = synthesize(folder / "log.parquet", 1000, 50, clusters=5, items_per_cluster=8)
    histories = prepare(log, DataConfig(columns=ColumnMapping(time="time"), threads=1), folder / "data")
    torchrun(folder, 2, TRAIN, json.dumps(RUNS), str(histories.path), str(folder / "two"))
    for name, config in RUNS.items():
        train(RunConfig.parse(config), histories, folder / "one" / name)
    return {name: (folder / "one" / name, folder / "two" / name) for name in RUNS}


@pytest.mark.parametrize("name", list(RUNS))
def test_two_processes_train_what_one_does(trained, name):
    one, two = trained[name]
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    logs = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (one, two)]
    assert [log[0]["processes"] for log in logs] == [1, 2]
    events = [[(record["event"], record.get("step")) for record in log] for log in logs]
    assert events[0] == events[1]
    for mine, other in zip(*logs, strict=True):
        if mine["event"] == "step":  # the loss is that of the global batch
            assert other["loss"] == pytest.approx(mine["loss"], rel=2e-5)
    steps = sum(record["event"] == "step" for record in logs[0])
    assert steps >= (50 if "fewer" in name else 4)
    # Sums in another order differ by rounding, which Adam can carry on as a share of its step where gradients are
    # near zero; a wrong weight of either share would move weights by whole steps, 0.003 each.
    weights = [load_file(out / "model.safetensors") for out in (one, two)]
    largest = max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0])
    assert largest < 1e-5
