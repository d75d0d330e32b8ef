"""One conformance suite for every implementation of jagged attention, and the oracle against hand and plain torch.

`dense` is plain torch in the dtype of its inputs: one softmax over all events with a block-diagonal mask. It checks
the oracle in float64, and in low precision its error sets the budget that an implementation has to keep.
"""

import math
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.jagged import offsets_from_lengths
from serrate.ops import implementations
from serrate.ops.attention import Call, Mask, attention
from serrate.ops.attention.cases import CASES, CAUSAL, Case
from serrate.ops.select import choose
from serrate.testing import assert_within_budget, error_budget, largest_error
from serrate.testing.budget import ulp

MIXED = next(case for case in CASES if case.name == "mixed")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NAMES = [implementation.name for implementation in implementations("attention")]

every_implementation = pytest.mark.parametrize("name", NAMES)
every_device = pytest.mark.parametrize("device", DEVICES)


def usable(name: str, *tensors: Tensor, mask: Mask = CAUSAL) -> str:
    """Return `name`, or skip with the reason why that implementation cannot serve `q, k, v`."""
    q, _, v = tensors
    reason = choose_by_hand(name).unusable(Call(q.device, q.dtype, q.shape[2], v.shape[2], mask))
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


def choose_by_hand(name: str):
    return next(candidate for candidate in implementations("attention") if candidate.name == name)


def low_dtype(name: str) -> torch.dtype:
    """A dtype that the implementation serves somewhere: varlen knows half precision only."""
    return torch.float16 if name == "varlen" else torch.float32


def dense(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, mask: Mask, scale: float | None = None) -> Tensor:
    """Plain torch: all events against all events, those of other rows (and later ones) masked."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    count = torch.arange(q.shape[0], device=q.device)
    rows = torch.searchsorted(offsets.long()[1:].contiguous(), count, right=True)
    seen = rows[:, None] == rows[None, :]
    if mask.causal:
        seen &= count[:, None] >= count[None, :]
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, -math.inf).softmax(-1), v)


def with_gradients(compute, tensors: tuple[Tensor, ...], dtype: torch.dtype | None = None):
    """Return the output and the gradients of q, k and v, end to end, for a fixed random gradient of the output."""
    q, k, v = (x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors)
    out = compute(q, k, v)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.device, tensors[0].dtype)
    grads = torch.autograd.grad(out, (q, k, v), seed.to(out.dtype))
    return out.detach(), torch.cat([grad.flatten() for grad in grads])


def check(name: str, tensors: tuple[Tensor, ...], offsets: Tensor, mask: Mask = CAUSAL, *,
          scale: float | None = None, largest_score: float = 0.0):
    """Hold `name` to the numerics promise of DESIGN 4, outputs and gradients, against the float64 oracle.

    A backward pass recomputes the weights as exp(score - logsumexp), both rounded to float32 at the size of the
    scores; in float32 that, and not the plain computation, bounds the gradients once `largest_score` is large.
    """
    usable(name, *tensors, mask=mask)
    arguments = {"mask": mask, "scale": scale}
    out, grads = with_gradients(
        lambda q, k, v: attention(q, k, v, offsets, implementation=name, **arguments), tensors)
    oracle = with_gradients(lambda q, k, v: attention(q, k, v, offsets, implementation="reference", **arguments),
                            tensors, torch.float64)
    plain = with_gradients(lambda q, k, v: dense(q, k, v, offsets, mask, scale), tensors)
    assert out.dtype == tensors[0].dtype
    if out.dtype == torch.float64:
        torch.testing.assert_close((out, grads), oracle, rtol=1e-12, atol=1e-12)
        return out, grads
    assert_within_budget(out, oracle[0], plain[0])
    budget = error_budget(oracle[1], plain[1], grads.dtype, gradient=True)
    budget += 2 * ulp(torch.float32, largest_score) * float(oracle[1].abs().max()) if largest_score else 0
    assert largest_error(grads, oracle[1]) <= budget
    return out, grads


# --- the oracle ---


def test_two_events_by_hand():
    # scores of event 1: q1 k0 = 0 and q1 k1 = ln 3, so its weights are 1/4 and 3/4
    q = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    k = torch.tensor([0.0, math.log(3)], dtype=torch.float64).view(2, 1, 1)
    v = torch.tensor([4.0, 8.0], dtype=torch.float64).view(2, 1, 1)
    offsets = torch.tensor([0, 2])
    causal = attention(q, k, v, offsets, mask=CAUSAL, scale=1.0, implementation="reference")
    assert causal.flatten().tolist() == pytest.approx([4.0, 4 / 4 + 8 * 3 / 4], abs=1e-15)
    full = attention(q, k, v, offsets, scale=1.0, implementation="reference")
    assert full.flatten().tolist() == pytest.approx([(4 + 8) / 2, 7.0], abs=1e-15)  # q0 = 0: the mean
    apart = attention(q, k, v, torch.tensor([0, 1, 2]), scale=1.0, implementation="reference")
    assert apart.flatten().tolist() == [4.0, 8.0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_oracle_is_the_dense_softmax(case):
    q, k, v, offsets = case.tensors(torch.float64)
    oracle = with_gradients(
        lambda q, k, v: attention(q, k, v, offsets, mask=case.mask, implementation="reference"), (q, k, v))
    plain = with_gradients(lambda q, k, v: dense(q, k, v, offsets, case.mask), (q, k, v))
    torch.testing.assert_close(oracle, plain, rtol=1e-12, atol=1e-12)


def test_the_scale_is_one_over_the_root_of_the_width():
    q, k, v, offsets = Case("", (5, 3), width=16).tensors(torch.float64)
    torch.testing.assert_close(attention(q, k, v, offsets), attention(q, k, v, offsets, scale=0.25))


# --- every implementation ---


@every_device
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_named_cases_keep_the_numerics_promise(name, case, dtype, device):
    q, k, v, offsets = case.tensors(dtype, device)
    out, grads = check(name, (q, k, v), offsets, case.mask)
    again = with_gradients(lambda q, k, v: attention(
        q, k, v, offsets.int(), mask=case.mask, implementation=name), (q, k, v))
    assert torch.equal(out, again[0])  # int32 offsets, and a second run: the same bits
    assert torch.equal(grads, again[1])


def scores_of(kind: str, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of width 16 and scale 1 whose scores are extreme."""
    q, k, v, offsets = Case("", (40, 3, 0, 17), width=16).tensors(dtype, device)
    if kind == "plus and minus 150":
        signs = torch.where(torch.arange(len(q), device=device) % 3 == 0, -1.0, 1.0).to(dtype)[:, None, None]
        q, k = torch.full_like(q, 2.5), torch.full_like(k, 3.75) * signs  # 16 · 2.5 · 3.75 = 150
    elif kind == "up to 150":
        q = q * (150 / torch.einsum("ihd,jhd->hij", q.double(), k.double()).abs().max()).to(dtype)
    elif kind == "all equal":
        q = torch.zeros_like(q)
    elif kind == "one huge outlier":
        k[20] *= 300
    return q, k, v, offsets


