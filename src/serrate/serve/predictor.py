"""A saved run, loaded: raw item ids in, raw item ids out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .. import models
from ..config import Config
from ..data import DataConfig, Vocabulary, chunks
from ..data.times import asked_times
from ..errors import InvalidArgument, InvalidData, InvalidRun
from ..index import Index, top_k
from ..jagged import EventBatch, JaggedTensor, gather_rows, newest
from ..nn import Sides
from ..run_folder import RunFolder
from .indexed import open_index, search_index
from .loading import device_named, load_weights, settings_of
from .times import Times, read_times

_SCORES_AT_A_TIME = 2**23
_EVENTS_AT_A_TIME = 2**16
_LISTS = "a list of histories, each a list of item ids"


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


class _Settings(Config):
    """What serving reads of config.json."""

    model: models.ModelConfig
    data: DataConfig


class Predictor:
    """The model and vocabulary of a saved run.

    Attributes:
        config: content of config.json.
        model: the trained model, in evaluation mode.
        items: raw ids ↔ dense ids.
        data_config: how the training log was read.
        users: those that the model knows; None: it reads no users.
        index: is searched instead of scoring every item; None: every item is scored.
    """

    def __init__(self, config: dict[str, Any], model: models.NextItemModel, items: Vocabulary, data_config: DataConfig,
                 users: Vocabulary | None = None, index: Index | None = None):
        self.config = config
        self.model = model
        self.items = items
        self.data_config = data_config
        self.users = users
        self.index = index

    @classmethod
    def open(cls, path: Path | str, *, device: str = "auto", index: Path | str | None = None) -> Self:
        """Load a saved run, and the `index` over its items if there is one; `device` is `auto`, `cpu` or `cuda`.

        Raises:
            InvalidRun: not a saved run, not finished, damaged, or of a format that cannot be read.
            InvalidData: no index that can be used, or one of another model.
            InvalidArgument: a device that is not there.
        """
        place, folder = device_named(device), RunFolder(path)
        config = folder.read_config()
        if config.get("model", {}).get("kind") == "ranking":
            raise InvalidRun(f"run: {folder.path} has a ranking model, which scores what is shown: use serrate score")
        settings = settings_of(_Settings, config, folder)
        try:
            items = Vocabulary.load(folder.items_path)
            users = Vocabulary.load(folder.users_path) if settings.model.reads_users else None
        except InvalidData as error:
            raise InvalidRun(f"run: {error}") from None
        model = models.build(settings.model, len(items))
        load_weights(model, folder)
        model = model.eval().to(place)
        return cls(config, model, items, settings.data, users, None if index is None else open_index(index, model))

    @property
    def reads_time(self) -> bool:
        """Whether the model needs to know when the events of a history happened."""
        return self.model.config.reads_time

    @cached_property
    def item_sides(self) -> Sides:
        """What the model's similarity makes of all items, every part `(V, …)`: computed at the first use, then kept."""
        with torch.inference_mode():
            return self.model.item_sides()

    @cached_property
    def _user_keys(self) -> Tensor:
        assert self.users is not None
        return torch.from_numpy(self.users.keys())

    def recommend(self, histories: Iterable[Sequence[Any]], k: int = 10, *, exclude_seen: bool = True,
                  allow: Iterable[Any] | None = None, deny: Iterable[Any] = (),
                  times: Iterable[Sequence[Any]] | None = None, asked: Any = None,
                  users: Iterable[Any] | None = None) -> list[Recommended]:
        """Return the best `k` items after each history.

        A history without a single known item gets the items that were most frequent in training. Fewer than `k`
        come back when the filters leave fewer.

        Args:
            histories: raw item ids of each user, oldest first.
            k: how many items, at least 1.
            exclude_seen: leave out the items of the history itself.
            allow: the only raw ids that may come back; None for all. Ids the model does not know never come back.
            deny: raw ids that may not come back.
            times: when the events of each history happened, as many as it has ids, none before the one before it: whole
                numbers in a unit that is told by their size, as those of a log, fractions of seconds, or dates. Needed
                where the model `reads_time`, and not read elsewhere.
            asked: when the answers are asked for, one time for all or a list with one a history, not before the newest
                event of a history. None: when that happened, as if it were answered at once.
            users: the raw user id of each history, for a model that reads them; not looked at elsewhere. Those that
                were not trained on are answered as unknown users, and so are all where None is given.

        Raises:
            InvalidArgument: `histories` is not a list of lists of ids, `allow` or `deny` no list of ids, `users` no
                list of as many ids, `k` < 1, or `times` or `asked` are not as said.
        """
        if isinstance(histories, str | bytes) or not isinstance(histories, Iterable):
            raise InvalidArgument("histories", _LISTS, repr(histories))
        rows = [_checked(row, number) for number, row in enumerate(histories)]
        flat = [item for row in rows for item in row]
        dense = self.items.encode(flat)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        known = dense >= 0
        owner = np.repeat(np.arange(len(rows)), lengths)
        kept = JaggedTensor.from_lengths(
            torch.from_numpy(dense[known]), torch.from_numpy(np.bincount(owner[known], minlength=len(rows))))
        when = read_times(times, asked, lengths).kept(torch.from_numpy(known)) if self.reads_time else None
        scores, ids = self.recommend_dense(
            kept, k, exclude_seen=exclude_seen, allow=None if allow is None else self._dense("allow", allow),
            deny=self._dense("deny", deny), times=when,
            user_keys=None if users is None else self.keys_of(users, len(rows)))
        unknown: list[list[Any]] = [[] for _ in rows]
        for at in np.flatnonzero(~known):
            unknown[owner[at]].append(flat[at])
        return [self._named(ids[row], scores[row], unknown[row]) for row in range(len(rows))]

    def recommend_dense(self, histories: JaggedTensor, k: int, *, exclude_seen: bool = True,
                        allow: Tensor | None = None, deny: Tensor | None = None,
                        times: Times | None = None, user_keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `(scores, ids)` for histories of dense ids; see `index.top_k` for the filters.

        Both are `(B, min(k, V))`. Works through the rows in chunks, so memory does not grow with rows × items. `times`
        are those of the histories; needed where the model `reads_time`. `user_keys` `(B,)` are `keys_of` their users.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise InvalidArgument("k", "a whole number, at least 1", repr(k))
        k = min(int(k), self.model.num_items)
        device = next(self.model.parameters()).device
        most_rows = max(1, _SCORES_AT_A_TIME // max(1, self.model.num_items))
        found = [(torch.empty(0, k), torch.empty(0, k, dtype=torch.int64))]
        with torch.inference_mode():
            for part in chunks(histories.lengths, _EVENTS_AT_A_TIME, most_rows):
                seen = gather_rows(histories, part)
                events = {"item": seen}
                if times is not None:
                    events["time"] = gather_rows(times.happened, part)
                    events["asked"] = asked_times(events["time"], times.asked[part])
                context = {} if user_keys is None else {"user_key": user_keys[part]}
                batch = newest(EventBatch(events, context), self.model.config.max_length).to(device)
                exclude = seen if exclude_seen else None
                if self.index is None:
                    scores = self.model.score(batch, self.item_sides).cpu()
                    found.append(top_k(scores, k, exclude=exclude, allow=allow, deny=deny))
                else:
                    found.append(search_index(self.index, self.model, batch, k, exclude=exclude, allow=allow,
                                              deny=deny))
        return torch.cat([scores for scores, _ in found]), torch.cat([ids for _, ids in found])

    def keys_of(self, users: Iterable[Any], rows: int) -> Tensor | None:
        """Return `(rows,)` int64: the keys of raw user ids as the model takes them, -1 for one that it does not know.

        None for a model that reads no users.

        Raises:
            InvalidArgument: not `rows` ids.
        """
        if self.users is None:
            return None
        if isinstance(users, str | bytes) or not isinstance(users, Iterable):
            raise InvalidArgument("users", "a list of user ids", repr(users))
        known = torch.from_numpy(self.users.encode(users))
        if len(known) != rows:
            raise InvalidArgument("users", f"{rows} ids, one a history", len(known))
        return torch.where(known >= 0, self._user_keys[known], -1)

    def keys_in(self, users: Vocabulary) -> Tensor | None:
        """Return `(num_users,)` int64: `keys_of` all users of a data set; None for a model that reads no users."""
        return None if self.users is None else self.keys_of(users.decode(range(len(users))), len(users))

    def _dense(self, argument: str, raw: Iterable[Any]) -> Tensor:
        if isinstance(raw, str | bytes) or not isinstance(raw, Iterable):
            raise InvalidArgument(argument, "a list of item ids", repr(raw))
        dense = self.items.encode(list(raw))
        return torch.from_numpy(dense[dense >= 0])

    def _named(self, ids: Tensor, scores: Tensor, unknown: list[Any]) -> Recommended:
        dense = ids[ids >= 0].tolist()
        titles = self.items.titles
        return Recommended(self.items.decode(dense), scores[: len(dense)].tolist(),
                           [None if titles is None else titles[i] for i in dense], unknown)


def _checked(row: Any, number: int) -> Sequence[Any]:
    if isinstance(row, str | bytes) or not hasattr(row, "__len__") or not hasattr(row, "__getitem__"):
        raise InvalidArgument("histories", _LISTS, f"{row!r} as row {number}")
    return row
