"""`serrate bench attention` on a CPU: batches of a log and of a distribution, the choice and its reasons, mistakes."""

import io
import json

import pytest
import torch
from rich.console import Console

import serrate.cli.bench as command
from serrate.data import DataConfig, prepare

TINY = ["--heads", 1, "--width", 8, "--device", "cpu", "--seconds", 0.05]


def test_a_distribution_is_measured_beside_its_peers(serrate):
    shown = serrate("bench", "attention", "uniform:12", "--rows", 5, *TINY)
    assert shown.code == 0, shown
    for word in ("cpu, ours", "row by row", "padded flash", "backward ms", "float32, causal", "1.00"):
        assert word in shown.out
    lines = shown.out.splitlines()
    assert "chosen: cpu" in lines
    assert "passed over: triton: needs a CUDA device, got cpu" in lines
    assert "peak MiB" not in shown.out  # nobody measures it on a CPU


@pytest.mark.parametrize("changes", [["--no-causal"], ["--dtype", "bfloat16"], ["--dtype", "float16"]], ids=str)
def test_what_is_measured_can_be_changed(serrate, changes):
    shown = serrate("bench", "attention", "lognormal:9", "--rows", 3, *TINY, *changes)
    assert shown.code == 0, shown
    assert ("not causal" if changes == ["--no-causal"] else changes[-1]) in shown.out


def test_figures_can_be_kept(serrate, tmp_path):
    for _ in range(2):  # and are replaced whole
        shown = serrate("bench", "attention", "equal:7", "--rows", 4, *TINY, "--json", tmp_path / "figures.json")
        assert shown.code == 0, shown
    rows = json.loads((tmp_path / "figures.json").read_text())
    found = {(row["implementation"], row["metric"]): row["value"] for row in rows}
    assert found["batch", "events"] == 28
    assert {name for name, _ in found} == {"batch", "cpu", "row by row", "padded flash"}
    assert all(value > 0 for value in found.values())
    assert {row["workload"] for row in rows} == {"equal:7"}
    assert len(rows) == len(found)
    assert rows[0]["command"]
    assert rows[0]["device"].startswith("CPU")


# --- lengths ---


def workload(rows=None, max_length=None, lengths="", device="cpu", **others):
    options = command.AttentionOptions(lengths, rows=rows, max_length=max_length, **others)
    return command._workload(options, device)


@pytest.fixture
def long_log(tmp_path):
    """A log of 40 users with 1 to 40 events; half of them are liked."""
    path = tmp_path / "long.csv"
    lines = [f"{user},{item},{item % 2}" for user in range(1, 41) for item in range(user)]
    path.write_text("user,item,liked\n" + "\n".join(lines) + "\n")
    return str(path)


def test_a_log_gives_the_lengths_of_its_users(long_log):
    made = workload(rows=40, lengths=long_log)
    assert sorted(made.given) == list(range(1, 41))  # everybody once
    assert (made.rows, made.longest, made.name) == (40, 40, "long.csv")
    assert workload(rows=40, lengths=long_log).given == made.given
    assert set(workload(rows=400, lengths=long_log).given) == set(range(1, 41))  # more rows than users
    few = workload(rows=10, lengths=long_log)
    assert len(set(few.given)) == 10
    assert few.longest == max(few.given)


