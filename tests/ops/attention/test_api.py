"""Calls that are remembered: what was found out about one changes no answer of another, and keeps no tensor."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.jagged import offsets_from_lengths
from serrate.ops import launch
from serrate.ops.attention import Bias, Mask, Weights, api, attention
from serrate.ops.attention.cases import CASES, CAUSAL, Case
from serrate.testing.attention import run, usable

USUAL: dict[str, Any] = {
    "q": torch.randn(6, 2, 8), "k": torch.randn(6, 2, 8), "v": torch.randn(6, 2, 8),
    "offsets": offsets_from_lengths(torch.tensor([2, 4])), "implementation": "cpu"}
OTHERS: list[dict[str, Any]] = [
    {},
    *({name: x} for name in "qkv" for x in (
        torch.randn(6, 2, 8).double(), torch.randn(6, 2, 8, device="meta"), torch.randn(6, 2, 9), torch.randn(5, 2, 8),
        torch.randn(6, 1, 8), torch.randn(6, 8), torch.randn(()), torch.randn(2, 3, 2, 8), torch.randn(6, 2, 8).long(),
        torch.randn(2, 6, 8).transpose(0, 1))),
    *({"offsets": x} for x in (torch.tensor([0, 2, 6], dtype=torch.int32), torch.tensor([0, 6]),
                               torch.tensor([0.0, 6.0]), torch.tensor(6), torch.tensor([0, 6], device="meta"),
                               torch.tensor([[0, 2], [2, 0], [6, 0]])[:, 0])),
    *({"kv_offsets": x} for x in (
        torch.tensor([0, 5, 6]), torch.tensor([0, 6]), torch.tensor([0, 2, 6], dtype=torch.int32), USUAL["offsets"],
        torch.tensor([0, 2, 6], device="meta"))),
    *({"mask": mask} for mask in (
        CAUSAL, Mask(window=(1, 2)), Mask(window=(2, 1)), Mask(block=2), Mask(context=1),
        Mask(window=[1, 2]),  # pyright: ignore[reportArgumentType] - which nothing refuses
        Mask(targets=torch.tensor([0, 1])), Mask(targets=torch.tensor([0])))),
    *({"weights": weights} for weights in (
        Weights("silu"), Weights("silu", 2.0), Weights("silu", "length"), Weights(dropout=0.5, seed=1),
        Weights(dropout=0.5, seed=2), Weights(dropout=0.5, seed=torch.tensor([1, 2])))),
    {"weights": Weights("silu"), "return_lse": True}, {"return_lse": True},
    *({"bias": bias} for bias in (Bias(torch.randn(5)), Bias(torch.randn(4)), Bias(None, torch.randn(3)))),
    *({"scale": scale} for scale in (0.5, -0.5, 0.0, 2, float("nan"), float("inf"))),
    {"implementation": None}, {"implementation": "reference"}, {"implementation": "varlen"}, {"implementation": "no"},
    {"longest": 4}, {"longest": (4, 4)},
]


def forget() -> None:
    """Make every call one that was never met."""
    api._known.clear()
    api._met.clear()


def outcome(changed: dict[str, Any]) -> tuple[str, list[Tensor]]:
    """Return what a call says, or gives."""
    try:
        found = attention(**{**USUAL, **changed})
    except (InvalidArgument, NotUsable) as error:
        return f"{type(error).__name__}: {error}", []
    return "", list(found) if isinstance(found, tuple) else [found]


def test_calls_before_change_no_answer():
    alone = []
    for changed in OTHERS:
        forget()
        alone.append(outcome(changed))
    assert 20 < sum(bool(said) for said, _ in alone) < len(OTHERS) - 10
    for changed, (said, tensors) in [*zip(OTHERS, alone, strict=True)] * 3:
        said_now, tensors_now = outcome(changed)
        assert said_now == said, changed
        for now, before in zip(tensors_now, tensors, strict=True):
            assert now.device.type == "meta" or torch.equal(now, before), changed


def test_no_more_calls_are_remembered_than_have_room(monkeypatch):
    monkeypatch.setattr(api, "_MOST", 3)
    forget()
    for heads in (*range(1, 9), *[9] * 3):
        x = torch.randn(6, heads, 8)
        attention(x, x, x, USUAL["offsets"])
        assert 1 <= len(api._met) <= 3
        assert len(api._known) <= int(heads == 9)
    for heads in range(1, 9):
        x = torch.randn(6, heads, 8)
        for _ in range(2):
            attention(x, x, x, USUAL["offsets"])
        assert 1 <= len(api._known) <= 3


def test_no_tensor_is_kept():
    x, seed = torch.randn(6, 3, 8, requires_grad=True), torch.tensor(3)
    offsets = USUAL["offsets"].clone()
    kept = [weakref.ref(each) for each in (x, seed, offsets)]
    for _ in range(3):
        attention(x, x, x, offsets, weights=Weights(seed=seed)).sum().backward()
    del x, seed, offsets
    gc.collect()
    assert [each() for each in kept] == [None] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_like_of_a_call_gives_what_the_first_does(case: Case):
    tensors = case.tensors(torch.float16, "cuda")[:3]
    usable("triton", case, tensors)
    others = tuple(x.flip(0).contiguous() for x in tensors)
    forget()
    first = run("triton", case, others)
    for _ in range(3):
        run("triton", case, tensors)
    again = run("triton", case, others)
    assert torch.equal(again.out, first.out)
    assert torch.equal(again.grads, first.grads)


@pytest.mark.gpu
@pytest.mark.parametrize("crossed", [False, True], ids=["own", "crossed"])
@pytest.mark.parametrize(("lengths", "width"), [((64,), 64), ((5, 0, 17, 40, 3, 8) * 4, 32), ((3000, 2000), 64)],
                         ids=["one", "short", "long"])
def test_kernels_are_launched_again_forward_and_backward(lengths, width, crossed, monkeypatch):
    made = []
    again = launch.Tape.again

    def noted(tape, given):
        found = again(tape, given)
        made.append(found is not None)
        return found

    monkeypatch.setattr(launch.Tape, "again", noted)
    forget()
    offsets = offsets_from_lengths(torch.tensor(lengths, device="cuda"))
    for calls in range(5):
        q, k, v = (torch.randn(sum(lengths), 2, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                   for _ in range(3))
        attention(q, k, v, offsets, kv_offsets=offsets.clone() if crossed else None, mask=CAUSAL,
                  implementation="triton").sum().backward()
        assert made == [True] * 2 * max(calls - 2, 0)  # met, seen once, written down
