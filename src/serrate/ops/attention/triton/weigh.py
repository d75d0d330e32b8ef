"""From scores to pointwise weights, and what kernels take of a problem."""

# ruff: noqa: N803

import triton
import triton.language as tl

from .problem import Problem
from .tile import natural, reciprocal

# --- pointwise weights: ACT counts as `weights.ACTIVATIONS` ---


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """1 / (1 + exp(-x)), not by tanh, which is one instruction, but leaves little of the weights of low scores."""
    return reciprocal(1.0 + tl.exp2(x * -1.4426950408889634), FAST)


@triton.jit
def activated(x, ACT: tl.constexpr, FAST: tl.constexpr):
    """The weights of scores x, before the normaliser, and their derivatives."""
    if ACT == 1:
        y = sigmoid(x, FAST)
        p = x * y
        slope = p * (1.0 - y) + y
    elif ACT == 2:
        y = 0.5 * tl.erf(x * 0.7071067811865476) + 0.5
        p = x * y
        slope = y + x * (0.3989422804014327 * tl.exp2(x * x * -0.7213475204444817))
    elif ACT == 3:
        y = tl.maximum(x, 0.0)
        p = y * y
        slope = 2.0 * y
    else:
        p = x
        slope = tl.zeros_like(x) + 1.0
    return p, slope


@triton.jit
def slope_of(factors, history, KIND: tl.constexpr):
    """What the gradients of scores are multiplied by on their way to queries and keys."""
    return factors[0] * share(factors[1], history, KIND[6]) if KIND[5] else natural(factors[0])


@triton.jit
def share(normaliser, history, LENGTH: tl.constexpr):
    """What the weights of a row are multiplied by."""
    if LENGTH:
        normaliser = 1.0 / tl.maximum(history, 1).to(tl.float32)
    return normaliser


# --- what kernels take of a problem ---


def kind(problem: Problem, group: int, searched: bool) -> tuple:
    """Return what kernels are compiled for: mask, shape of rows, heads that share keys, weights, whether biased.

    Last whether assembly may be used, which the interpreter does not know, and whether tiles search for their rows.
    """
    return (problem.kind, problem.self_attention, problem.dense, problem.per_row, group, problem.activation,
            problem.normaliser == 0, problem.biased, not triton.knobs.runtime.interpret, searched)


def share_of(problem: Problem) -> float:
    """Return what weights are multiplied by, unless the length of the row says."""
    return 1 / problem.normaliser if problem.normaliser else 1.0