@every_device
@pytest.mark.parametrize("mask", [CAUSAL, Mask()], ids=["causal", "full"])
@pytest.mark.parametrize("kind", ["plus and minus 150", "up to 150", "all equal", "one huge outlier"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["float32", "bfloat16", "float16"])
@every_implementation
def test_extreme_scores(name, dtype, kind, mask, device):
    q, k, v, offsets = scores_of(kind, dtype, device)
    largest = float(torch.einsum("ihd,jhd->hij", q.double(), k.double()).abs().max())
    out, _ = check(name, (q, k, v), offsets, mask, scale=1.0, largest_score=largest)
    assert out.isfinite().all()
    if kind == "all equal" and mask == Mask():
        mean = v[:40].float().mean(0).expand(40, -1, -1)
        torch.testing.assert_close(out[:40].float(), mean, rtol=0, atol=2 * torch.finfo(dtype).eps)


@every_device
@every_implementation
def test_views_of_a_packed_projection(name, device):
    packed = torch.randn(40, 3, 2, 8, generator=torch.Generator().manual_seed(1)).to(device, low_dtype(name))
    q, k, v = packed.unbind(1)
    offsets = torch.tensor([0, 12, 12, 40], device=device)
    usable(name, q, k, v)
    assert not q.is_contiguous()
    seen = attention(q, k, v, offsets, mask=CAUSAL, implementation=name)
    copied = attention(q.contiguous(), k.contiguous(), v.contiguous(), offsets, mask=CAUSAL, implementation=name)
    assert torch.equal(seen, copied)
    transposed = v.transpose(0, 1).contiguous().transpose(0, 1)  # heads outermost in memory
    assert torch.equal(attention(q, k, transposed, offsets, mask=CAUSAL, implementation=name), copied)


@every_device
@every_implementation
def test_gradients_may_arrive_in_any_layout(name, device):
    q, k, v, offsets = MIXED.tensors(low_dtype(name), device)
    usable(name, q, k, v)
    v.requires_grad_()
    out = attention(q, k, v, offsets, mask=CAUSAL, implementation=name)
    expanded = torch.ones((), dtype=out.dtype, device=device).expand(out.shape)  # strides of zero, as sum() gives
    given = torch.autograd.grad(out, v, expanded, retain_graph=True)[0]
    assert torch.equal(given, torch.autograd.grad(out, v, torch.ones_like(out))[0])


@every_device
@every_implementation
def test_values_of_another_width(name, device):
    q, k, _, offsets = MIXED.tensors(low_dtype(name), device)
    v = torch.randn(len(q), 2, 5, generator=torch.Generator().manual_seed(2)).to(device, q.dtype)
    out, _ = check(name, (q, k, v), offsets)
    assert out.shape == v.shape


@every_device
@pytest.mark.parametrize("event", [0, 40, 63])
@every_implementation
def test_no_event_sees_a_later_one(name, event, device):
    q, k, v, offsets = Case("", (7, 64, 3)).tensors(low_dtype(name), device)
    usable(name, q, k, v)
    before = attention(q, k, v, offsets, mask=CAUSAL, implementation=name)
    at = 7 + event
    for x in (q, k, v):
        x[at] = 3 - x[at]
    after = attention(q, k, v, offsets, mask=CAUSAL, implementation=name)
    assert torch.equal(before[:at], after[:at])
    assert torch.equal(before[71:], after[71:])  # nor does another row
    assert not torch.equal(before[at], after[at])


@every_device
@every_implementation
def test_a_row_does_not_depend_on_its_batch_mates_or_their_order(name, device):
    tensors = MIXED.tensors(low_dtype(name), device)
    *tensors, offsets = tensors
    usable(name, *tensors)
    together = attention(*tensors, offsets, mask=CAUSAL, implementation=name)
    tolerance = {"rtol": 0, "atol": 1e-6 if together.dtype == torch.float32 else 2e-3}
    rows = list(range(len(MIXED.lengths)))
    parts = [x.split(list(MIXED.lengths)) for x in (*tensors, together)]
    for row in rows:
        q, k, v, expected = (part[row] for part in parts)
        alone = attention(q, k, v, torch.tensor([0, len(q)], device=device), mask=CAUSAL, implementation=name)
        torch.testing.assert_close(alone, expected, **tolerance)
    q, k, v, expected = (torch.cat([part[row] for row in reversed(rows)]) for part in parts)
    backwards = offsets_from_lengths(offsets.diff().flip(0))
    torch.testing.assert_close(
        attention(q, k, v, backwards, mask=CAUSAL, implementation=name), expected, **tolerance)


@every_device
@every_implementation
def test_longest_may_be_any_upper_bound(name, device):
    q, k, v, offsets = MIXED.tensors(low_dtype(name), device)
    usable(name, q, k, v)
    outs = [attention(q, k, v, offsets, mask=CAUSAL, longest=longest, implementation=name)
            for longest in (64, 65, 1000, None)]
    assert all(torch.equal(out, outs[0]) for out in outs)


@every_device
@every_implementation
def test_more_rows_times_heads_than_a_launch_grid_holds(name, device):
    rows, heads = 4200, 16
    assert rows * heads > 65_535
    q, k, v = torch.randn(3, 2 * rows, heads, 8, generator=torch.Generator().manual_seed(3)).to(
        device, low_dtype(name))
    usable(name, q, k, v)
    offsets = torch.arange(0, 2 * rows + 1, 2, device=device)
    out = attention(q, k, v, offsets, mask=CAUSAL, implementation=name).unflatten(0, (rows, 2)).float()
    query, key, value = (x.float().unflatten(0, (rows, 2)) for x in (q, k, v))
    weights = (torch.einsum("bhd,bjhd->bjh", query[:, 1], key) * 8**-0.5).softmax(1)
    expected = torch.stack([value[:, 0], torch.einsum("bjh,bjhd->bhd", weights, value)], 1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6 if q.dtype == torch.float32 else 2e-3)


@every_device
@every_implementation
def test_the_graph_can_be_used_twice(name, device):
    q, k, v, offsets = MIXED.tensors(low_dtype(name), device)
    usable(name, q, k, v)
    q.requires_grad_()
    out = attention(q, k, v, offsets, mask=CAUSAL, implementation=name)
    first = torch.autograd.grad(out.float().square().sum(), q, retain_graph=True)[0]
    second = torch.autograd.grad(out.float().square().sum(), q, retain_graph=True)[0]
    assert torch.equal(first, second)
    both = torch.autograd.grad(out.float().square().sum() + out.float().square().sum(), q)[0]
    torch.testing.assert_close(both, 2 * first, rtol=1e-5 if q.dtype == torch.float32 else 1e-2, atol=1e-5)


@every_device
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
@every_implementation
def test_gradients_for_some_inputs_only(name, wanted, device):
    *tensors, offsets = MIXED.tensors(low_dtype(name), device)
    usable(name, *tensors)
    every = [x.clone().requires_grad_() for x in tensors]
    attention(*every, offsets, mask=CAUSAL, implementation=name).sum().backward()
    some = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(tensors)]
    attention(*some, offsets, mask=CAUSAL, implementation=name).sum().backward()
    for i, (one, other) in enumerate(zip(some, every, strict=True)):
        assert torch.equal(one.grad, other.grad) if i in wanted else one.grad is None


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("mask", [CAUSAL, Mask()], ids=["causal", "full"])
def test_gradcheck(name, mask):
    *tensors, offsets = Case("", (3, 0, 1, 4, 3), width=3).tensors(torch.float64)
    tensors = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(
        lambda *qkv: attention(*qkv, offsets, mask=mask, scale=0.7, implementation=name), tensors)


