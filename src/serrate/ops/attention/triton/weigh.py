"""From scores to pointwise weights, and what kernels take of a problem."""

# ruff: noqa: N803

from functools import lru_cache

import torch
import triton
import triton.language as tl

from .problem import Problem
from .tile import natural, reciprocal

# --- pointwise weights: ACT counts as `weights.ACTIVATIONS` ---


@triton.constexpr_function
def fast(assembly, dtype):
    """Which of the GPU's approximations serve values of a dtype: 0 none, 1 those for half precision, 2 tanh too.

    3: as 2, and scores come halved.
    """
    return 0 if dtype == tl.float32 else assembly if dtype == tl.bfloat16 else min(assembly, 1)


@triton.jit
def activated(x, ACT: tl.constexpr, FAST: tl.constexpr):
    """The weights of scores x, before the normaliser, and their derivatives; FAST: see `fast`.

    silu(x) = x / (1 + exp(-x)) = x / 2 · (1 + tanh(x / 2)), and tanh is one instruction in place of two.
    """
    if ACT == 1 and FAST >= 2:
        half = x if FAST == 3 else 0.5 * x
        t = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1)
        p = half * t + half
        slope = ((1.0 - t * t) * half + t) * 0.5 + 0.5
    elif ACT == 1:
        y = reciprocal(1.0 + tl.exp2(x * -1.4426950408889634), FAST)
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


def kind(problem: Problem, group: int, searched: bool, device: torch.device, halves: bool = False) -> tuple:
    """Return what kernels are compiled for: mask, shape of rows, heads that share keys, weights, whether biased.

    Last which `assembly` a device may use, 3 where kernels take scores by `halves`, and whether tiles search for their
    rows.
    """
    return (problem.kind, problem.self_attention, problem.dense, problem.per_row, group, problem.activation,
            problem.normaliser == 0, problem.biased, 3 if halves else assembly(device), searched)


@lru_cache
def assembly(device: torch.device) -> int:
    """Return 0 under the interpreter, which knows no assembly, 2 where tanh is near enough (README.md), otherwise 1."""
    if triton.knobs.runtime.interpret:
        return 0
    return 2 if device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0) else 1


def share_of(problem: Problem) -> float:
    """Return what weights are multiplied by, unless the length of the row says."""
    return 1 / problem.normaliser if problem.normaliser else 1.0
