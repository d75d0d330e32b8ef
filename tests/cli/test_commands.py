"""Every command as a person uses it."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml

from serrate.cli.main import app, main

GROUP = typer.main.get_command(app)
COMMANDS = [[name] if not hasattr(command, "commands") else [name, inner]
            for name, command in GROUP.commands.items() for inner in getattr(command, "commands", {None: None})]


# --- help ---


def examples(text):
    """Return the example lines of a help text."""
    _, _, after = re.split(r"(  Examples?:\n)", text)
    return [line.strip() for line in after.split("\n\n")[0].splitlines()]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_examples_that_can_be_copied(command, serrate, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")  # a narrow terminal does not break them
    shown = serrate(*command, "--help")
    assert shown.code == 0
    assert shown.err == ""
    found = examples(shown.out)
    assert found
    for example in found:
        program, *arguments = shlex.split(example)
        if program == "torchrun":
            arguments = arguments[arguments.index("serrate.cli") + 1 :]
        else:
            assert program == "serrate"
        arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
        assert arguments[: len(command)] == command
        step = GROUP
        for part in command:
            step = step.commands[part]
        step.make_context(example, arguments[len(command) :])  # every option of it exists


@pytest.mark.parametrize("group", [[], ["data"], ["config"]], ids=" ".join)
def test_a_group_alone_shows_its_commands(group, serrate):
    shown = serrate(*group)
    assert shown.code == 0
    assert shown.out == serrate(*group, "--help").out
    assert "..." not in shown.out.partition("Commands:")[2]  # each summary fits its line


# --- config ---


def test_recipes_are_listed_shown_and_valid(serrate):
    lines = serrate("config", "ls").out.splitlines()
    names = [line.split()[0] for line in lines]
    assert {"default", "quickstart"} <= set(names)
    assert all(len(line.split()) > 3 for line in lines)
    for name in names:
        assert serrate("config", "validate", name) == (0, f"{name}: valid\n", "")
        assert yaml.safe_load(serrate("config", "show", name).out)["train"]["epochs"] >= 1


def test_what_is_shown_is_a_recipe_itself(serrate, tmp_path):
    condition = "data.filter=" + " AND ".join(f"column_number_{number} >= {number}" for number in range(30))
    shown = serrate("config", "show", "default", "train.epochs=3", condition)
    longer = tmp_path / "longer.yaml"
    longer.write_text(shown.out)
    assert serrate("config", "show", longer).out == shown.out
    assert yaml.safe_load(shown.out)["train"]["epochs"] == 3


def test_a_copied_recipe_is_the_recipe(serrate, tmp_path):
    assert serrate("config", "cp", "quickstart", tmp_path / "mine.yaml") == (0, "", "")
    assert serrate("config", "show", tmp_path / "mine.yaml").out == serrate("config", "show", "quickstart").out


# --- doctor, data ---


def test_doctor_tells_versions_devices_and_reasons(serrate):
    shown = serrate("doctor")
    assert shown.code == 0
    for word in ("torch", "duckdb", "python", "cpu", "yes, chosen", "no: "):
        assert word in shown.out


def test_inspect_takes_usual_names_and_says_what_next(serrate, tmp_path):
    log = tmp_path / "my events.csv"
    log.write_text("user_id,sku,timestamp\n1,a,1\n1,b,2\n2,a,3\n")
    shown = serrate("data", "inspect", log)
    assert shown.code == 0
    assert "3 events" in shown.out
    assert "note: split: leave-last-two-out needs a user with 3 events" in shown.out  # and is no error here
    step = next(line for line in shown.out.splitlines() if line.startswith("next: "))
    program, *arguments = shlex.split(step.removeprefix("next: "))
    assert program == "serrate"
    arguments[arguments.index("prepared")] = tmp_path / "prepared"
    assert serrate(*arguments).code == 0
    again = serrate("data", "inspect", tmp_path / "prepared")
    assert again.code == 0
    assert "num users" in again.out


def test_inspect_asks_for_columns_it_cannot_guess(serrate, tmp_path):
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    shown = serrate("data", "inspect", tmp_path / "log.csv")
    assert shown.code == 0
    assert "--user COLUMN --item COLUMN" in shown.err


def test_synthesize_is_exact_and_repeatable(serrate, tmp_path, contents):
    for name in ("one", "two"):
        assert serrate("data", "synthesize", "--events", 5000, "--seed", 3, "--out", tmp_path / name).code == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(contents(tmp_path / "one")) == ["events.parquet", "items.parquet"]
    assert pq.read_metadata(tmp_path / "one" / "events.parquet").num_rows == 5000


def test_a_stream_is_as_large_as_asked_and_what_its_recipes_read(serrate, tmp_path):
    out = tmp_path / "stream"
    assert serrate("data", "synthesize", "--kind", "stream", "--events", 6400, "--out", out).code == 0
    log = pq.read_table(out / "events.parquet")
    assert (log.num_rows, log["user"][-1].as_py()) == (6400, 50)
    blink = ["model.width=4", "model.blocks=1", "train.device=cpu", "evaluate.resamples=2",
             "split.test_from=0.95"]
    trained = serrate("train", "streaming-transformer", "--data", out / "events.parquet", "--out", tmp_path / "run",
                      *blink)
    assert trained.code == 0, trained.err


def test_ads_are_as_many_as_asked_and_can_be_prepared(serrate, tmp_path, contents):
    out = tmp_path / "ads"
    assert serrate("data", "synthesize", "--kind", "ads", "--events", 4000, "--seed", 5, "--out", out).code == 0
    assert sorted(contents(out)) == ["events.parquet", "items.parquet", "users.parquet"]
    assert pq.read_metadata(out / "events.parquet").num_rows == 4000
    assert serrate("data", "prepare", out / "events.parquet", "--out", tmp_path / "prepared", "--time", "time",
                   "--set", "columns.features=[action, slot, probability]").code == 0
    few = serrate("data", "synthesize", "--kind", "ads", "--events", 11, "--out", tmp_path / "few")
    assert few.code == 2
    assert few.err.strip() == "serrate: error: --events: expected at least 12, three requests of 4 ads, got 11"


# --- a run's life ---


@pytest.fixture(scope="module")
def prepared(log, tmp_path_factory):
    """`log`, prepared."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    assert main(["data", "prepare", str(log), "--out", str(folder), "--time", "time"]) == 0
    return folder


