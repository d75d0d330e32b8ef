"""A ranking model with one of everything, and batches for it."""

import torch

from serrate.jagged import EventBatch, RankingBatch, from_lists
from serrate.models import RankingConfig, RankingModel

SIZES = {"items": 9, "categories": 5, "actions": 3, "genres": 4, "users": 6, "unread": 1}
ITEM, CATEGORY = {"name": "item", "table": "items"}, {"name": "category", "table": "categories"}
HISTORIES = [
    {"name": "clicked", "fields": [ITEM, CATEGORY], "age": True, "max_length": 4,
     "layers": {"kind": "transformer", "heads": 2, "feedforward": 6},
     "reads": [{"kind": "target", "heads": 4}, {"kind": "pooling"}, {"kind": "pma", "queries": 2}]},
    {"name": "bought", "fields": [ITEM, {"name": "action", "table": "actions"}], "max_length": 5,
     "layers": {"kind": "hstu", "time": True}, "reads": [{"kind": "target"}, {"kind": "pooling", "how": "sum"}]},
    {"name": "liked", "fields": [ITEM], "target": ["category"],
     "reads": [{"kind": "din", "hidden": [5, 3], "activation": "silu", "weights": "softmax"},
               {"kind": "pooling", "how": "max"}]},
    {"name": "seen", "fields": [CATEGORY], "layers": {"kind": "transformer", "blocks": 1, "causal": True},
     "reads": [{"kind": "din"}, {"kind": "din", "weights": "sigmoid"}]},
]
FEATURES = [
    {"kind": "dense", "name": "price", "transform": "log1p", "centre": 1.5, "spread": 2, "missing": 0.25},
    {"kind": "dense", "name": "score"},
    {"kind": "categorical", **ITEM},
    {"kind": "categorical", **CATEGORY},
    {"kind": "multi", "name": "genres"},
    {"kind": "dense", "name": "years", "of": "context", "spread": 30},
    {"kind": "categorical", "name": "user", "table": "users", "of": "context", "unknown": "fallback"},
    {"kind": "multi", "name": "interests", "table": "genres", "of": "context", "pooling": "sum"},
]
TASKS = [{"kind": "binary", "name": "click", "field": "click", "yes_weight": 2},
         {"kind": "regression", "name": "stars", "field": "stars", "centre": 3, "weight": 0.5}]
EVERYTHING = {"width": 8, "widths": {"categories": 3, "genres": 5}, "features": FEATURES, "histories": HISTORIES,
              "bottom": [7], "interactions": "both", "cross_layers": 2, "cross_rank": 4, "top": [16, 8], "tasks": TASKS}


def model(**changes) -> RankingModel:
    """A model in float64 for inference, with no parameter at a value that hides it."""
    torch.manual_seed(0)
    made = RankingModel(RankingConfig.parse({**EVERYTHING, **changes}), SIZES).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def batch(owner=(2, 0, 0, 1, 2, 2), lengths=((3, 0, 4), (0, 5, 2), (1, 3, 0), (2, 0, 1)), seed=1) -> RankingBatch:
    """Random candidates of the states of `owner`; of each history the lengths of its rows."""
    generator = torch.Generator().manual_seed(seed)
    states, candidates = len(lengths[0]), len(owner)

    def ids(table, count):
        return torch.randint(SIZES[table], (count,), generator=generator)

    def jagged(table, count, longest=3):
        sizes = torch.randint(longest + 1, (count,), generator=generator)
        return from_lists([ids(table, int(size)).tolist() for size in sizes], torch.int64)

    histories = {}
    for name, rows in zip(("clicked", "bought", "liked", "seen"), lengths, strict=True):
        item = from_lists([[0] * size for size in rows], torch.int64)
        fields = {"item": ids("items", item.num_events), "category": ids("categories", item.num_events),
                  "action": ids("actions", item.num_events),
                  "time": torch.randint(10**6, (item.num_events,), generator=generator).sort().values}
        histories[name] = EventBatch({field: item.with_values(values) for field, values in fields.items()})
    years = torch.rand(states, generator=generator) * 60
    prices = torch.rand(candidates, generator=generator) * 9 - 2
    prices[::4] = float("nan")
    return RankingBatch(
        torch.tensor(owner, dtype=torch.int64), histories,
        {"asked": torch.full((states,), 10**6), "years": years, "user": ids("users", states),
         "interests": jagged("genres", states)},
        {"price": prices, "score": torch.rand(candidates, generator=generator, dtype=torch.float64),
         "item": ids("items", candidates), "category": ids("categories", candidates),
         "genres": jagged("genres", candidates)},
        {"click": torch.randint(2, (candidates,), generator=generator),
         "stars": torch.randint(1, 6, (candidates,), generator=generator)})