@every_device
@every_implementation
def test_no_result_is_left_in_uninitialised_memory(name, device, monkeypatch):
    *tensors, offsets = MIXED.tensors(low_dtype(name), device)
    usable(name, *tensors)

    def run():
        return with_gradients(
            lambda q, k, v: attention(q, k, v, offsets, mask=CAUSAL, implementation=name), tuple(tensors))

    clean = run()
    poison_memory(monkeypatch)
    assert torch.empty(3).isnan().all()
    poisoned = run()
    assert torch.equal(clean[0], poisoned[0])
    assert torch.equal(clean[1], poisoned[1])


def poison_memory(monkeypatch) -> None:
    """Make every uninitialised floating tensor that Python asks for full of NaN."""
    def poisoned(make):
        def filled(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(math.nan) if made.dtype.is_floating_point else made
        return filled

    for owner, names in ((torch, ("empty", "empty_like", "empty_strided")), (Tensor, ("new_empty",))):
        for each in names:
            monkeypatch.setattr(owner, each, poisoned(getattr(owner, each)))


# --- under torch's machinery ---


@pytest.mark.parametrize("case", [MIXED, CASES[0], Case("", (0, 0))], ids=["mixed", "no_rows", "all_empty"])
def test_custom_operators_are_well_behaved(case):
    q, k, v, offsets = case.tensors()
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.serrate.attention_cpu.default, (*leaves, offsets, True, 0.3))
    out, logsumexp = torch.ops.serrate.attention_cpu(q, k, v, offsets, True, 0.3)
    backward = (torch.ones_like(out), [q, k, v, out, logsumexp], offsets, True, 0.3)
    torch.library.opcheck(torch.ops.serrate.attention_cpu_backward.default, backward)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole_and_once_for_all_lengths(backend):
    def loss(q, k, v, offsets):
        return (attention(q * 2, k, v, offsets, mask=CAUSAL) ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    # torch's cache on disk knows our operators by name alone: it would bring back graphs of an earlier version of them
    fresh = torch.compiler.config.patch(force_disable_caches=True)
    with fresh, torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((3, 6), (2, 0, 9, 4), (1, 1, 64), (7,) * 30):
            *tensors, offsets = Case("", lengths).tensors()
            leaves = [x.requires_grad_() for x in tensors]
            eager = torch.autograd.grad(loss(*leaves, offsets), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*leaves, offsets), leaves), eager)