def test_train_says_what_it_found(serrate, tmp_path, log, small):
    shown = serrate("train", "default", *small, "--data", log, "--out", tmp_path / "run")
    assert shown.code == 0
    for word in ("test split, 30 examples", "Markov", "ndcg@10", "saved run: ", "report.html"):
        assert word in shown.out
    for word in ("parameters", "epoch 1: validation", "chosen on validation"):
        assert word in shown.err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json", "data", "items.parquet", "log.jsonl", "metrics.json", "model.safetensors", "report.html"]


def test_a_log_and_a_prepared_data_set_give_the_same_run(serrate, tmp_path, prepared, trained, small, contents):
    assert serrate("train", "default", *small, "--data", prepared, "--out", tmp_path / "run").code == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert contents(prepared) == contents(trained / "data") | {"dataset.json": contents(prepared)["dataset.json"]}


def test_the_data_may_be_prepared_in_the_run_folder(serrate, tmp_path, log, small):
    data = tmp_path / "run" / "data"
    assert serrate("data", "prepare", log, "--out", data, "--time", "time").code == 0
    assert serrate("train", "default", *small, "--data", data, "--out", tmp_path / "run").code == 0
    assert serrate("evaluate", tmp_path / "run").code == 0


def test_what_a_killed_run_prepared_is_taken_up_for_the_same_log_only(serrate, tmp_path, log, small):
    run = tmp_path / "run"
    train = ["train", "default", *small, "--out", run, "--data"]
    assert serrate(*train, log).code == 0
    for part in list(run.iterdir()):  # killed right after preparing
        if part.name != "data":
            part.unlink()
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(log).slice(40), other)
    refused = serrate(*train, other)
    assert refused.code == 2
    assert "not empty" in refused.err
    assert (run / "data" / "dataset.json").exists()
    made = (run / "data" / "item.npy").stat().st_mtime_ns
    assert serrate(*train, log).code == 0
    assert (run / "data" / "item.npy").stat().st_mtime_ns == made


def test_what_a_killed_run_prepared_with_an_item_table(serrate, tmp_path, log, small):
    titles = pa.table({"id": range(100, 120), "title": ["x"] * 20, "other": ["y"] * 20})
    pq.write_table(titles, tmp_path / "items.parquet")
    shutil.copy(log, tmp_path / "log.parquet")
    run = tmp_path / "run"
    train = ["train", "default", *small, "data.items={path: items.parquet, key: id, title: title}",  # beside the log
             "--data", tmp_path / "log.parquet", "--out", run]
    assert serrate(*train).code == 0
    for part in list(run.iterdir()):
        if part.name != "data":
            part.unlink()
    assert "not empty" in serrate(*train, "data.items.title=other").err
    assert serrate(*train).code == 0


