"""What goes wrong in the hands of a person: one line on stderr, exit code 2, nothing half-written (see `refused`)."""

import builtins
import errno
import importlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

GOOD = "user,item,time\n1,7,1\n1,8,2\n1,9,3\n2,7,1\n2,8,2\n2,9,4\n"


def csv(text):
    """Return a maker of `log.csv` with this text."""

    def make(folder):
        path = folder / "log.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def parquet(**columns):
    """Return a maker of `log.parquet` with these columns."""

    def make(folder):
        pq.write_table(pa.table(columns), folder / "log.parquet")
        return folder / "log.parquet"

    return make


def truncated(folder):
    path = parquet(user=list(range(1000)), item=list(range(1000)))(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def two_types(folder):
    logs = folder / "logs"
    logs.mkdir()
    pq.write_table(pa.table({"user": [1, 2], "item": [7, 8]}), logs / "1.parquet")
    pq.write_table(pa.table({"user": ["1", "2"], "item": [7, 8]}), logs / "2.parquet")
    return logs


def two_formats(folder):
    logs = two_types(folder)
    (logs / "2.parquet").unlink()
    (logs / "2.csv").write_text(GOOD)
    return logs


def empty_folder(folder):
    (folder / "logs").mkdir()
    return folder / "logs"


def named(name, text=GOOD):
    """Return a maker of a file of this name."""

    def make(folder):
        (folder / name).write_text(text)
        return folder / name

    return make


def absent(name):
    """Return a maker of a path where nothing is."""
    return lambda folder: folder / name


LOGS = {
    "a column is missing": (csv("users,item\n1,7\n"), [], ["no column 'user'", "did you mean 'users'"]),
    "a column of another name": (csv(GOOD), ["--user", "usr"], ["no column 'usr'", "did you mean 'user'"]),
    "no header": (csv("1,7,1\n1,8,2\n"), [], ["header"]),
    "a null user": (parquet(user=[1, None], item=[7, 8]), [], ["'user'", "nulls", "row 2"]),
    "a null item": (csv("user,item\n1,7\n1,\n"), [], ["'item'", "nulls", "row 2"]),
    "a NaN time": (parquet(user=[1, 1], item=[7, 8], time=[1.0, float("nan")]), ["--time", "time"], ["NaN", "row 2"]),
    "a null time": (parquet(user=[1, 1], item=[7, 8], time=[1, None]), ["--time", "time"], ["'time'", "nulls"]),
    "a time beyond 64 bits": (parquet(user=[1, 1], item=[7, 8], time=pa.array([1, 2**63], pa.uint64())),
                              ["--time", "time"], ["'time'", "beyond 64 bits", "row 2"]),
    "seconds beyond all years": (parquet(user=[1, 1], item=[7, 8], time=[1.0, 1e300]), ["--time", "time"],
                                 ["'time'", "seconds beyond", "row 2"]),
    "times that are text": (parquet(user=[1], item=[7], time=["noon"]), ["--time", "time"], ["time", "expected"]),
    "items that are fractions": (parquet(user=[1], item=[7.5]), [], ["'item'", "integers or strings", "DOUBLE"]),
    "items that are lists": (parquet(user=[1], item=[[7, 8]]), [], ["'item'", "integers or strings"]),
    "ids beyond 64 bits": (parquet(user=[1], item=pa.array([2**64 - 1], pa.uint64())), [], ["beyond 64 bits"]),
    "negative weights": (parquet(user=[1], item=[7], w=[-1.0]), ["--set", "columns.weight=w"], ["negative weights"]),
    "an empty file": (csv(""), [], ["log.csv", "empty"]),
    "a header alone": (csv("user,item,time\n"), [], ["no events"]),
    "no rows in Parquet": (parquet(user=pa.array([], pa.int64()), item=pa.array([], pa.int64())), [], ["no events"]),
    "truncated Parquet": (truncated, [], ["log.parquet"]),
    "text that is called Parquet": (named("log.parquet"), [], ["log.parquet"]),
    "bytes that are called CSV": (csv(bytes(range(128, 256)) * 9), [], ["log.csv"]),
    "lines of unequal length": (csv(GOOD + "3,7\n1,2,3,4,5\n"), [], ["log.csv"]),
    "nothing there": (absent("log.csv"), [], ["no such file"]),
    "a glob without a match": (absent("*.csv"), [], ["no file matches"]),
    "a folder without logs": (empty_folder, [], ["holds no log"]),
    "a file of an unknown kind": (named("log.xyz"), [], ["log.xyz", ".parquet"]),
    "MovieLens that is not": (named("ratings.dat", "1;7;5;3\n"), [], ["MovieLens"]),
    "RecBole that is not": (named("log.inter", "user,item\n1,7\n"), [], ["RecBole"]),
    "files of two formats": (two_formats, [], ["one format"]),
    "ids of two types": (two_types, [], ["'user'", "several types"]),
    "a filter that is no condition": (csv(GOOD), ["--filter", "rating >="], ["filter"]),
    "a filter over no such column": (csv(GOOD), ["--filter", "rating >= 4"], ["filter", "rating"]),
    "a filter that is a statement": (csv(GOOD), ["--filter", "true; DROP TABLE log"], ["filter"]),
    "a filter that nothing satisfies": (csv(GOOD), ["--filter", "user > 9"], ["no event of 6"]),
    "user and item the same": (csv(GOOD), ["--item", "user"], ["same column"]),
    "time and position": (csv(GOOD), ["--time", "time", "--position", "time"], ["time and position"]),
    "counts that nothing reaches": (csv(GOOD), ["--set", "min_item_events=9"], ["min_item_events 9"]),
    "an unknown key": (csv(GOOD), ["--set", "min_user_event=2"], ["unknown key", "did you mean 'min_user_events'"]),
    "a value of another type": (csv(GOOD), ["--set", "threads=many"], ["threads", "'many'"]),
    "a limit that is no size": (csv(GOOD), ["--set", "memory_limit=lots"], ["memory_limit"]),
    "an unknown policy": (csv(GOOD), ["--set", "repeats=never"], ["repeats", "'keep'"]),
    "no assignment": (csv(GOOD), ["--set", "threads"], ["key.path=value"]),
    "an item table that is not there": (csv(GOOD), ["--set", "items={path: no.csv, key: id}"], ["no.csv"]),
    "an unknown option": (csv(GOOD), ["--users", "user"], ["--users", "serrate data prepare --help"]),
}


@pytest.mark.parametrize("case", LOGS)
def test_a_log_that_cannot_be_prepared(case, refused, tmp_path):
    make, options, words = LOGS[case]
    log = make(tmp_path)
    refused("data", "prepare", log, "--out", tmp_path / "out", *options, words=words)


@pytest.mark.parametrize("case", ["a column is missing", "truncated Parquet", "an empty file", "a null item"])
def test_a_log_that_cannot_be_trained_on_leaves_no_run(case, refused, tmp_path):
    make, _, words = LOGS[case]
    log = make(tmp_path)
    refused("train", "--data", log, "--out", tmp_path / "run", words=words)
    (tmp_path / "run").mkdir()  # also when the folder was there before
    refused("train", "--data", log, "--out", tmp_path / "run", words=words)


@pytest.mark.parametrize("case", ["nothing there", "truncated Parquet", "an empty file"])
def test_a_log_that_cannot_be_inspected(case, refused, tmp_path):
    make, options, words = LOGS[case]
    refused("data", "inspect", make(tmp_path), *options, words=words)


def test_a_file_that_may_not_be_read(refused, tmp_path, monkeypatch):
    log = csv(GOOD)(tmp_path)
    real = builtins.open

    def forbidden(file, *arguments, **options):
        if os.fspath(file) == str(log):
            raise PermissionError(errno.EACCES, "Permission denied", str(log))
        return real(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", forbidden)
    refused("data", "prepare", log, "--out", tmp_path / "out", words=["log.csv", "Permission denied"])


def test_a_disk_that_fails_while_it_is_read(refused, tmp_path, monkeypatch, trained):
    def fail(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("serrate.serve.loading.load_file", fail)
    refused("recommend", trained, "--history", "101", words=["model.safetensors", "Input/output error"])


# --- where it should go ---


def full_folder(folder):
    (folder / "out").mkdir()
    (folder / "out" / "kept.txt").write_text("mine")
    return folder / "out"


def file_there(folder):
    (folder / "out").write_text("mine")
    return folder / "out"


def below_a_file(folder):
    (folder / "out").write_text("mine")
    return folder / "out" / "deeper"


@pytest.mark.parametrize("make", [full_folder, file_there, below_a_file])
def test_out_is_taken(make, refused, tmp_path, log, small):
    out = make(tmp_path)
    refused("data", "prepare", log, "--out", out, words=["out"])
    refused("data", "synthesize", "--events", 1000, "--out", out, words=["out"])
    refused("train", "default", *small, "--data", log, "--out", out, words=["out"])
    refused("quickstart", "--events", 1000, "--out", out, words=["out"])


def test_a_stream_of_less_than_a_record(refused, tmp_path):
    stream = ["data", "synthesize", "--kind", "stream", "--out", tmp_path / "stream"]
    refused(*stream, "--events", 127, words=["--events", "at least 128", "127"])


def test_out_is_a_run(refused, tmp_path, log, trained, small):
    shutil.copytree(trained, tmp_path / "run")
    refused("train", "default", *small, "--data", log, "--out", tmp_path / "run", words=["out", "saved run"])


@pytest.mark.parametrize("make", [full_folder, below_a_file])
def test_recommendations_go_to_a_file(make, refused, tmp_path, log, trained):
    refused("recommend", trained, "--histories", log, "--out", make(tmp_path), words=["out"])


def test_a_recipe_is_not_copied_over_another(refused, tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    refused("config", "cp", "default", tmp_path / "mine.yaml", words=["mine.yaml"])
    refused("config", "cp", "defualt", tmp_path / "other.yaml", words=["did you mean 'default'"])
    refused("config", "cp", tmp_path / "no.yaml", tmp_path / "other.yaml", words=["no.yaml"])


# --- configuration ---

RECIPES = {
    "an unknown key": ("train: {epoch: 3}", [], ["unknown key 'train.epoch'", "did you mean 'epochs'"]),
    "an unknown part": ("trian: {epochs: 3}", [], ["unknown key 'trian'", "did you mean 'train'"]),
    "a wrong value": ("train: {epochs: 0}", [], ["train.epochs", "greater than or equal to 1", "0"]),
    "a wrong type": ("model: {width: wide}", [], ["model.width", "'wide'"]),
    "an unknown choice": ("loss: {kind: hinge}", [], ["loss", "'full-softmax'", "'hinge'"]),
    "values that contradict": ("model: {width: 10, heads: 3}", [], ["heads must divide width 10"]),
    "a metric that is not measured": ("train: {monitor: hr@7}", [], ["train.monitor", "hr@10"]),
    "bad YAML": ("train: {epochs: 3", [], ["not valid YAML", "line 1"]),
    "a key given twice": ("seed: 1\nseed: 2\n", [], ["line 2", "twice"]),
    "no mapping": ("- train\n", [], ["mapping"]),
    "an empty file": ("", [], ["mapping", "nothing"]),
    "no change": ("seed: 1", ["train.epochs"], ["key.path=value"]),
    "a change to an unknown key": ("seed: 1", ["train.epoch=3"], ["did you mean 'epochs'"]),
    "a change of a wrong type": ("seed: 1", ["seed=x"], ["seed", "'x'"]),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_that_is_off(case, refused, tmp_path, log):
    text, changes, words = RECIPES[case]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    refused("config", "validate", recipe, *changes, words=words)
    refused("train", recipe, *changes, "--data", log, "--out", tmp_path / "run", words=words)


def test_a_recipe_that_is_not_there(refused, tmp_path, log):
    refused("config", "show", "quick", words=["expected one of", "did you mean 'quickstart'"])
    refused("config", "show", tmp_path / "no.yaml", words=["no.yaml", "No such file"])
    refused("train", "defalt", "--data", log, "--out", tmp_path / "run", words=["did you mean 'default'"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_device_that_is_not_there(refused, tmp_path, log, small):
    refused("train", "default", *small, "train.device=cuda", "--data", log, "--out", tmp_path / "run", words=["cuda"])


# --- what is trained on ---


def test_a_log_too_short_to_train_on(refused, tmp_path, small):
    for rows, words in (("1,7,1", ["3 events"]), ("1,7,1\n1,8,2\n2,7,1", ["3 events"]),
                        ("1,7,1\n1,8,2\n1,9,3", ["no training history has two events"])):
        log = csv(f"user,item,time\n{rows}\n")(tmp_path)
        refused("train", "default", *small, "--data", log, "--out", tmp_path / "run", words=words)
        (tmp_path / "log.csv").unlink()


@pytest.mark.parametrize("rows", [[(1, item) for item in range(9)], [(user, 7) for user in range(9) for _ in range(4)],
                                  [(1, 7)] * 9], ids=["one user", "one item", "one user, one item"])
def test_one_of_a_kind_is_ordinary(rows, serrate, tmp_path, small):
    log = csv("user,item\n" + "\n".join(f"{user},{item}" for user, item in rows))(tmp_path)
    trained = serrate("train", "default", *small, "data.columns.time=null", "--data", log, "--out", tmp_path / "run")
    assert trained.code == 0
    assert serrate("recommend", tmp_path / "run", "--history", "7", "--no-exclude-seen").out.split()[0] == "1"


def test_a_temporal_split_of_a_log_without_times(refused, tmp_path, small):
    log = csv(GOOD)(tmp_path)
    refused("train", "default", *small, "data.columns.time=null", "split.kind=temporal", "--data", log,
            "--out", tmp_path / "run", words=["columns.time"])


def test_what_train_needs(refused, tmp_path, log, trained):
    refused("train", "default", "--out", tmp_path / "run", words=["no --data"])
    refused("train", "default", "--data", log, words=["no --out"])
    refused("train", "--resume", tmp_path / "run", words=["nothing there"])
    refused("train", "--resume", trained, words=["complete"])
    refused("train", "default", "train.epochs=9", "--resume", trained, words=["--resume"])
    refused("train", "--resume", trained, "--out", tmp_path / "run", words=["--resume"])


@pytest.fixture
def prepared(serrate, tmp_path, log):
    """A prepared data set in `tmp_path`, to be damaged."""
    assert serrate("data", "prepare", log, "--out", tmp_path / "prepared", "--time", "time").code == 0
    return tmp_path / "prepared"


def rewrite(path, **changes):
    """Change keys of a JSON file; None removes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


DATA_SETS = {
    "another version": (lambda data: rewrite(data / "dataset.json", format_version=99), ["format", "99"]),
    "not complete": (lambda data: rewrite(data / "dataset.json", fields=None), ["dataset.json", "prepare"]),
    "not JSON": (lambda data: (data / "dataset.json").write_text("{"), ["dataset.json", "not JSON"]),
    "a part is missing": (lambda data: (data / "item.npy").unlink(), ["item.npy", "missing"]),
    "no items": (lambda data: (data / "items.parquet").unlink(), ["items.parquet", "missing"]),
    "a part is cut short": (lambda data: os.truncate(data / "time.npy", 300), ["time.npy", "damaged"]),
    "a part is of another size": (lambda data: np.save(data / "item.npy", np.zeros(3, np.int32)), ["item.npy", "(3,)"]),
    "offsets that end elsewhere": (
        lambda data: np.save(data / "offsets.npy", np.arange(31)), ["offsets.npy", "expected rows"]),
    "items that are damaged": (lambda data: os.truncate(data / "items.parquet", 90), ["items.parquet"]),
}


@pytest.mark.parametrize("case", DATA_SETS)
def test_a_prepared_data_set_that_is_off(case, refused, prepared, tmp_path, small):
    damage, words = DATA_SETS[case]
    damage(prepared)
    refused("train", "default", *small, "--data", prepared, "--out", tmp_path / "run", words=words)


# --- saved runs ---


@pytest.fixture
def run(tmp_path, trained):
    """A copy of a run in `tmp_path`, to be damaged."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def other_model(run):
    values = json.loads((run / "config.json").read_text())
    values["model"]["width"] = 16
    (run / "config.json").write_text(json.dumps(values))


RUNS = {
    "a newer version": (lambda run: rewrite(run / "config.json", format_version=99), ["version 99", "newer"]),
    "an older version": (lambda run: rewrite(run / "config.json", format_version=0), ["version 0", "no longer"]),
    "no version": (lambda run: rewrite(run / "config.json", format_version=None), ["format_version"]),
    "no config": (lambda run: (run / "config.json").unlink(), ["not a saved run"]),
    "a damaged config": (lambda run: (run / "config.json").write_text("{"), ["config.json", "damaged"]),
    "no model in the config": (lambda run: rewrite(run / "config.json", model=None), ["config.json", "'model'"]),
    "an unknown model": (lambda run: rewrite(run / "config.json", model={"kind": "oracle"}), ["model", "'oracle'"]),
    "a model of another width": (other_model, ["model.safetensors", "size mismatch"]),
    "no model": (lambda run: (run / "model.safetensors").unlink(), ["no model", "--resume"]),
    "a damaged model": (lambda run: (run / "model.safetensors").write_bytes(b"\xff" * 99), ["model.safetensors"]),
    "a model cut short": (lambda run: os.truncate(run / "model.safetensors", 999), ["model.safetensors"]),
    "no items": (lambda run: (run / "items.parquet").unlink(), ["items.parquet", "no such file"]),
    "damaged items": (lambda run: os.truncate(run / "items.parquet", 99), ["items.parquet"]),
    "items that are no items": (
        lambda run: pq.write_table(pa.table({"name": [1]}), run / "items.parquet"), ["items.parquet", "'id'"]),
    "fewer items": (
        lambda run: pq.write_table(pa.table({"id": [1]}), run / "items.parquet"), ["model.safetensors", "mismatch"]),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_that_is_off(case, refused, run, tmp_path, log):
    damage, words = RUNS[case]
    damage(run)
    refused("recommend", run, "--history", "101", words=words)
    refused("recommend", run, "--histories", log, "--out", tmp_path / "out.parquet", words=words)
    refused("evaluate", run, words=words)


@pytest.mark.parametrize("command", [["evaluate"], ["report"], ["recommend", "--history", "1"]])
def test_no_run_at_all(command, refused, tmp_path):
    refused(command[0], tmp_path / "no", *command[1:], words=["nothing there"])
    (tmp_path / "file").write_text("x")
    refused(command[0], tmp_path / "file", *command[1:], words=["a file"])
    (tmp_path / "folder").mkdir()
    refused(command[0], tmp_path / "folder", *command[1:], words=["not a saved run"])


def test_a_report_of_damaged_parts(refused, run):
    (run / "metrics.json").write_text("[]")
    refused("report", run, words=["metrics.json"])


def test_evaluate_with_the_wrong_things(refused, run, prepared, tmp_path, serrate, log):
    refused("evaluate", run, "--split", "train", words=["--split", "'train'"])
    refused("evaluate", run, "--set", "evaluate.cutoff=5", words=["did you mean 'cutoffs'"])
    refused("evaluate", run, "--set", "model.width=5", words=["--set", "evaluate"])
    refused("evaluate", run, "--data", tmp_path / "no", words=["nothing there"])
    assert serrate("data", "prepare", log, "--out", tmp_path / "fewer", "--filter", "item < 110").code == 0
    refused("evaluate", run, "--data", tmp_path / "fewer", words=["items"])
    shutil.rmtree(run / "data")
    rewrite(run / "config.json", dataset={"path": str(tmp_path / "gone")})
    refused("evaluate", run, words=["gone", "nothing there"])
    rewrite(run / "config.json", dataset=None)
    refused("evaluate", run, words=["--data"])


# --- recommend ---


def test_what_recommend_needs(refused, trained, log, tmp_path):
    refused("recommend", trained, words=["neither"])
    refused("recommend", trained, "--history", "1", "--histories", log, words=["both"])
    refused("recommend", trained, "--histories", log, words=["--out"])
    refused("recommend", trained, "--history", "1", "--out", tmp_path / "out.parquet", words=["--histories"])
    refused("recommend", trained, "--history", "1", "-k", "0", words=["k", "at least 1"])
    refused("recommend", trained, "--history", "1", "-k", "ten", words=["-k", "integer"])
    refused("recommend", trained, "--histories", log, "--out", tmp_path / "out.parquet", "-k", "-3", words=["k", "-3"])
    refused("recommend", words=["RUN", "serrate recommend --help"])


@pytest.mark.parametrize(("history", "words"), [
    ("101,102", ["ID@TIME", "'101'"]), ("101@5,@6,102@7", ["ID@TIME", "'@6'"]), ("101@noon", ["ISO date", "'noon'"]),
    ("101@6,102@5", ["oldest event", "decrease"]), (f"101@{2**64}", ["times", "64 bits"]),
    ("101@1700000000,102@1700000060000", ["one unit", "1700000000 (seconds)", "1700000060000 (milliseconds)"]),
    ("101@5,102@65,@5", ["asked", "60 s before it"])])
def test_a_history_without_usable_times(history, words, refused, timed):
    refused("recommend", timed, "--history", history, words=words)


def test_what_a_model_of_time_needs(refused, serrate, timed, log, tmp_path):
    out = ["--out", tmp_path / "out"]
    refused("recommend", timed, "--histories", log, *out, "--set", "columns.time=null", words=["columns.time"])
    pq.write_table(pa.table({"history": [[101]], "times": [["noon"]]}), tmp_path / "lists.parquet")
    refused("recommend", timed, "--histories", tmp_path / "lists.parquet", *out, words=["lists.parquet", "times"])
    (tmp_path / "timed.yaml").write_text("model: {kind: hstu, width: 8, time: true}")
    refused("train", tmp_path / "timed.yaml", "--data", log, *out, words=["model.time", "columns.time"])
    assert serrate("data", "prepare", log, "--out", tmp_path / "prepared").code == 0
    refused("evaluate", timed, "--data", tmp_path / "prepared", words=["prepared", "reads times", "columns.time"])


def test_columns_that_recommend_does_not_find(refused, trained, log, tmp_path):
    batch = ["recommend", trained, "--histories", log, "--out", tmp_path / "out.parquet"]
    refused(*batch, "--column", "usr=user", words=["unknown key", "did you mean 'user'"])
    refused(*batch, "--column", "user", words=["key.path=value"])
    refused(*batch, "--column", "user=usr", words=["no column 'usr'", "did you mean 'user'"])
    refused(*batch, "--set", "filters=1", words=["did you mean 'filter'"])
    refused(*batch, "--set", "filter=rating > 3", words=["filter", "rating"])


HISTORIES = {
    "truncated Parquet": (truncated, ["log.parquet"]),
    "an empty file": (named("log.parquet", ""), ["log.parquet"]),
    "nothing there": (absent("log.parquet"), ["no such file"]),
    "no lists": (parquet(user=[1], history=[7]), ["'history'", "int64"]),
    "lists of fractions": (parquet(user=[1], history=[[7.0]]), ["'history'", "lists of item ids"]),
    "no events": (csv("user,item,time\n"), ["no events"]),
    "a null user": (csv("user,item,time\n,101,1\n"), ["nulls"]),
}


@pytest.mark.parametrize("case", HISTORIES)
def test_histories_that_are_off(case, refused, trained, tmp_path):
    make, words = HISTORIES[case]
    refused("recommend", trained, "--histories", make(tmp_path), "--out", tmp_path / "out.parquet", words=words)


def test_histories_that_turn_out_damaged_half_way(refused, trained, tmp_path):
    lists = pa.table({"user": range(20_000), "history": [[101, 102]] * 20_000})
    path = tmp_path / "lists.parquet"
    pq.write_table(lists, path, row_group_size=5000, compression="gzip")
    at = pq.read_metadata(path).row_group(2).column(1).data_page_offset
    damaged = bytearray(path.read_bytes())
    damaged[at : at + 200] = b"\xff" * 200
    path.write_bytes(damaged)
    refused("recommend", trained, "--histories", path, "--out", tmp_path / "out.parquet", words=["lists.parquet"])


def test_recommendations_do_not_replace_the_histories(refused, trained, tmp_path):
    lists = parquet(user=[1], history=[[101]])(tmp_path)
    refused("recommend", trained, "--histories", lists, "--out", lists, words=["another file"])


# --- a full disk ---


def no_space(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("module", "name"), [
    ("serrate.data.prepare", "write_arrays"), ("serrate.data.prepare", "np.save"), ("serrate.files", "_sync"),
    ("serrate.files", "os.replace")])
def test_a_full_disk_while_preparing(module, name, refused, tmp_path, log, monkeypatch, small):
    holder, _, attribute = name.rpartition(".")
    place = importlib.import_module(module)  # a function of the same name hides this module in its package
    monkeypatch.setattr(getattr(place, holder) if holder else place, attribute, no_space)
    refused("data", "prepare", log, "--out", tmp_path / "out", words=["out", "No space left on device"])
    refused("train", "default", *small, "--data", log, "--out", tmp_path / "run", words=["No space left on device"])


@pytest.mark.parametrize("writer", ["pyarrow.parquet.ParquetWriter.write_table", "serrate.files._sync"])
def test_a_full_disk_while_recommending(writer, refused, tmp_path, monkeypatch, trained):
    lists = parquet(user=[1], history=[[101]])(tmp_path)
    monkeypatch.setattr(writer, no_space)
    out = tmp_path / "out.parquet"
    refused("recommend", trained, "--histories", lists, "--out", out, words=["out.parquet", "No space left on device"])


def test_a_full_disk_while_reporting(refused, run, monkeypatch):
    monkeypatch.setattr("serrate.files._sync", no_space)
    refused("report", run, words=["report.html", "No space left on device"])


@pytest.fixture
def disk(tmp_path):
    """A real file system of 256 KiB, to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a real full disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(refused, serrate, disk, tmp_path, trained):
    large = tmp_path / "large"
    assert serrate("data", "synthesize", "--events", 100_000, "--out", large).code == 0
    refused("data", "synthesize", "--events", 100_000, "--out", disk / "log", words=["No space left on device"])
    refused("data", "prepare", large / "events.parquet", "--out", disk / "out", words=["out", "No space left"])
    refused("train", "--data", large / "events.parquet", "--out", disk / "run", words=["No space left"])
    items = np.random.default_rng(0).integers(100, 120, (20_000, 2)).tolist()
    pq.write_table(pa.table({"history": items}), tmp_path / "lists.parquet")
    refused("recommend", trained, "--histories", tmp_path / "lists.parquet", "--out", disk / "out.parquet", "-k", 20,
            words=["out.parquet", "No space left on device"])


def test_a_disk_that_fills_while_it_trains(serrate, disk, log, tmp_path, small):
    """One line; what is there is whole, and the run goes on when there is space."""
    assert serrate("data", "prepare", log, "--out", tmp_path / "prepared", "--time", "time").code == 0
    small = [*small, "model.width=64", "model.feedforward=256"]
    train = ["train", "default", *small, "--data", tmp_path / "prepared", "--out"]
    stopped = serrate(*train, disk / "run")
    assert stopped.code == 2
    assert stopped.err.splitlines()[-1].startswith("serrate: error: ")
    assert "No space left on device" in stopped.err.splitlines()[-1]
    subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
    assert serrate("train", "--resume", disk / "run").code == 0
    assert serrate(*train, tmp_path / "run").code == 0
    assert (disk / "run" / "model.safetensors").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()


# --- as another process sees it ---


@pytest.mark.parametrize(("arguments", "word"), [
    (["data", "prepare", "no.csv", "--out", "out"], "no.csv"),
    (["recommend", "no-run", "--history", "1"], "no-run"),
    (["nope"], "nope"),
])
def test_a_process_that_is_refused(arguments, word, tmp_path):
    command = [sys.executable, "-m", "serrate.cli", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("serrate: error: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr
    assert not list(tmp_path.iterdir())
