"""The saved run: complete, readable, refused where it must be, and the same after being killed anywhere."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from serrate.data import ColumnMapping, DataConfig, prepare, synthesize
from serrate.errors import InvalidArgument, InvalidRun
from serrate.models import build
from serrate.run_folder import RunFolder
from serrate.train import read_run_config, resume, train


@pytest.fixture(scope="module")
def run(histories, small, tmp_path_factory) -> RunFolder:
    old = os.umask(0o022)
    try:
        return train(small(), histories, tmp_path_factory.mktemp("runs") / "run")
    finally:
        os.umask(old)


# --- what is written ---


def test_the_folder_is_complete_and_nothing_else_is_in_it(run):
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.json", "items.parquet", "log.jsonl", "metrics.json", "model.safetensors"]


def test_files_have_ordinary_modes(run):
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in run.path.iterdir()
            if stat.S_IMODE(path.stat().st_mode) != 0o644} == {}


def test_the_configuration_is_kept_with_the_data_set(run, histories, small):
    values = run.read_config()
    assert read_run_config(values).model == small().model
    assert values["data"] == histories.config
    assert values["dataset"]["num_items"] == histories.num_items
    assert Path(values["dataset"]["path"]) == histories.path.resolve()
    assert values["format_version"] == 1


def test_the_weights_are_those_of_the_model(run, histories):
    model = build(read_run_config(run.read_config()).model, histories.num_items)
    model.load_state_dict(load_file(run.model_path))  # strict: every name is there, and no other


def test_the_vocabulary_is_kept(run, histories):
    assert pq.read_table(run.items_path).column("id").to_pylist() == histories.items.decode(range(len(histories.items)))


def test_the_metrics_have_their_shape(run, histories):
    metrics = run.read_metrics()
    assert metrics["examples"]["test"] == metrics["examples"]["validation"] == histories.num_users
    tested = {row["model"]: row["metrics"] for row in metrics["rows"] if row["split"] == "test"}
    assert list(tested) == ["transformer", "popularity", "item-kNN", "Markov"]
    assert {name for values in tested.values() for name in values} == {
        "hr@10", "ndcg@10", "recall@10", "coverage@10", "mrr"}
    for values in tested.values():
        for name, estimate in values.items():
            assert 0 <= estimate["value"] <= 1
            if not name.startswith("coverage"):
                assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert {(row["model"], row["baseline"], row["metric"]) for row in metrics["comparisons"]} == {
        ("transformer", baseline, metric) for baseline in list(tested)[1:] for metric in ("hr@10", "ndcg@10")}
    difference = next(row for row in metrics["comparisons"] if row["baseline"] == "Markov" and row["metric"] == "hr@10")
    assert difference["value"] == pytest.approx(
        tested["transformer"]["hr@10"]["value"] - tested["Markov"]["hr@10"]["value"])
    assert 1 <= metrics["best_epoch"] <= 3
    assert metrics["monitor"]["metric"] == "ndcg@10"


def test_the_monitored_value_is_that_of_the_kept_weights(run):
    metrics = run.read_metrics()
    validated = next(row for row in metrics["rows"] if row["split"] == "validation")
    assert validated["metrics"]["ndcg@10"]["value"] == pytest.approx(metrics["monitor"]["value"])


def test_the_lengths_are_those_of_the_log(run, histories):
    lengths = run.read_metrics()["lengths"]
    assert sum(part["users"] for part in lengths["histogram"]) == histories.num_users
    for part in lengths["histogram"]:
        inside = (histories.lengths >= part["from"]) & (histories.lengths <= part["to"])
        assert int(inside.sum()) == part["users"]
    assert lengths["longest"] == histories.longest
    assert lengths["mean"] == pytest.approx(histories.num_events / histories.num_users)
    assert 0 < lengths["padding_avoided"] < 1


def test_samples_are_histories_with_what_came_next(run, histories):
    samples = run.read_metrics()["samples"]
    assert len(samples) == 10
    raw = histories.items.decode(histories.fields["item"].tolist())
    users = histories.users.decode(range(histories.num_users))
    for sample in samples:
        row = users.index(sample["user"])
        events = raw[int(histories.offsets[row]) : int(histories.offsets[row + 1])]
        assert [item["id"] for item in sample["history"]] == events[:-1][-20:]
        assert [item["id"] for item in sample["truth"]] == events[-1:]
        scores = [item["score"] for item in sample["recommended"]]
        assert scores == sorted(scores, reverse=True)
        assert not {item["id"] for item in sample["recommended"]} & set(events[:-1])  # seen items are left out


def test_the_log_tells_the_run_from_start_to_end(run):
    log = list(run.read_log())
    assert [log[0]["event"], log[-1]["event"]] == ["start", "end"]
    steps = [record["step"] for record in log if record["event"] == "step"]
    assert steps == list(range(1, log[-1]["step"] + 1))  # log_every is 1
    assert [record["epoch"] for record in log if record["event"] == "validation"] == [1, 2, 3]
    tested = next(row for row in run.read_metrics()["rows"] if row["model"] == "transformer")
    assert log[-1]["test"]["hr@10"] == tested["metrics"]["hr@10"]["value"]


# --- what is refused ---


def test_a_folder_with_something_in_it_is_left_alone(histories, small, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InvalidArgument) as caught:
            train(small(), histories, out)
        assert str(caught.value) == f"out: expected a path that does not exist or an empty folder, got {out}"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_complete_run_has_nothing_to_resume(run):
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(InvalidRun) as caught:
        resume(run.path)
    assert str(caught.value) == f"run: {run.path} is complete; there is nothing to resume"
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_another_data_set_is_refused(run, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(run.config_path, tmp_path / "run")
    log = synthesize(tmp_path / "log.parquet", 1600, 70, clusters=5, items_per_cluster=8)
    other = prepare(log, DataConfig(columns=ColumnMapping(time="time")))
    with pytest.raises(InvalidRun) as caught:
        resume(tmp_path / "run", other)
    assert str(caught.value) == (f"run: {tmp_path / 'run'} began with 1500 events, "
                                 f"the data set at {other.path} has 1600")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InvalidRun, match=r"is not a saved run \(it has no config\.json\)"):
        resume(tmp_path)


def test_a_log_that_leaves_nothing_to_train_on_leaves_no_folder(histories, small, tmp_path):
    with pytest.raises(InvalidArgument):
        train(small(split={"kind": "temporal", "validation_from": 0.9, "test_from": 0.8}), histories, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- killed ---

PROGRAM = """
    import json, os, sys
    import torch
    torch.set_num_threads(1)
    from serrate.data import Histories
    from serrate.train import RunConfig, resume, train
    config, data, out = sys.argv[1:4]
    def begin():
        train(RunConfig.parse(json.loads(config)), Histories.open(data), out)