def test_evaluate_repeats_the_metrics_of_the_run(serrate, trained):
    shown = serrate("evaluate", trained, "--json")
    assert shown.err == ""
    again = json.loads(shown.out)
    kept = json.loads((trained / "metrics.json").read_text())
    assert again["examples"] == {"test": 30}
    assert again["rows"] == [row for row in kept["rows"] if row["split"] == "test"]


def test_a_run_that_knows_its_users_is_evaluated_with_them(serrate, log, small, tmp_path):
    mixture = ("model.similarity={kind: mol, query_components: 2, item_components: 1, component_width: 4, "
               "gate_hidden: 4, query_hidden: 4, user_buckets: 30}")
    assert serrate("train", "default", *small, mixture, "loss.kind=full-softmax", "--data", log,
                   "--out", tmp_path / "run").code == 0
    again = json.loads(serrate("evaluate", tmp_path / "run", "--json").out)
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert again["rows"] == [row for row in kept["rows"] if row["split"] == "test"]


def test_evaluate_on_validation_and_with_changes(serrate, trained):
    shown = json.loads(serrate("evaluate", trained, "--split", "validation", "--no-baselines", "--json").out)
    assert [(row["model"], row["split"]) for row in shown["rows"]] == [("transformer", "validation")]
    shown = json.loads(serrate("evaluate", trained, "--set", "evaluate.cutoffs=[3]", "--json").out)
    assert "hr@3" in shown["rows"][0]["metrics"]
    assert "transformer" in serrate("evaluate", trained).out


def test_a_run_that_moved_still_finds_its_data(serrate, tmp_path, log, small, trained):
    assert serrate("train", "default", *small, "--data", log, "--out", tmp_path / "first").code == 0
    shutil.move(tmp_path / "first", tmp_path / "second")
    shown = serrate("evaluate", tmp_path / "second", "--json")
    assert json.loads(shown.out)["rows"] == json.loads(serrate("evaluate", trained, "--json").out)["rows"]


def test_recommend_one_history(serrate, trained):
    shown = serrate("recommend", trained, "--history", "101, 102,999", "-k", 3)
    assert [line.split()[0] for line in shown.out.splitlines()] == ["1", "2", "3"]
    items = [line.split()[1] for line in shown.out.splitlines()]
    assert not {"101", "102"} & set(items)
    assert shown.err == "note: not known to the model: 999\n"
    assert len(serrate("recommend", trained, "--history", "101", "--no-exclude-seen", "-k", 50).out.splitlines()) == 20
    frequent = pq.read_table(trained / "items.parquet")["id"].to_pylist()[:2]
    empty = serrate("recommend", trained, "--history", "", "-k", 2)  # nobody known: what was most frequent
    assert [int(line.split()[1]) for line in empty.out.splitlines()] == frequent


def test_recommend_to_a_log_and_to_lists_alike(serrate, tmp_path, trained, log):
    events = pq.read_table(log).to_pandas().sort_values(["user", "time"])
    lists = events.groupby("user")["item"].apply(list).reset_index(name="history")
    pq.write_table(pa.Table.from_pandas(lists, preserve_index=False), tmp_path / "lists.parquet")
    renamed = events.rename(columns={"user": "visitor"}).sample(frac=1, random_state=0)
    renamed.to_csv(tmp_path / "renamed.csv", index=False)
    sources = {"log": [log], "lists": [tmp_path / "lists.parquet"], "prepared": [trained / "data"],
               "renamed": [tmp_path / "renamed.csv", "--column", "user=visitor"]}
    answers = {}
    for name, source in sources.items():
        out = tmp_path / f"{name}-out.parquet"
        shown = serrate("recommend", trained, "--histories", *source, "--out", out, "-k", 4)
        assert shown == (0, "", f"30 users, {len(events)} events → {out}\n")
        answers[name] = pq.read_table(out)
    assert answers["log"]["user"].to_pylist() == list(range(30))
    assert answers["log"].schema.names == ["user", "items", "scores", "unknown"]
    for name in sources:
        assert answers[name]["user"].to_pylist() == list(range(30))
        assert answers[name]["items"].to_pylist() == answers["log"]["items"].to_pylist()


