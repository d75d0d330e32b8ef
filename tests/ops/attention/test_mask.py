"""Each mask as a picture that can be checked by eye, on every implementation; its definition pair by pair."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.jagged import offsets_from_lengths
from serrate.ops.attention import Mask, attention
from serrate.ops.attention.cases import Case
from serrate.ops.attention.mask import seen
from serrate.testing.attention import (
    call_of,
    every_device,
    every_implementation,
    low_dtype,
    masks,
    sees,
    unusable,
    usable,
)

# a line is a query, a column a key; queries are the last positions of their row
PICTURES = {
    "full": (Mask(), "xxx xxx xxx"),
    "causal": (Mask(causal=True), "x... xx.. xxx. xxxx"),
    "window to the left": (Mask(window=(1, None)), "xxxx xxxx .xxx ..xx"),
    "window to the right": (Mask(window=(None, 1)), "xx.. xxx. xxxx xxxx"),
    "window": (Mask(window=(1, 1)), "xx.. xxx. .xxx ..xx"),
    "window of itself": (Mask(window=(0, 0)), "x.. .x. ..x"),
    "causal window": (Mask(causal=True, window=(1, 2)), "x... xx.. .xx. ..xx"),
    "block": (Mask(block=2), "xx... xx... ..xx. ..xx. ....x"),
    "causal block": (Mask(causal=True, block=2), "x... xx.. ..x. ..xx"),
    "context": (Mask(causal=True, context=2), "xx.. xx.. xxx. xxxx"),
    "context before a window": (Mask(window=(1, 0), context=1), "x.... xx... xxx.. x.xx. x..xx"),
    "context before blocks": (Mask(block=2, context=1), "xx... xx... x.xx. x.xx. x...x"),
    "more context than events": (Mask(causal=True, context=9), "xxx xxx xxx"),
    "targets": (Mask(targets=2), "xxx.. xxx.. xxx.. xxxx. xxx.x"),
    "causal targets": (Mask(causal=True, targets=2), "x.... xx... xxx.. xxxx. xxx.x"),
    "targets stand where history ends": (
        Mask(causal=True, window=(1, None), targets=2), "x.... xx... .xx.. ..xx. ..x.x"),
    "targets in the last block": (Mask(block=2, targets=2), "xx... xx... ..x.. ..xx. ..x.x"),
    "targets past the last block": (Mask(block=2, targets=2), "xx.... xx.... ..xx.. ..xx.. ....x. .....x"),
    "more targets than events": (Mask(targets=9), "x.. .x. ..x"),
    "targets are no context": (Mask(causal=True, context=3, targets=1), "xx. xx. xxx"),
    "everything": (
        Mask(causal=True, window=(1, None), context=1, targets=1), "x..... xx.... xxx... x.xx.. x..xx. x...xx"),
    "fewer queries": (Mask(causal=True), "xxx. xxxx"),
    "one query": (Mask(causal=True), "xxx"),
    "more queries": (Mask(causal=True), ".. .. x. xx"),
    "more queries, full": (Mask(), "xx xx xx"),
    "more queries in a window": (Mask(window=(1, 1)), ".. x. xx xx"),
    "more queries in blocks": (Mask(block=2), ".. .. xx xx"),
    "more queries see context": (Mask(causal=True, context=1), "x. x. xx"),
    "fewer queries and a target": (Mask(causal=True, targets=1), "xx. xxx"),
    "fewer queries in a window": (Mask(window=(1, 0)), ".xx. ..xx"),
}  # fmt: skip


def drawn(picture: str) -> list[list[bool]]:
    return [[cell == "x" for cell in line] for line in picture.split()]


@every_device
@pytest.mark.parametrize("title", PICTURES)
@every_implementation
def test_a_mask_is_its_picture(name, title, device):
    """Scores of 0 weigh all keys seen alike, and values of one key each show which these are."""
    mask, picture = PICTURES[title]
    expected = torch.tensor(drawn(picture), device=device).float()
    m, n = expected.shape
    case = Case("", (1, m, 3), kv_lengths=(2, n, 3), heads=1, mask=mask)
    q, k, _, offsets = case.tensors(low_dtype(name), device)
    v = torch.eye(len(k), device=device, dtype=k.dtype)[:, None]
    usable(name, case, (q, k, v))
    given = case.arguments(device)
    if m == n:  # self-attention: other code, perhaps
        given["kv_offsets"] = None
        offsets = offsets_from_lengths(torch.tensor([2, n, 3])).to(device)
        q = k
    out = attention(q * 0, k, v, offsets, implementation=name, **given)
    begins = int(offsets[1])
    row = out[begins:begins + m, 0].float()
    weights = expected / expected.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(row[:, 2:2 + n], weights, rtol=1e-3, atol=0)
    assert not row[:, :2].any()  # other rows
    assert not row[:, 2 + n:].any()
    if unusable(name, call_of(case, (q, k, v), lse=True)) is None:
        lse = attention(q * 0, k, v, offsets, implementation=name, return_lse=True, **given)[1]
        torch.testing.assert_close(lse[begins:begins + m, 0], expected.sum(1).log(), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("title", PICTURES)
def test_the_definition_and_the_predicate_are_the_picture(title):
    mask, picture = PICTURES[title]
    expected = drawn(picture)
    m, n = len(expected), len(expected[0])
    counts = {"context": mask.context or 0, "targets": mask.targets or 0}
    assert seen(mask, m, n, **counts).tolist() == expected
    assert [[sees(mask, n - m + i, j, keys=n, **counts) for j in range(n)] for i in range(m)] == expected


@given(masks(1), st.integers(0, 9), st.integers(0, 9))
def test_the_definition_is_the_predicate(mask, m, n):
    counts = {name: int(count) if count is not None else 0 for name, count in (
        ("context", mask.context), ("targets", mask.targets))}
    expected = [[sees(mask, n - m + i, j, keys=n, **counts) for j in range(n)] for i in range(m)]
    assert seen(mask, m, n, **counts).tolist() == expected


@every_device
@every_implementation
def test_counts_of_rows_are_those_of_each_row(name, device):
    """One number for all rows is the same as a tensor of it, int32 or int64; other rows' counts do not matter."""
    case = Case("", (5, 0, 9, 3), mask=Mask(causal=True, context=2, targets=1))
    *tensors, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, tuple(tensors))

    def out(context, targets):
        mask = Mask(causal=True, context=context, targets=targets)
        return attention(*tensors, offsets, mask=mask, implementation=name)

    expected = out(2, 1)
    for dtype in (torch.int32, torch.int64):
        twos, ones = (torch.full((4,), count, device=device, dtype=dtype) for count in (2, 1))
        assert torch.equal(out(twos, ones), expected)
    mixed = out(torch.tensor([2, 7, 0, 2], device=device), torch.tensor([1, 0, 4, 1], device=device))
    assert torch.equal(mixed[:5], expected[:5])
    assert torch.equal(mixed[14:], expected[14:])
    assert not torch.equal(mixed[5:14], expected[5:14])


