"""From samples to batches for a ranking model: histories gathered once a state, candidates by their state."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument, suggest
from ..jagged import EventBatch, JaggedTensor, RankingBatch
from .batching import runs
from .features import Features, FeaturesConfig
from .histories import Histories
from .samples import Samples
from .selection import Selection, select
from .times import seconds

MaxLengths = Mapping[str, int | None]


@dataclass(frozen=True, eq=False)
class RankingData:
    """A log as a ranking model reads it: histories, features of what is in them, and which events form which history.

    Attributes:
        histories: all events of all users.
        features: what is known of items, users and events.
        selections: name of a history → its events.
    """

    histories: Histories
    features: Features
    selections: dict[str, Selection]

    @classmethod
    def read(cls, histories: Histories, config: FeaturesConfig) -> Self:
        """Read the side tables of a log and choose the events of each history; raises what these two raise."""
        return cls(histories, Features.read(histories, config), select(histories, config.histories))

    def state_lengths(self, samples: Samples, max_lengths: MaxLengths) -> np.ndarray:
        """Return how many events and candidates each state puts into a batch, `(U,)` int64, as `TokenBatches` takes it.

        `max_lengths` is as in `samples_batch`.
        """
        rows, ends = torch.from_numpy(samples.rows), torch.from_numpy(samples.ends)
        total = np.diff(samples.offsets)
        for name, most in max_lengths.items():
            total = total + self._selection(name).before(rows, ends)[1].clamp(0, most).numpy()
        return total

    def dense_statistics(self, samples: Samples, logged: Collection[str] = ()) -> dict[str, tuple[float, float]]:
        """Return name of a dense column → mean and standard deviation over the samples, from training samples alone.

        Columns of items count by candidates, those of users and of events that are shown by samples; what is missing
        does not count. Those named in `logged` are measured as `sign(x) · ln(1 + |x|)`. A column that is constant or
        always missing has a deviation of 1.
        """
        config, features, found = self.features.config, self.features, {}
        shown = features.event_fields(self.histories.fields, torch.from_numpy(samples.places), config.shown)
        of_samples = {**features.items.of(torch.from_numpy(samples.items) + 1),
                      **features.users.of(torch.from_numpy(samples.users) + 1), **shown}
        for name, values in of_samples.items():
            if isinstance(values, Tensor) and features.encoders[name].size is None:
                known = values[values.isfinite()].double()
                known = known.sign() * known.abs().log1p() if name in logged else known
                deviation = float(known.std(correction=0)) if len(known) else 0.0
                found[name] = (float(known.mean()) if len(known) else 0.0, deviation or 1.0)
        return found

    def history(self, name: str, rows: Tensor, ends: Tensor, most: int | None) -> EventBatch:
        """Gather the newest `most` events (None: all) of a history among the first `ends` `(U,)` of `rows` `(U,)`.

        Fields are those that `samples_batch` tells of. Raises `InvalidArgument` for a history that there is not.
        """
        selection = self._selection(name)
        firsts, counts = selection.before(rows, ends)
        kept = counts.clamp(0, most)
        chosen, offsets, longest = runs(firsts + counts - kept, kept)
        places = selection.at(chosen)
        log, features = self.histories, self.features
        items = log.fields["item"][places].long() + 1
        fields = {"item": items, **features.items.of(items, features.single),
                  **features.event_fields(log.fields, places)}
        if log.has_time:
            fields["time"] = seconds(log.fields["time"][places], log.ticks_per_second)
        return EventBatch.trusted({name: JaggedTensor.trusted(values, offsets, longest)
                                   for name, values in fields.items() if isinstance(values, Tensor)}, {})

    def _selection(self, name: str) -> Selection:
        if name not in self.selections:
            known = ", ".join(self.selections)
            raise InvalidArgument("max_lengths", f"histories among {known}{suggest(name, self.selections)}", repr(name))
        return self.selections[name]


def samples_batch(data: RankingData, samples: Samples, states: np.ndarray | Tensor,
                  max_lengths: MaxLengths) -> RankingBatch:
    """Gather the samples of some states, state by state in the order of `states`.

    A history holds the newest of its events that had happened before the state's moment. Ids count from 1, as
    `Features` gives them.

    - histories: `item`, `time` (where the log has it, in seconds), the columns of events, and those of items that hold
      one value;
    - context: `user`, `asked` (with `time`: when the candidates are shown), the columns of users;
    - candidates: `item`, the columns of items, and those of events that are shown;
    - labels: those of the samples, float32.

    Args:
        data: the log that the samples point into.
        samples: of which log.
        states: `(U,)` integers, which states.
        max_lengths: name of each history that is read → its longest, None: all.

    Raises:
        InvalidArgument: a history that there is not.
    """
    chosen = samples.select(np.asarray(states))
    rows, ends = torch.from_numpy(chosen.rows), torch.from_numpy(chosen.ends)
    histories = {name: data.history(name, rows, ends, most) for name, most in max_lengths.items()}
    log, features = data.histories, data.features
    context: dict[str, Tensor | JaggedTensor] = {"user": rows + 1, **features.users.of(rows + 1)}
    if log.has_time:
        last = log.offsets[rows + 1] - 1
        asked = log.fields["time"][(log.offsets[rows] + ends).minimum(last)]
        context["asked"] = seconds(asked, log.ticks_per_second)
    items = torch.from_numpy(chosen.items) + 1
    shown = features.event_fields(log.fields, torch.from_numpy(chosen.places), features.config.shown)
    candidates = {"item": items, **features.items.of(items), **shown}
    labels = {name: torch.from_numpy(values) for name, values in chosen.labels.items()}
    return RankingBatch(torch.from_numpy(chosen.owner), histories, context, candidates, labels)
