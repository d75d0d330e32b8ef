"""After training: the test split, read once, baselines beside the model, samples for people, the saved run."""

from typing import Any

import numpy as np
import torch

from ..data import Examples, history_batch, seen_items
from ..evaluate import comparisons, evaluate_baselines, table
from ..index import top_k
from .loop import Material, Trainer, autocast, padding_avoided, to_device

_SAMPLES, _SHOWN = 10, 20


def measure(trainer: Trainer) -> dict[str, Any]:
    """Evaluate the chosen weights and the baselines on the test split; return the content of metrics.json."""
    material, config = trainer.material, trainer.config
    validation = {config.model.kind: trainer.evaluate(material.parts.validation)}
    own = trainer.evaluate(material.parts.test)
    baselines, refusals = evaluate_baselines(
        material.histories, material.parts.train, material.parts.test, config.evaluate)
    evaluations = {config.model.kind: own, **baselines}
    measured = dict.fromkeys([name for name in ("hr@10", "ndcg@10") if name in own.names] + [config.train.monitor])
    return {
        "examples": {"train": len(material.windows), "validation": len(material.parts.validation),
                     "test": len(own)},
        "best_epoch": trainer.position.best_epoch,
        "seconds": round(trainer.position.seconds, 1),
        "monitor": {"metric": config.train.monitor, "value": trainer.position.best},
        "warnings": [*material.parts.warnings, *refusals],
        "rows": table(evaluations) + table(validation, "validation"),
        "comparisons": comparisons(evaluations, config.model.kind, list(measured)),
        "lengths": _lengths(material),
        "samples": _samples(trainer),
    }


def _lengths(material: Material) -> dict[str, Any]:
    """Histogram of all history lengths in powers of two, and the padding that jagged batches avoid."""
    lengths = material.histories.lengths.numpy()
    bins = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = np.bincount(bins)
    histogram = [{"from": 2**b, "to": 2 ** (b + 1) - 1, "users": int(count)} for b, count in enumerate(counts)]
    return {"histogram": histogram, "mean": float(lengths.mean()), "longest": int(lengths.max()),
            "padding_avoided": padding_avoided(material.batches)}


def _samples(trainer: Trainer) -> list[dict[str, Any]]:
    """Ten test histories, evenly spread over the users, with what the model recommends."""
    histories, examples = trainer.material.histories, trainer.material.parts.test
    chosen = np.unique(np.linspace(0, len(examples) - 1, _SAMPLES).astype(int))
    batch = history_batch(histories, examples, chosen, trainer.config.model.max_length)
    seen = seen_items(histories, examples, chosen)
    trainer.model.eval()
    with torch.inference_mode(), autocast(trainer.config, trainer.device):
        scores = trainer.model.score(to_device(batch, trainer.device)).cpu()
    values, ids = top_k(scores, 10, exclude=seen if trainer.config.evaluate.exclude_seen else None)
    users = histories.users.decode(examples.rows[chosen])
    return [{"user": users[row], "history": _named(trainer, seen[row][-_SHOWN:].tolist()),
             "recommended": [{**item, "score": score} for item, score in
                             zip(_named(trainer, [i for i in ids[row].tolist() if i >= 0]), values[row].tolist(),
                                 strict=False)],
             "truth": _named(trainer, _truth(trainer, examples, at))}
            for row, at in enumerate(chosen)]


def _truth(trainer: Trainer, examples: Examples, at: int) -> list[int]:
    histories = trainer.material.histories
    start = int(histories.offsets[examples.rows[at]])
    return histories.fields["item"][start + examples.ends[at] : start + examples.truth_ends[at]].tolist()


def _named(trainer: Trainer, dense: list[int]) -> list[dict[str, Any]]:
    items = trainer.material.histories.items
    titles = items.titles or [None] * len(items)
    return [{"id": raw, "title": titles[i]} for raw, i in zip(items.decode(dense), dense, strict=True)]