"""


def program(tail: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(PROGRAM) + textwrap.dedent(tail)]


# Dies with no more warning than SIGKILL gives, before the n-th change to a file of the run, for each n in turn.
EVERY_WRITE = """
    import shutil
    WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
    def changes_the_run(event, args):
        if event == "open":
            return str(args[0]).startswith(out) and args[2] & (os.O_WRONLY | os.O_RDWR)
        return event in WRITES and (str(args[0]).startswith(out) or not os.path.isabs(str(args[0])))
    def child(n, run):
        if os.fork() == 0:
            seen = 0
            def hook(event, args):
                nonlocal seen
                if changes_the_run(event, args):
                    seen += 1
                    if seen == n:
                        os._exit(9)
            if n:
                sys.addaudithook(hook)
            run()
            os._exit(0)
        return os.waitstatus_to_exitcode(os.wait()[1])
    base, first, stride = out, int(sys.argv[4]), int(sys.argv[5])
    n, killed = first, 9
    while killed == 9:
        out = f"{base}/{n}"
        killed = child(n, begin)
        if killed == 9:
            begun = os.path.exists(f"{out}/config.json")
            code = child(0, (lambda: resume(out)) if begun else begin)
            assert code == 0, (n, code)
        n += stride
    assert killed == 0, killed
    print(n)
"""


def config_of_a_short_run(small) -> str:
    return json.dumps(small(train={"epochs": 2, "tokens_per_batch": 800, "checkpoint_seconds": 0}).plain())


def die_at_writes(histories, small, tmp_path, files, first: int, stride: int) -> None:
    config = config_of_a_short_run(small)
    whole = tmp_path / "whole"
    subprocess.run([*program("begin()"), config, str(histories.path), str(whole)], check=True)
    (tmp_path / "killed").mkdir()
    command = [*program(EVERY_WRITE), config, str(histories.path), str(tmp_path / "killed"), str(first), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outs = sorted((tmp_path / "killed").iterdir(), key=lambda out: int(out.name))
    assert len(outs) >= 40 // stride
    expected = files(whole)
    for out in outs:
        assert files(out) == expected, out.name
        assert not (out / "checkpoints").exists(), out.name


def test_a_run_killed_before_some_of_its_writes_resumes_to_the_same_result(histories, small, tmp_path, files):
    die_at_writes(histories, small, tmp_path, files, random.randrange(1, 8), 8)


@pytest.mark.slow
def test_a_run_killed_before_any_of_its_writes_resumes_to_the_same_result(histories, small, tmp_path, files):
    die_at_writes(histories, small, tmp_path, files, 1, 1)


GO_ON = """
    print("ready", flush=True)
    resume(out) if os.path.exists(f"{out}/config.json") else begin()
"""


def kill_at_random(histories, small, tmp_path, files, kills: int) -> None:
    """Start, wait, `kill -9`, again and again until a run gets through `kills` of them; then to the end."""
    config = json.dumps(small(train={"epochs": 6, "tokens_per_batch": 200, "checkpoint_seconds": 0}).plain())
    whole, out = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    subprocess.run([*program("begin()"), config, str(histories.path), str(whole)], check=True)
    most = (time.monotonic() - began) / 4
    killed = 0
    while killed < kills and not (out / "metrics.json").exists():
        process = subprocess.Popen([*program(GO_ON), config, str(histories.path), str(out)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(random.uniform(0, most))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    if not (out / "metrics.json").exists() or (out / "checkpoints").exists():
        subprocess.run([*program(GO_ON), config, str(histories.path), str(out)], check=True)
    assert killed > 0
    assert files(out) == files(whole)


def test_a_run_killed_at_random_moments_resumes_to_the_same_result(histories, small, tmp_path, files):
    kill_at_random(histories, small, tmp_path, files, 3)


@pytest.mark.slow
def test_a_run_killed_ten_times_resumes_to_the_same_result(histories, small, tmp_path, files):
    kill_at_random(histories, small, tmp_path, files, 10)


def test_what_a_kill_after_the_metrics_leaves_is_cleaned_up(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    assert resume(tmp_path / "run").path == tmp_path / "run"
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert torch.get_num_threads() == 1  # these comparisons of bits rest on it
