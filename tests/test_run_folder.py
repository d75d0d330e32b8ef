import json
import math
import os
from pathlib import Path

import pytest

from serrate import run_folder
from serrate.errors import InvalidRun, NotWritable
from serrate.run_folder import FORMAT_VERSION, RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.write_config({"seed": 1})
    return folder


def refusal(call) -> str:
    with pytest.raises(InvalidRun) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_file_has_the_name_the_design_gives_it(tmp_path: Path):
    folder = RunFolder(str(tmp_path))
    paths = [
        folder.config_path,
        folder.model_path,
        folder.items_path,
        folder.metrics_path,
        folder.log_path,
        folder.report_path,
        folder.checkpoints_path,
    ]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "config.json",
        "model.safetensors",
        "items.parquet",
        "metrics.json",
        "log.jsonl",
        "report.html",
        "checkpoints",
    ]


def test_config_comes_back_with_the_format_version(run: RunFolder):
    assert run.read_config() == {"seed": 1, "format_version": FORMAT_VERSION}


def test_the_format_version_is_ours_whatever_the_values_say(run: RunFolder):
    run.write_config({"format_version": 99})
    assert run.read_config() == {"format_version": FORMAT_VERSION}


@pytest.mark.parametrize("make", ["nothing", "file", "empty folder"])
def test_what_is_not_a_saved_run_is_refused(tmp_path: Path, make: str):
    path = tmp_path / "run"
    if make == "file":
        path.write_text("x")
    if make == "empty folder":
        path.mkdir()
    message = refusal(RunFolder(path).read_config)
    assert str(path) in message
    assert {"nothing": "nothing there", "file": "a file", "empty folder": "no config.json"}[make] in message


def test_a_newer_format_is_refused_naming_both_versions(run: RunFolder):
    run.config_path.write_text(json.dumps({"format_version": FORMAT_VERSION + 6}))
    message = refusal(run.read_config)
    assert f"version {FORMAT_VERSION + 6}" in message
    assert f"version {FORMAT_VERSION};" in message


def test_an_older_format_without_a_migration_is_refused(run: RunFolder):
    run.config_path.write_text(json.dumps({"format_version": 0}))
    assert "can no longer migrate" in refusal(run.read_config)


def test_an_older_format_goes_through_every_migration(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_folder, "FORMAT_VERSION", 3)
    monkeypatch.setitem(run_folder.MIGRATIONS, 1, lambda old: {**old, "trail": ["1→2"]})
    monkeypatch.setitem(run_folder.MIGRATIONS, 2, lambda old: {**old, "trail": [*old["trail"], "2→3"]})
    assert run.read_config() == {"seed": 1, "trail": ["1→2", "2→3"], "format_version": 3}


@pytest.mark.parametrize("version", [None, "1", 1.0, True, [1]])
def test_a_format_version_that_is_no_whole_number_is_refused(run: RunFolder, version):
    run.config_path.write_text(json.dumps({"format_version": version}))
    assert "format_version" in refusal(run.read_config)


