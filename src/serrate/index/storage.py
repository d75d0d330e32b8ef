"""A saved index on disk: `index.json`, and shards of items that are mapped into memory.

    index.json                  format version, kind, settings, fingerprint, and each shard with its items and bytes
    items-00000.safetensors …   ids, side.NAME and derived.NAME of some items each, in ascending order of id

A shard is a segment of the corpus. On the CPU its tensors are the file itself, so that an index may be larger than
memory; on a GPU they are copied there, shard by shard.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import Config
from ..errors import InvalidConfig, InvalidData, shorten
from ..files import write_folder_aside
from ..nn.similarity import Similarity
from .corpus import Corpus, Segment

FORMAT_VERSION = 1
SHARD_BYTES = 2**30
_HEAD, _SIDE, _DERIVED = "index.json", "side.", "derived."

Settings = TypeVar("Settings", bound=Config)


@dataclass(frozen=True, eq=False)
class Saved:
    """What a folder holds.

    Attributes:
        kind: of the index.
        config: the settings of the kind, plain values.
        made_by: the fingerprint of the weights that made the sides.
        corpus: the items.
    """

    kind: str
    config: dict[str, Any]
    made_by: str
    corpus: Corpus


def fingerprint(similarity: Similarity, model: nn.Module | None = None) -> str:
    """Return a text that tells the weights of a similarity, or of the model it belongs to, from all others."""
    digest = hashlib.sha256(f"{type(similarity).__name__} {getattr(similarity, 'temperature', None)}".encode())
    for name, value in sorted((similarity if model is None else model).state_dict().items()):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write(path: Path, saved: Saved, replace: bool) -> None:
    """Write an index to the folder `path`, whole or not at all, without the items that were removed."""
    with write_folder_aside(path, replace=replace) as partial:
        shards: list[dict[str, Any]] = []
        for segment in saved.corpus.segments:
            for rows in segment.kept(torch.arange(len(segment), device=segment.ids.device)).split(
                    _rows_a_shard(segment)):
                if not len(rows) and (shards or segment is not saved.corpus.segments[-1]):
                    continue  # of no items at all one empty shard tells what they look like
                name = f"items-{len(shards):05d}.safetensors"
                save_file(_tensors(segment, rows), partial / name)
                shards.append({"file": name, "items": len(rows), "bytes": (partial / name).stat().st_size})
        head = {"format_version": FORMAT_VERSION, "kind": saved.kind, "config": saved.config,
                "fingerprint": saved.made_by, "items": sum(shard["items"] for shard in shards), "shards": shards}
        (partial / _HEAD).write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")


def read_head(path: Path) -> dict[str, Any]:
    """Return the content of index.json in the folder `path`; raise `InvalidData` where there is none to be used."""
    if not (path / _HEAD).is_file():
        raise InvalidData(f"index: {path} is not a saved index (it has no {_HEAD})")
    try:
        head = json.loads((path / _HEAD).read_bytes())
        version = head["format_version"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        raise damaged(path, f"{_HEAD} cannot be read") from None
    if type(version) is not int or version > FORMAT_VERSION:
        raise InvalidData(f"index: {path} is in format version {version!r}, this Serrate reads up to version "
                          f"{FORMAT_VERSION}; a newer Serrate is needed")
    return head


def read(path: Path, device: torch.device) -> Saved:
    """Open the index in the folder `path`; raise `InvalidData` where it is damaged."""
    head = read_head(path)
    try:
        shards = [(str(shard["file"]), int(shard["items"]), int(shard["bytes"])) for shard in head["shards"]]
        kind, config, made_by = str(head["kind"]), dict(head["config"]), str(head["fingerprint"])
    except (KeyError, TypeError, ValueError):
        raise damaged(path, f"{_HEAD} lacks what it must say") from None
    if not shards:
        raise damaged(path, f"{_HEAD} names no shards")
    return Saved(kind, config, made_by, Corpus([_segment(path, *shard, device) for shard in shards]))


def require_made_by(path: Path | str, saved: Saved, expected: str) -> None:
    """Raise `InvalidData` where an index was made by other weights than those that are `expected`."""
    if saved.made_by != expected:
        raise InvalidData(f"index: {path} is of another model (its items were made by other weights); build it again")


def parsed(path: Path | str, kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Return the settings of a saved index; raise `InvalidData` for wrong ones."""
    try:
        return kind.parse(values)
    except InvalidConfig as error:
        raise damaged(path, str(error)) from None


def damaged(path: Path | str, why: str) -> InvalidData:
    """Return the error of an index that cannot be used as it is."""
    return InvalidData(f"index: {path} cannot be used ({why})")


def _rows_a_shard(segment: Segment) -> int:
    a_row = sum(part[:1].numel() * part.itemsize for part in
                (segment.ids, *segment.sides.values(), *segment.derived.values()))
    return max(1, SHARD_BYTES // a_row)


def _tensors(segment: Segment, rows: Tensor) -> dict[str, Tensor]:
    named = {"ids": segment.ids, **{_SIDE + name: side for name, side in segment.sides.items()},
             **{_DERIVED + name: side for name, side in segment.derived.items()}}
    return {name: part[rows.to(part.device)].contiguous() for name, part in named.items()}


def _segment(path: Path, name: str, items: int, size: int, device: torch.device) -> Segment:
    file = path / name
    try:
        if file.stat().st_size != size:
            raise damaged(path, f"{name} has {file.stat().st_size:,} bytes, not {size:,}")
        with safe_open(file, "pt", device=str(device)) as opened:
            found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise damaged(path, f"{name}: {shorten(getattr(error, 'strerror', None) or error)}") from None
    if "ids" not in found or any(len(part) != items for part in found.values()):
        raise damaged(path, f"{name} does not hold {items:,} items")
    return Segment(found["ids"], _called(found, _SIDE), _called(found, _DERIVED))


def _called(found: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): part for name, part in found.items() if name.startswith(start)}