def test_a_second_derivative_is_refused_and_never_wrong():
    q, k, v, offsets = MIXED.tensors()
    q.requires_grad_()
    out = attention(q, k, v, offsets, implementation="cpu")
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="attention_cpu_backward"):
        grad.sum().backward()


# --- arguments and the choice ---

GOOD = {"q": torch.zeros(4, 2, 8), "k": torch.zeros(4, 2, 8), "v": torch.zeros(4, 2, 8),
        "offsets": torch.tensor([0, 1, 4])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(4, 16)}, "q: expected shape (T, H, D) or (B, K, H, D) with H, D >= 1, got (4, 16)"),
        ({"q": torch.zeros(4, 2, 0)}, "q: expected shape (T, H, D) or (B, K, H, D) with H, D >= 1, got (4, 2, 0)"),
        ({"k": torch.zeros(4, 2, 9)}, "k: expected shape (S, G, 8) where G divides 2, got (4, 2, 9)"),
        ({"v": torch.zeros(5, 2, 8)}, "v: expected shape (4, 2, Dv), got (5, 2, 8)"),
        ({"v": torch.zeros(4, 16)}, "v: expected shape (4, 2, Dv), got (4, 16)"),
        ({name: torch.zeros(4, 2, 8, dtype=torch.int64) for name in "qkv"},
         "q: expected a floating-point dtype, got torch.int64"),
        ({"k": torch.zeros(4, 2, 8).half()}, "k: expected torch.float32, as q, got torch.float16"),
        ({"v": torch.zeros(4, 2, 8).double()}, "v: expected torch.float32, as q, got torch.float64"),
        ({"v": torch.zeros(4, 2, 8, device="meta")}, "v: expected a tensor on cpu, as q, got meta"),
        ({"offsets": torch.zeros(3, dtype=torch.int64, device="meta")},
         "offsets: expected a tensor on cpu, as q, got meta"),
        ({"offsets": torch.zeros(0, dtype=torch.int64)},
         "offsets: expected shape (B + 1,), dtype int32 or int64, got (0,) torch.int64"),
        ({"offsets": torch.zeros(2, 2, dtype=torch.int32)},
         "offsets: expected shape (B + 1,), dtype int32 or int64, got (2, 2) torch.int32"),
        ({"offsets": torch.zeros(3)},
         "offsets: expected shape (B + 1,), dtype int32 or int64, got (3,) torch.float32"),
        ({"scale": math.nan}, "scale: expected a finite number, got nan"),
        ({"scale": math.inf}, "scale: expected a finite number, got inf"),
        ({"implementation": "cpuu"}, "implementation: expected one of triton, varlen, cpu, reference "
                                     "(did you mean 'cpu'?), got 'cpuu'"),
    ],
)  # fmt: skip
def test_malformed_arguments_are_named(changes, message):
    with pytest.raises(InvalidArgument) as caught:
        attention(**{**GOOD, **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("triton", {}, "needs a CUDA device, got cpu"),
        ("varlen", {}, "needs a CUDA device, got cpu"),
        ("cpu", {"v": torch.zeros(4, 2, 3)}, "needs values as wide as keys, got 3 and 8"),
        ("cpu", {name: tensor.to("meta") for name, tensor in GOOD.items()}, "needs a CPU tensor, got meta"),
    ],
)
def test_an_explicit_choice_never_slides(name, changes, reason):
    with pytest.raises(NotUsable) as caught:
        attention(**{**GOOD, **changes}, implementation=name)
    assert str(caught.value) == f"implementation '{name}' of attention cannot serve this call: {reason}"


