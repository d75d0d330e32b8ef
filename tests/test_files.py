import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serrate import files
from serrate.errors import InvalidArgument, NotWritable
from serrate.files import write_aside, write_folder_aside, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(call) -> str:
    with pytest.raises(NotWritable) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(path: Path, text: str, **options) -> None:
    """Write a file, or with `replace` given a folder of two files, through the function under test."""
    if options:
        with write_folder_aside(path, **options) as partial:
            (partial / "a").write_text(text)
            (partial / "deep").mkdir()
            (partial / "deep" / "b").write_text(text)
    else:
        with write_aside(path) as partial:
            partial.write_text(text)


# --- files ---


def test_a_file_appears_whole_in_folders_that_are_made(tmp_path):
    with write_aside(tmp_path / "x" / "y" / "f") as partial:
        partial.write_text("all of it")
        assert not (tmp_path / "x" / "y" / "f").exists()
        assert partial.parent == tmp_path / "x" / "y"  # the same file system, so the rename is one step
    assert (tmp_path / "x" / "y" / "f").read_text() == "all of it"
    assert names(tmp_path / "x" / "y") == ["f"]


def test_a_file_replaces_the_one_before(tmp_path):
    put(tmp_path / "f", "old")
    put(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "new"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), FileNotFoundError(2, "No", "input.csv")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    put(tmp_path / "f", "old")

    def fail():
        with write_aside(tmp_path / "f") as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error  # what is not about this file passes unchanged
    assert (tmp_path / "f").read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with write_aside(tmp_path / "f") as first:
        first.write_text("first")
        put(tmp_path / "f", "second")
        assert first.exists()
    assert (tmp_path / "f").read_text() == "first"
    assert names(tmp_path) == ["f"]


def test_a_link_is_followed_and_stays(tmp_path):
    put(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    put(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_what_is_no_file_is_refused_before_any_work(tmp_path):
    def write_over(path: Path):
        with write_aside(path):
            pytest.fail("the work was begun")

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert "something there that is not a file" in refusal(lambda: write_over(tmp_path / "pipe"))
    assert "something there that is not a file" in refusal(lambda: write_over(tmp_path / "folder"))
    assert "something there that is not a file" in refusal(lambda: write_over(Path("/dev/null")))


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "f").write_text("x")
    message = refusal(lambda: put(tmp_path / "f" / "g", "y"))
    assert str(tmp_path / "f" / "g") in message
    assert "File exists" in message or "Not a directory" in message
    refusal(lambda: put(tmp_path / "f" / "g" / "h", "y", replace=False))
    assert (tmp_path / "f").read_text() == "x"


def test_a_name_that_is_too_long_is_refused(tmp_path):
    assert "File name too long" in refusal(lambda: put(tmp_path / ("n" * 300), "x"))
    assert names(tmp_path) == []


# --- folders ---


def test_a_folder_appears_whole(tmp_path):
    with write_folder_aside(tmp_path / "x" / "run") as partial:
        (partial / "a").write_text("1")
        assert not (tmp_path / "x" / "run").exists()
    assert names(tmp_path / "x") == ["run"]
    assert names(tmp_path / "x" / "run") == ["a"]


def test_a_folder_has_ordinary_permissions(tmp_path):
    put(tmp_path / "run", "1", replace=False)
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "run").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "run").mkdir()
    put(tmp_path / "run", "1", replace=False)
    assert names(tmp_path / "run") == ["a", "deep"]


@pytest.mark.parametrize("there", ["full folder", "file"])
def test_what_is_there_is_kept_unless_replaced(tmp_path, there):
    if there == "file":
        (tmp_path / "run").write_text("old")
    else:
        put(tmp_path / "run", "old", replace=False)
    with pytest.raises(InvalidArgument, match="out: expected a path that does not exist or an empty folder"):
        put(tmp_path / "run", "new", replace=False)
    kept = tmp_path / "run" if there == "file" else tmp_path / "run" / "a"
    assert kept.read_text() == "old"
    assert names(tmp_path) == ["run"]


def test_a_full_folder_is_replaced_on_request(tmp_path):
    put(tmp_path / "run", "old", replace=False)
    (tmp_path / "run" / "stray").write_text("x")
    put(tmp_path / "run", "new", replace=True)
    assert names(tmp_path / "run") == ["a", "deep"]
    assert (tmp_path / "run" / "deep" / "b").read_text() == "new"
    assert names(tmp_path) == ["run"]


def test_a_file_is_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "run").write_text("old")
    with pytest.raises(InvalidArgument, match="got a file"):
        put(tmp_path / "run", "new", replace=True)
    assert (tmp_path / "run").read_text() == "old"


@pytest.mark.parametrize("replace", [False, True])
def test_a_failure_leaves_no_folder(tmp_path, replace):
    if replace:
        put(tmp_path / "run", "old", replace=False)
    before = names(tmp_path)

    def fail():
        with write_folder_aside(tmp_path / "run", replace=replace) as partial:
            (partial / "a").write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert names(tmp_path) == before
    if replace:
        assert (tmp_path / "run" / "a").read_text() == "old"


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    put(tmp_path / "run", "old", replace=False)
    rename, calls = os.replace, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    assert "Input/output error" in refusal(lambda: put(tmp_path / "run", "new", replace=True))
    assert (tmp_path / "run" / "a").read_text() == "old"
    assert names(tmp_path) == ["run"]


# --- a full disk ---