def test_histories_are_cut_and_events_filtered(long_log):
    assert sorted(workload(rows=40, lengths=long_log, max_length=7).given) == [*range(1, 7), *[7] * 34]
    liked = workload(rows=39, lengths=long_log, condition="liked = 1")
    assert sorted(liked.given) == sorted(user // 2 for user in range(2, 41))


def test_a_command_on_a_log(serrate, log):
    shown = serrate("bench", "attention", log, "--rows", 6, *TINY)
    assert shown.code == 0, shown
    assert "30 histories" in shown.err
    assert "chosen: cpu" in shown.out


def test_a_cpu_gets_a_batch_that_it_can_do():
    assert workload(lengths="equal:512").rows == 32
    assert workload(lengths="equal:30000").rows == 1
    assert workload(lengths="equal:512", device="cuda").rows == 1024
    assert workload(lengths="equal:512", rows=99).rows == 99


def test_padding_that_would_take_too_long_is_left_out(serrate, tmp_path):
    lengths = tmp_path / "log.csv"
    lengths.write_text("user,item\n" + "\n".join(["1,1"] * 3000 + [f"{user},1" for user in range(2, 1000)]) + "\n")
    shown = serrate("bench", "attention", lengths, "--rows", 999, *TINY)
    assert shown.code == 0, shown
    assert "padded flash             left out: it would take about" in shown.err
    assert "padded flash" not in shown.out


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["unifrm:12"], ["LENGTHS", "uniform:N", "did you mean 'uniform'?", "unifrm:12"]),
        (["uniform:0"], ["LENGTHS", "from 1 to"]),
        (["uniform:-3"], ["LENGTHS"]),
        (["uniform:many"], ["LENGTHS"]),
        (["uniform:99999999"], ["LENGTHS"]),
        (["nothing-there.csv"], ["nothing-there.csv", "no such file"]),
        (["uniform:12", "--rows", 0], ["--rows"]),
        (["uniform:12", "--rows", 10**14], ["--rows"]),
        (["uniform:12", "--heads", 0], ["--heads"]),
        (["uniform:12", "--width", 10**20], ["--width"]),
        (["uniform:12", "--filter", "item > 1"], ["--filter", "a log", "uniform:12"]),
        (["uniform:12", "--dtype", "bfloat"], ["--dtype", "did you mean 'bfloat16'?"]),
        (["uniform:12", "--device", "tpu"], ["--device", "cpu or cuda"]),
        (["uniform:12", "--max-length", 0], ["--max-length"]),
        (["uniform:12", "--max-length", 10**20], ["--max-length"]),
        ([], ["LENGTHS"]),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(refused, arguments, words):
    refused("bench", "attention", *arguments, words=words)


def test_the_filter_of_a_prepared_data_set_is_its_own(refused, long_log, tmp_path):
    prepare(long_log, DataConfig(), tmp_path / "prepared")
    assert sorted(workload(rows=40, lengths=str(tmp_path / "prepared")).given) == list(range(1, 41))
    refused("bench", "attention", tmp_path / "prepared", "--filter", "liked = 1", words=["--filter", "a log"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_a_mistake(refused):
    refused("bench", "attention", "uniform:12", "--device", "cuda", words=["--device", "no CUDA device here"])


def test_a_log_with_other_columns_is_a_mistake(refused, tmp_path):
    (tmp_path / "log.csv").write_text("who,item\n1,2\n")
    refused("bench", "attention", tmp_path / "log.csv", words=["no column 'user'", "'who'"])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("much"), RuntimeError("you can't allocate memory"),
                                   RuntimeError("Storage size calculation overflowed")], ids=str)
def test_what_does_not_fit_is_told(refused, monkeypatch, error):
    def compare(inputs, how):
        raise error

    monkeypatch.setattr(command, "compare", compare)
    monkeypatch.setattr(command, "_describe", lambda workload: None)
    refused("bench", "attention", "uniform:12", *TINY, words=["--rows", "--max-length"])


def test_the_group_alone_shows_its_commands(serrate):
    shown = serrate("bench")
    assert shown == serrate("bench", "--help")
    assert "attention" in shown.out
    assert "..." not in shown.out[shown.out.index("Commands:"):]


def test_names_stay_on_one_line_of_a_narrow_terminal():
    figures = {"forward_ms": 0.1403, "forward_backward_ms": 0.3002, "graph_forward_ms": 0.009152,
               "graph_forward_backward_ms": 0.01709, "peak_mib": 0.2285}
    rows = [{"implementation": name, "metric": metric, "value": value} for metric, value in figures.items()
            for name in ("triton", "padded efficient") if name == "triton" or "graph" not in metric]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(command._table(rows, "triton", "attention"))
    lines = console.export_text().splitlines()
    for name in ("triton, ours", "triton, graph replayed", "padded efficient"):
        line = next(line for line in lines if name in line)
        assert len(line) <= 80
        assert ("0.00915" if "graph" in name else "0.14") in line
        assert ("0.0171" if "graph" in name else "0.3") in line


@pytest.mark.gpu
def test_a_gpu_is_measured_with_its_memory(serrate):
    shown = serrate("bench", "attention", "uniform:64", "--rows", 16, "--heads", 2, "--width", 32)
    assert shown.code == 0, shown
    for word in ("triton, ours", "triton, graph replayed", "varlen", "flex with mask", "peak MiB", "chosen: triton"):
        assert word in shown.out