def test_the_automatic_choice_keeps_its_reasons():
    wide = Call(torch.device("cpu"), torch.float32, 8, 3, CAUSAL)
    choice = choose("attention", wide)
    assert choice.implementation.name == "reference"
    assert choice.passed_over == (("triton", "needs a CUDA device, got cpu"),
                                  ("varlen", "needs a CUDA device, got cpu"),
                                  ("cpu", "needs values as wide as keys, got 3 and 8"))


@pytest.mark.parametrize(
    ("device", "dtype", "width", "value_width", "name"),
    [
        ("cpu", torch.float32, 8, 8, "cpu"),
        ("cpu", torch.float64, 7, 7, "cpu"),
        ("cpu", torch.float32, 8, 4, "reference"),
        ("cuda", torch.bfloat16, 64, 64, "triton"),
        ("cuda", torch.float16, 256, 256, "triton"),
        ("cuda", torch.float16, 25, 25, "triton"),
        ("cuda", torch.float16, 25, 40, "triton"),
        ("cuda", torch.float16, 264, 264, "reference"),
        ("cuda", torch.float32, 64, 64, "triton"),
        ("cuda", torch.float64, 64, 64, "reference"),
    ],
)
def test_which_implementation_serves_what(device, dtype, width, value_width, name):
    if name == "triton" and find_spec("triton") is None:  # torch's CUDA builds bring it
        name = "reference" if dtype == torch.float32 else "varlen"
    call = Call(torch.device(device), dtype, width, value_width, CAUSAL)
    assert choose("attention", call).implementation.name == name
