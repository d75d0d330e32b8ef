"""A saved run, loaded: raw item ids in, raw item ids out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .. import models
from ..data import TokenBatches, Vocabulary
from ..errors import InvalidArgument, InvalidRun
from ..index import top_k
from ..jagged import EventBatch, JaggedTensor, gather_rows, newest
from ..run_folder import RunFolder

_SCORES_AT_A_TIME = 2**23
_EVENTS_AT_A_TIME = 2**16


@dataclass(frozen=True)
class Recommended:
    """What one history gets, best first.

    Attributes:
        ids: raw item ids, at most `k`.
        scores: one a recommended item, descending.
        titles: one a recommended item, None where the run knows none.
        unknown: ids of the history that the model has never seen; they were left out.
    """

    ids: list[Any]
    scores: list[float]
    titles: list[str | None]
    unknown: list[Any]


class Predictor:
    """The model and vocabulary of a saved run.

    Attributes:
        config: content of config.json.
        model: the trained model, in evaluation mode.
        items: raw ids ↔ dense ids.
    """

    def __init__(self, config: dict[str, Any], model: models.Transformer, items: Vocabulary):
        self.config = config
        self.model = model
        self.items = items

    @classmethod
    def open(cls, path: Path | str, *, device: str = "auto") -> Self:
        """Load a saved run; `device` is `auto`, `cpu` or `cuda`.

        Raises:
            InvalidRun: not a saved run, not finished, damaged, or of a format that cannot be read.
        """
        folder = RunFolder(path)
        config = folder.read_config()
        if not folder.model_path.exists():
            raise InvalidRun(f"run: {folder.path} has no model yet; serrate train --resume {folder.path}")
        items = Vocabulary.load(folder.items_path)
        try:
            model_config = TypeAdapter(models.ModelConfig).validate_python(config.get("model"))
            model = models.build(model_config, len(items))
            model.load_state_dict(load_file(folder.model_path))
        except (ValidationError, OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InvalidRun(f"run: the model in {folder.path} cannot be loaded ({reason[:200]})") from None
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(config, model.eval().to(device), items)

    def recommend(self, histories: Iterable[Sequence[Any]], k: int = 10, *, exclude_seen: bool = True,
                  allow: Iterable[Any] | None = None, deny: Iterable[Any] = ()) -> list[Recommended]:
        """Return the best `k` items after each history.

        A history without a single known item gets the items that were most frequent in training. Fewer than `k`
        come back when the filters leave fewer.

        Args:
            histories: raw item ids of each user, oldest first; the users need not be known.
            k: how many items, at least 1.
            exclude_seen: leave out the items of the history itself.
            allow: the only raw ids that may come back; None for all. Ids the model does not know never come back.
            deny: raw ids that may not come back.

        Raises:
            InvalidArgument: `histories` is not a list of lists of ids, or `k` < 1.
        """
        rows = [_checked(row, number) for number, row in enumerate(histories)]
        dense = self.items.encode([item for row in rows for item in row])
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        known = dense >= 0
        owner = np.repeat(np.arange(len(rows)), lengths)
        kept = JaggedTensor.from_lengths(
            torch.from_numpy(dense[known]), torch.from_numpy(np.bincount(owner[known], minlength=len(rows))))
        scores, ids = self.recommend_dense(kept, k, exclude_seen=exclude_seen, allow=self._dense(allow),
                                           deny=self._dense(deny))
        unknown: list[list[Any]] = [[] for _ in rows]
        flat = [item for row in rows for item in row]
        for at in np.flatnonzero(~known):
            unknown[owner[at]].append(flat[at])
        return [self._named(ids[row], scores[row], unknown[row]) for row in range(len(rows))]

    def recommend_dense(self, histories: JaggedTensor, k: int, *, exclude_seen: bool = True,
                        allow: Tensor | None = None, deny: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `(scores, ids)`, `(B, k)` each, for histories of dense ids; see `index.top_k` for the filters.

        Works through the rows in chunks, so memory does not grow with rows × items.
        """
        if k < 1:
            raise InvalidArgument("k", "at least 1", k)
        device = next(self.model.parameters()).device
        batches = TokenBatches(histories.lengths, _EVENTS_AT_A_TIME, seed=0, shuffle=False)
        most_rows = max(1, _SCORES_AT_A_TIME // max(1, self.model.num_items))
        found = [(torch.empty(0, k), torch.empty(0, k, dtype=torch.int64))]
        with torch.inference_mode():
            for part in (part for _, index in batches.epoch(0) for part in torch.from_numpy(index).split(most_rows)):
                seen = gather_rows(histories, part)
                batch = EventBatch({"item": newest(seen, self.model.config.max_length)}).to(device)
                scores = self.model.score(batch).cpu()
                found.append(top_k(scores, k, exclude=seen if exclude_seen else None, allow=allow, deny=deny))
        return torch.cat([scores for scores, _ in found]), torch.cat([ids for _, ids in found])

    def _dense(self, raw: Iterable[Any] | None) -> Tensor | None:
        if raw is None:
            return None
        dense = self.items.encode(list(raw))
        return torch.from_numpy(dense[dense >= 0])

    def _named(self, ids: Tensor, scores: Tensor, unknown: list[Any]) -> Recommended:
        dense = ids[ids >= 0].tolist()
        titles = self.items.titles
        return Recommended(self.items.decode(dense), scores[: len(dense)].tolist(),
                           [None if titles is None else titles[i] for i in dense], unknown)


def _checked(row: Any, number: int) -> Sequence[Any]:
    if isinstance(row, str | bytes) or not hasattr(row, "__len__") or not hasattr(row, "__getitem__"):
        raise InvalidArgument("histories", "a list of histories, each a list of item ids", f"{row!r} as row {number}")
    return row