@pytest.mark.parametrize("options", [{}, {"replace": True}], ids=["file", "folder"])
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_one_line_and_leaves_the_old(tmp_path, monkeypatch, options, call, code):
    put(tmp_path / "out", "old", **options)
    before = sorted(path.read_text() for path in tmp_path.rglob("*") if path.is_file())

    def refused(path, *_):
        patch.undo()  # once is enough; cleaning up needs the same calls
        raise OSError(code, os.strerror(code), path if call != "fsync" else None)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refused)
        if call == "fsync" and code == errno.EACCES:  # no disk says that there: it is not taken for ours
            with pytest.raises(PermissionError):
                put(tmp_path / "out", "new", **options)
        else:
            message = refusal(lambda: put(tmp_path / "out", "new", **options))
            assert message == f"{tmp_path / 'out'}: cannot be written ({os.strerror(code)})"
    assert sorted(path.read_text() for path in tmp_path.rglob("*") if path.is_file()) == before
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("options", [{}, {"replace": True}], ids=["file", "folder"])
def test_a_disk_that_fills_while_the_caller_writes_is_named_by_the_target(tmp_path, options):
    writer = write_folder_aside if options else write_aside

    def fill():
        with writer(tmp_path / "out", **options):
            raise OSError(errno.ENOSPC, "No space left on device")  # as file.write raises it: without a name

    assert refusal(fill) == f"{tmp_path / 'out'}: cannot be written (No space left on device)"
    assert names(tmp_path) == []


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_real_limit_on_file_size_leaves_nothing(tmp_path):
    done = run(
        "import resource, sys; from pathlib import Path; from serrate.files import write_json\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "write_json(Path(sys.argv[1]), ['x' * 100] * 1000)",
        tmp_path / "out.json",
    )
    assert "NotWritable" in done.stderr
    assert f"{tmp_path / 'out.json'}: cannot be written (File too large)" in done.stderr
    assert names(tmp_path) == []


# --- kill -9 ---

HALF_A_FILE = """
import sys, time
from pathlib import Path
from serrate.files import write_aside, write_folder_aside
with (write_aside if sys.argv[2] == "file" else write_folder_aside)(Path(sys.argv[1])) as partial:
    (partial if sys.argv[2] == "file" else partial / "a").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def killed_half_way(path: Path, kind: str) -> None:
    """Leave behind what a process leaves that is killed in the middle of writing `path`."""
    command = [sys.executable, "-c", HALF_A_FILE, str(path), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_writer_leaves_no_target_and_the_next_one_cleans_up(tmp_path, kind):
    killed_half_way(tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()
    assert len(names(tmp_path)) == 1  # a hidden leftover
    put(tmp_path / "other", "x")
    assert len(names(tmp_path)) == 2  # which is nobody else's business
    put(tmp_path / "out", "whole", **({} if kind == "file" else {"replace": False}))
    assert names(tmp_path) == ["other", "out"]


def test_leftovers_of_the_living_and_of_other_machines_are_left_alone(tmp_path):
    mine = tmp_path / files.partial_name("out")
    dead = [mine.name.replace(f".{os.getpid()}.", ".999999999."), mine.name.replace(f".{os.getpid()}.", ".x.")]
    theirs = ".out.elsewhere.999999999.0.partial"
    similar = [".out.partial", ".out", "out.partial", ".output.1.partial"]
    for name in [mine.name, *dead, theirs, *similar]:
        (tmp_path / name).write_text("x")
    put(tmp_path / "out", "whole")
    assert names(tmp_path) == sorted([mine.name, dead[1], theirs, *similar, "out"])


REWRITE = """
import sys
from pathlib import Path
from serrate.files import write_folder_aside, write_json
path, kind = Path(sys.argv[1]), sys.argv[2]
for n in range(1_000_000):
    if kind == "file":
        write_json(path, {"n": n, "filler": ["x" * 50] * 500, "end": n})
    else:
        with write_folder_aside(path, replace=True) as partial:
            (partial / "a").write_text(f"{n}")
            (partial / "b").write_text(f"{n}")
    if n == 0:
        print("ready", flush=True)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_kill_at_random_moments_leaves_whole_or_absent(tmp_path, kind):
    moments = random.Random(7)
    for _ in range(5):
        command = [sys.executable, "-c", REWRITE, str(tmp_path / "out"), kind]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        if kind == "file":
            value = json.loads((tmp_path / "out").read_text())  # a file is replaced in one step: never absent
            assert value["n"] == value["end"]
        elif (tmp_path / "out").exists():
            assert names(tmp_path / "out") == ["a", "b"]
            assert (tmp_path / "out" / "a").read_text() == (tmp_path / "out" / "b").read_text()
    put(tmp_path / "out", "1", **({} if kind == "file" else {"replace": True}))
    assert names(tmp_path) == ["out"]
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


# --- JSON ---


def test_json_is_indented_and_ends_with_a_line_end(tmp_path):
    write_json(tmp_path / "f.json", {"a": [1, 2.5, None, "ü"], "b": {}})
    text = (tmp_path / "f.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": [1, 2.5, None, "ü"], "b": {}}
    assert text.startswith('{\n  "a": [')
    assert text.endswith("}\n")


ENDLESS: list = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": float("nan")}, "nan"),
        ({"a": [float("-inf")]}, "inf"),
        ({"a": Path("x")}, "PosixPath is not JSON serializable"),
        ({("a", "b"): 1}, "keys must be str"),
        (b"x", "bytes is not JSON serializable"),
        (ENDLESS, "Circular reference"),
    ],
)
def test_what_json_cannot_say_is_refused_and_leaves_the_old(tmp_path, value, reason):
    write_json(tmp_path / "f.json", [1])
    with pytest.raises(InvalidArgument, match="value: expected JSON values") as caught:
        write_json(tmp_path / "f.json", value)
    assert reason in str(caught.value)
    assert json.loads((tmp_path / "f.json").read_text()) == [1]
    assert names(tmp_path) == ["f.json"]
