"""Whole files or none: everything Serrate writes is written aside, synced, and renamed into place."""

import errno
import itertools
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InvalidArgument, NotWritable

_HOST = socket.gethostname().partition(".")[0] or "here"
_COUNT = itertools.count()
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # only writing fails in these ways


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary file path beside `path`; on success it replaces `path`, on failure it is removed.

    A process killed in between leaves `path` as it was, and a hidden `.name.….partial` beside it that the next write
    of `path` on this machine removes. Raises `NotWritable` when the disk is full or refuses, or when something that
    is not a file lies at `path`.
    """
    path = Path(os.path.realpath(path))  # a link stays, what it leads to is replaced
    partial = path.with_name(partial_name(path.name))
    with _explained(path, partial):
        if path.exists() and not path.is_file():
            raise NotWritable(f"{path}: cannot be written (there is something there that is not a file)")
        _prepare(path)
        try:
            partial.touch()
            ordinary = partial.stat().st_mode  # under this process's umask; safetensors makes its files private
            yield partial
            partial.chmod(ordinary)
            _sync(partial)
            os.replace(partial, path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def write_folder_aside(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, on failure it is removed.

    Raises `InvalidArgument` when `path` is a file, or a folder that is not empty unless `replace`; `NotWritable`
    when the disk is full or refuses. A process killed while it replaces leaves the old folder, the new one or none.
    """
    path = Path(os.path.realpath(path))
    partial, old = (path.with_name(partial_name(path.name)) for _ in range(2))
    with _explained(path, partial):
        if path.exists() and not path.is_dir():
            raise InvalidArgument("out", _FREE, f"a file, {path}")
        if not replace and path.exists() and any(path.iterdir()):
            raise InvalidArgument("out", _FREE, f"{path}, which is not empty")
        _prepare(path)
        try:
            partial.mkdir()
            yield partial
            for file in [*partial.rglob("*"), partial]:
                _sync(file)
            _exchange(partial, path, old)
            _sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all.

    Raises `InvalidArgument` when JSON cannot say it (NaN and infinity, keys that are no text, other types).
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument("value", f"JSON values for {path.name}", error) from None
    with write_aside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def partial_name(name: str) -> str:
    """Return a hidden name for what becomes `name`: it tells the machine and the process that write it."""
    return f".{name}.{_HOST}.{os.getpid()}.{next(_COUNT)}.partial"


_FREE = "a path that does not exist or an empty folder"


def _prepare(path: Path) -> None:
    """Make the folder around `path`, and remove what killed writers of `path` left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name}.{_HOST}."
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(start) and leftover.name.endswith(".partial"):
            process = leftover.name[len(start) :].partition(".")[0]
            if process.isdecimal() and not _runs(int(process)):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process of that number runs on this machine (a number used again counts as running)."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # someone else's
        pass
    return True


def _exchange(new: Path, path: Path, old: Path) -> None:
    """Put `new` at `path`; a full folder there makes way to `old`, and comes back if that fails."""
    try:
        os.replace(new, path)  # one step where nothing or an empty folder is there
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _explained(path: Path, partial: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into `NotWritable`; errors about other files pass."""
    try:
        yield
    except NotWritable:
        raise
    except OSError as error:
        named = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if name is not None]
        ours = [path, *path.parents, partial]
        if any(name in ours or partial in name.parents for name in named) or (
            not named and error.errno in _REFUSALS
        ):
            raise NotWritable(f"{path}: cannot be written ({error.strerror})") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
