"""Mixture of logits: a score of queries and items, of all pairs, of chosen ones; its best items; sums to train by."""

from .. import select
from . import cpu, reference, triton
from .api import (
    Call,
    Filters,
    Gate,
    Problem,
    Terms,
    mixture_of_logits,
    mixture_of_logits_each,
    mixture_of_logits_logsumexp,
    mixture_of_logits_top_k,
)

for _name in ("mixture_of_logits", "mixture_of_logits_each", "mixture_of_logits_top_k"):
    select.register(_name, [
        select.Implementation("triton", getattr(triton, _name), triton.unusable),
        select.Implementation("cpu", getattr(cpu, _name), cpu.unusable),
        select.Implementation("reference", getattr(reference, _name), reference.unusable),
    ])
select.register("mixture_of_logits_logsumexp", [
    select.Implementation("triton", triton.mixture_of_logits_logsumexp, triton.unusable_sum),
    select.Implementation("reference", reference.mixture_of_logits_logsumexp, reference.unusable),
])

__all__ = ["Call", "Filters", "Gate", "Problem", "Terms", "mixture_of_logits", "mixture_of_logits_each",
           "mixture_of_logits_logsumexp", "mixture_of_logits_top_k"]