DAMAGED = {
    "empty": b"",
    "cut": b'{"format_version": 1, "se',
    "not text": b"\xff\xfe\x00PAR1",
    "endless nesting": b"[" * 200_000,
    "endless number": b'{"a": ' + b"9" * 10_000 + b"}",
    "a list": b"[1, 2]",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_json_is_one_line_that_names_the_file(run: RunFolder, damage: str):
    run.config_path.write_bytes(DAMAGED[damage])
    run.metrics_path.write_bytes(DAMAGED[damage])
    assert str(run.config_path) in refusal(run.read_config)
    assert str(run.metrics_path) in refusal(run.read_metrics)


def test_an_unreadable_file_is_one_line(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "Permission denied" in refusal(run.read_config)


def test_a_folder_in_the_place_of_a_file_is_one_line(run: RunFolder):
    run.metrics_path.mkdir()
    run.log_path.mkdir()
    assert str(run.metrics_path) in refusal(run.read_metrics)
    assert str(run.log_path) in refusal(lambda: list(run.read_log()))


def test_missing_metrics_are_refused(run: RunFolder):
    assert "metrics.json" in refusal(run.read_metrics)


def test_metrics_come_back_with_nan_as_null(run: RunFolder):
    run.write_metrics({"rows": [{"value": math.nan, "low": -math.inf, "high": 0.5}], "warnings": ("w",)})
    assert run.read_metrics() == {"rows": [{"value": None, "low": None, "high": 0.5}], "warnings": ["w"]}


def test_the_log_comes_back_in_order(run: RunFolder):
    records = [{"event": "start"}, {"event": "step", "loss": 1.5}, {"event": "end", "reason": "Ende · 完"}]
    for record in records:
        run.append_log(record)
    assert list(run.read_log()) == records
    assert run.log_path.read_text(encoding="utf-8").count("\n") == 3


def test_a_missing_or_empty_log_has_no_records(run: RunFolder):
    assert list(run.read_log()) == []
    run.log_path.touch()
    assert list(run.read_log()) == []


def test_a_diverged_loss_is_null_in_the_log(run: RunFolder):
    run.append_log({"event": "step", "loss": math.nan})
    assert list(run.read_log()) == [{"event": "step", "loss": None}]


def test_the_first_append_makes_the_folder(tmp_path: Path):
    folder = RunFolder(tmp_path / "a" / "b")
    folder.append_log({"event": "start"})
    assert list(folder.read_log()) == [{"event": "start"}]


@pytest.mark.parametrize("cut", range(1, 18))
def test_a_line_torn_anywhere_is_left_out_and_then_cut(run: RunFolder, cut: int):
    run.append_log({"event": "start"})
    line = b'{"event": "step"}\n'
    with run.log_path.open("ab") as file:
        file.write(line[:cut])
    assert list(run.read_log()) == [{"event": "start"}]
    run.append_log({"event": "resume"})
    assert list(run.read_log()) == [{"event": "start"}, {"event": "resume"}]


@pytest.mark.parametrize("size", [4095, 4096, 4097, 20_000])
@pytest.mark.parametrize("before", [b"", b"{}\n"])
def test_a_long_torn_line_is_cut_whole(run: RunFolder, before: bytes, size: int):
    run.log_path.write_bytes(before + b"\0" * size)
    run.append_log({"event": "resume"})
    assert run.log_path.read_bytes() == before + b'{"event": "resume"}\n'


def test_a_damaged_line_in_the_middle_is_named(run: RunFolder):
    run.log_path.write_bytes(b'{"event": "start"}\n{"eve\n{"event": "end"}\n')
    assert f"{run.log_path} line 2" in refusal(lambda: list(run.read_log()))


def test_a_log_that_cannot_be_written_is_one_line(run: RunFolder):
    run.log_path.mkdir()
    with pytest.raises(NotWritable, match=r"cannot write .*log\.jsonl"):
        run.append_log({"event": "start"})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(run: RunFolder):
    run.log_path.symlink_to("/dev/full")
    with pytest.raises(NotWritable, match="No space left"):
        run.append_log({"event": "start"})


def test_a_path_like_object_is_taken(run: RunFolder):
    class Place(os.PathLike):
        def __fspath__(self) -> str:
            return str(run.path)

    assert RunFolder(Place()).read_config()["seed"] == 1
    assert repr(RunFolder("x")) == "RunFolder('x')"


def test_figures_of_indexes_come_back_and_damaged_ones_are_told(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_index_rows() == []
    folder.write_index_rows([{"index": "a", "recall": float("nan")}])
    assert folder.read_index_rows() == [{"index": "a", "recall": None}]
    for text in ("{}", '{"rows": [1]}', "[]"):
        folder.index_path.write_text(text)
        with pytest.raises(InvalidRun, match=r"index\.json"):
            folder.read_index_rows()