def test_targets_as_queries_do_not_depend_on_each_other():
    """As many calls with one target each give what one call with all gives."""
    q, k, v, _ = Case("", (9,)).tensors(torch.float64)
    mask = {"causal": True, "window": (3, None), "block": 4}
    together = attention(q, k, v, torch.tensor([0, 9]), mask=Mask(**mask, targets=3))
    for target in (6, 7, 8):
        one = [torch.cat([x[:6], x[target:target + 1]]) for x in (q, k, v)]
        alone = attention(*one, torch.tensor([0, 7]), mask=Mask(**mask, targets=1))
        torch.testing.assert_close(alone[6], together[target])
        torch.testing.assert_close(alone[:6], together[:6])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": (-1, None)}, "mask.window: expected (left, right), each None or 0 and more, got (-1, None)"),
        ({"window": (0, -2)}, "mask.window: expected (left, right), each None or 0 and more, got (0, -2)"),
        ({"window": (1,)}, "mask.window: expected (left, right), each None or 0 and more, got (1,)"),
        ({"block": 0}, "mask.block: expected 1 or more, got 0"),
        ({"context": -1}, "mask.context: expected 0 or more, got -1"),
        ({"targets": -3}, "mask.targets: expected 0 or more, got -3"),
    ],
)
def test_a_malformed_mask_is_named(arguments, message):
    with pytest.raises(InvalidArgument) as caught:
        Mask(**arguments)
    assert str(caught.value) == message


def test_what_is_plain():
    assert Mask().plain
    assert Mask(causal=True).plain
    assert Mask(causal=True, window=(None, 4)).plain  # causality is narrower
    for more in ({"window": (4, None)}, {"block": 3}, {"context": 0}, {"targets": torch.zeros(1)}):
        assert not Mask(causal=True, **more).plain
    assert Mask(window=(3, 2)).reach == (3, 2)
    assert Mask(causal=True, window=(3, 2)).reach == (3, 0)


def test_a_part_of_the_queries_sees_what_it_sees_among_all():
    for mask, counts in ((Mask(causal=True), ()), (Mask(causal=True, window=(3, 1), block=4), (2, 3))):
        every = seen(mask, 12, 9, *counts)
        for part in (slice(0, 5), slice(5, 12), slice(11, 12), slice(4, 4)):
            assert torch.equal(seen(mask, 12, 9, *counts, part=part), every[part])


@every_device
@every_implementation
def test_counts_outside_a_row_are_those_of_its_ends(name, device):
    def attended(context, targets):
        context, targets = (torch.tensor(counts, device=device) for counts in (context, targets))
        mask = Mask(causal=True, context=context, targets=targets)
        case = Case("", (3, 6, 0), mask=mask)
        *tensors, offsets = case.tensors(low_dtype(name), device)
        usable(name, case, tensors)
        return attention(*tensors, offsets, mask=mask, implementation=name)

    assert torch.equal(attended([-1, 2**31, 7], [2, -5, 2**40]), attended([0, 6, 0], [2, 0, 0]))
