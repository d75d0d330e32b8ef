"""All items whose INT8 score reaches a threshold, and thresholds that let about so many through: no sort, one pass."""

from .. import select
from . import cpu, reference, triton
from .api import Call, Problem, select_above
from .quantised import quantise, scores_of
from .sampling import over_provisioned, r_for, sample_positions, sample_threshold

select.register("threshold", [
    select.Implementation("triton", triton.select_above, triton.unusable),
    select.Implementation("cpu", cpu.select_above, cpu.unusable),
    select.Implementation("reference", reference.select_above, reference.unusable),
])

__all__ = ["Call", "Problem", "over_provisioned", "quantise", "r_for", "sample_positions", "sample_threshold",
           "scores_of", "select_above"]