def test_a_model_of_time_goes_the_whole_way(serrate, tmp_path, timed, log):
    shown = json.loads(serrate("evaluate", timed, "--json").out)
    assert shown["rows"] == [row for row in json.loads((timed / "metrics.json").read_text())["rows"]
                             if row["split"] == "test"]
    assert (timed / "report.html").exists()
    one = serrate("recommend", timed, "--history", "101@1970-01-01T01:00:00,102@1970-01-01T02:00:00", "-k", 3)
    assert (one.code, one.err, len(one.out.splitlines())) == (0, "", 3)
    assert serrate("recommend", timed, "--history", "101@3600,102@7200.0, @7200", "-k", 3) == one
    assert serrate("recommend", timed, "--history", "101@3600,102@7200, @999999999", "-k", 3).out != one.out
    many = serrate("recommend", timed, "--histories", log, "--out", tmp_path / "out.parquet")
    assert many.code == 0
    assert len(pq.read_table(tmp_path / "out.parquet")) == 30


def test_unknown_items_are_noted(serrate, tmp_path, trained):
    (tmp_path / "new.csv").write_text("user,item,time\n7,101,1\n7,999,2\n8,998,1\n")
    shown = serrate("recommend", trained, "--histories", tmp_path / "new.csv", "--out", tmp_path / "out.parquet")
    assert "2 events have items that the model does not know" in shown.err
    assert pq.read_table(tmp_path / "out.parquet")["unknown"].to_pylist() == [1, 1]


def test_report_again(serrate, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    assert serrate("report", tmp_path / "run") == (0, f"{tmp_path / 'run' / 'report.html'}\n", "")
    assert "<html" in (tmp_path / "run" / "report.html").read_text()


def test_a_stopped_run_goes_on_to_the_same_result(serrate, tmp_path, prepared, small, trained, monkeypatch):
    run = tmp_path / "run"

    def stop(record):
        if record["event"] == "validation":
            raise KeyboardInterrupt

    monkeypatch.setattr("serrate.cli.show.TrainingProgress._validation", lambda _, record: stop(record))
    stopped = serrate("train", "default", *small, "--data", prepared, "--out", run)
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == "serrate: interrupted"
    assert "no model" in serrate("recommend", run, "--history", "101").err
    monkeypatch.undo()
    assert serrate("train", "--resume", run).code == 0
    assert (run / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_quickstart_goes_the_whole_way(serrate, tmp_path):
    shown = serrate("quickstart", "--events", 2000, "--out", tmp_path / "try")
    assert shown.code == 0
    assert (tmp_path / "try" / "run" / "report.html").exists()
    command = next(line for line in shown.out.splitlines() if line.startswith("serrate recommend"))
    shown_last = shown.out.partition(command + "\n")[2]
    assert len(shown_last.splitlines()) == 5
    assert "cluster" in shown_last  # titles
    assert serrate(*shlex.split(command)[1:]).out == shown_last


# --- as another process sees it ---


def serrate_process(*arguments, **options):
    return subprocess.Popen([sys.executable, "-m", "serrate.cli", *map(str, arguments)], **options)


@pytest.mark.parametrize("arguments", [["config", "show", "default"], ["train", "--help"]], ids=" ".join)
def test_a_reader_that_has_seen_enough(arguments):
    with serrate_process(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # as head does
        assert process.stderr.read() == b""


def test_an_interrupt_ends_with_130_and_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    with serrate_process("data", "synthesize", "--events", 30_000_000, "--out", out, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE) as process:
        while process.poll() is None and not list(tmp_path.iterdir()):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed == b""
    assert told.decode().split() == ["serrate:", "interrupted"]
    assert not list(tmp_path.iterdir())


def test_an_interrupt_that_meets_a_query(serrate, monkeypatch, tmp_path, log):
    def interrupted(*arguments):
        raise RuntimeError("Query interrupted")  # what DuckDB makes of Ctrl-C

    monkeypatch.setattr("serrate.data.engine.duckdb.DuckDBPyConnection.execute", interrupted)
    assert serrate("data", "prepare", log, "--out", tmp_path / "out") == (130, "", "serrate: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_json_is_all_that_is_on_stdout(trained):
    with serrate_process("evaluate", trained, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        printed, _ = process.communicate(timeout=120)
    assert json.loads(printed)["rows"]
