"""The suite of log-sum-exp of mixtures: every implementation against the float64 oracle, gradients included."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.ops import implementations
from serrate.ops.dropout import kept
from serrate.ops.mixture_of_logits import Call, Gate, Problem, mixture_of_logits, mixture_of_logits_logsumexp
from serrate.ops.mixture_of_logits.cases import CASES, Case
from serrate.testing import assert_within_budget

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = ("query_components", "query_gate", "item_components", "item_gate", *Gate._fields)
# of what kernels serve: the other cases ask for more components, wider ones or a wider gate
SERVED = ("no queries", "no items", "one item", "odd sizes", "published", "more components", "sharp", "low temperature",
          "parts of larger tensors")

every_implementation = pytest.mark.parametrize(
    "name", [each.name for each in implementations("mixture_of_logits_logsumexp")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@dataclass(frozen=True)
class Sum:
    """What is asked for beside the scores."""

    scale: float = 1.0
    shifts: bool = False
    excluded: bool = False
    dropout: float = 0.0

    def given(self, case: Case, device: str) -> dict:
        """Return the arguments: labels are shared by two items each, and some queries have that of none."""
        generator = torch.Generator().manual_seed(7)
        shifts = torch.randn(case.items, generator=generator).to(device)
        labels = torch.arange(case.items) // 2
        own = torch.randint(-1, max(1, case.items // 2), (case.queries,), generator=generator)
        return {"scale": self.scale, "shifts": shifts if self.shifts else None, "dropout": self.dropout, "seed": 5,
                "excluded": (labels.to(device), own.to(device)) if self.excluded else None}


SUMS = {"plain": Sum(), "all": Sum(0.7, True, True, 0.3)}
EVERY = [pytest.param(case, wanted, id=f"{case.name}-{name}") for case in CASES if case.name in SERVED
         for name, wanted in SUMS.items() if name == "all" or case.name in ("one item", "published")]


def usable(name: str, case: Case, dtype: torch.dtype, device: str) -> None:
    """Skip the test, with the reason, where the implementation cannot serve the case."""
    call = Call(torch.device(device), dtype, case.query_components, case.item_components, case.width, case.hidden)
    found = {each.name: each for each in implementations("mixture_of_logits_logsumexp")}
    if (reason := found[name].unusable(call)) is not None:
        pytest.skip(f"{name}: {reason}")


def both(problem: Problem, name: str | None, given: dict, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return the sums and, of these by some numbers, the gradients of the eight tensors."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in (*problem[:4], *problem.gate)]
    if name is None:
        out = plainly(Problem(*leaves[:4], Gate(*leaves[4:]), problem.temperature), given)
    else:
        out = mixture_of_logits_logsumexp(*leaves[:4], Gate(*leaves[4:]), temperature=problem.temperature,
                                          implementation=name, **given)
    by = torch.linspace(-1, 2, len(out), dtype=out.dtype, device=out.device)
    total = (out.masked_fill(out == -math.inf, 0) * by).sum()
    return [out.detach(), *torch.autograd.grad(total, leaves, materialize_grads=True)]


def plainly(problem: Problem, given: dict) -> Tensor:
    """Return the sums by plain torch, one operation after the other, in the dtype of the items."""
    f, a, g, b, gate, temperature = problem
    logits = torch.einsum("rnd,vmd->rvnm", f, g).flatten(2) / temperature
    hidden = F.silu(F.linear(logits, gate.first_weight, gate.first_bias))
    w = F.silu(a[:, None] * b + F.linear(hidden, gate.second_weight, gate.second_bias))
    stay = torch.ones_like(w, dtype=torch.bool)
    if given["dropout"]:
        places = [torch.arange(size, device=f.device) for size in logits.shape[:2]]
        seed = torch.tensor(given["seed"], device=f.device)
        stay = kept(seed, given["dropout"], logits.shape[2], *places).permute(1, 2, 0)
    shares = w.masked_fill(~stay, -1e4).softmax(-1) * stay  # a share of what stays; none where nothing does
    wide = torch.promote_types(f.dtype, torch.float32)
    logs = (shares * logits).sum(-1).to(wide) * given["scale"]
    logs = logs if given["shifts"] is None else logs + given["shifts"]
    if given["excluded"] is not None:
        items, queries = given["excluded"]
        logs = logs.masked_fill(items == queries[:, None], -math.inf)
    return logs.logsumexp(1) if logs.shape[1] else logs.sum(1) - math.inf


# --- the oracle ---


@pytest.mark.parametrize("wanted", SUMS.values(), ids=SUMS)
def test_the_oracle_is_its_definition(wanted):
    case = Case("", 4, 9, 2, 3, 4, 5, temperature=0.5)
    problem, given = case.problem(torch.float64), wanted.given(case, "cpu")
    for mine, plain in zip(both(problem, "reference", given), both(problem, None, given), strict=True):
        torch.testing.assert_close(mine, plain)


def test_the_oracle_sums_scores():
    case = Case("", 4, 9)
    problem = case.problem(torch.float64)
    scores = mixture_of_logits(*problem[:5], temperature=0.05, implementation="reference")
    found = mixture_of_logits_logsumexp(*problem[:5], temperature=0.05, implementation="reference")
    torch.testing.assert_close(found, scores.logsumexp(1))


# --- every implementation ---


@every_device
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("case", "wanted"), EVERY)
@every_implementation
def test_sums_and_gradients_keep_the_numerics_promise(name, wanted, case, dtype, device):
    usable(name, case, dtype, device)
    problem, given = case.problem(dtype, device), wanted.given(case, device)
    found, exact = both(problem, name, given), both(problem, "reference", given, torch.float64)
    assert found[0].dtype == torch.promote_types(dtype, torch.float32)
    for x, tensor in zip(found[1:], (*problem[:4], *problem.gate), strict=True):
        assert (x.dtype, x.shape) == (tensor.dtype, tensor.shape)
    plain = both(problem, None, given)
    for at, (x, y, z) in enumerate(zip(found, exact, plain, strict=True)):
        if dtype.itemsize == 2:
            assert_within_budget(x, y, z, gradient=at > 0, name=("sums", *NAMES)[at])
        else:  # a score of 20 computed twice is rounded twice, which its exponential shows
            tolerance = {torch.float64: 1e-9, torch.float32: 2e-5}[dtype]
            size = float(y[y.isfinite()].abs().max()) if y.isfinite().any() else 1.0
            torch.testing.assert_close(x.double(), y, rtol=0, atol=tolerance * max(size, 1.0))


@every_device
@every_implementation
def test_a_query_with_no_item_left_has_minus_infinity_and_gives_no_gradient(name, device):
    case = Case("", 3, 6)
    usable(name, case, torch.float16, device)
    problem = case.problem(torch.float16, device)
    labels = torch.ones(6, dtype=torch.int64, device=device), torch.tensor([0, 1, 0], device=device)
    given = {**Sum().given(case, device), "excluded": labels}
    out, of_queries, *others = both(problem, name, given)
    assert out.isinf().tolist() == [False, True, False]
    assert of_queries[1].abs().sum() == 0
    assert of_queries[0].abs().sum() > 0
    assert all(x.isfinite().all() for x in (of_queries, *others))


@every_device
@every_implementation
def test_a_mixture_of_which_nothing_stays_scores_zero(name, device):
    case = Case("", 4, 30, 1, 1)
    usable(name, case, torch.float16, device)
    problem, given = case.problem(torch.float16, device), {**Sum().given(case, device), "dropout": 0.5}
    out, *gradients = both(problem, name, given)
    stay = kept(torch.tensor(5), 0.5, 1, torch.arange(4), torch.arange(30))[0].to(device)
    assert 0 < int((~stay).sum()) < stay.numel()
    scores = mixture_of_logits(*problem[:5], temperature=0.05, implementation="reference")
    torch.testing.assert_close(out, (scores * stay).logsumexp(1), rtol=1e-3, atol=1e-3)
    assert all(x.isfinite().all() for x in gradients)


@every_device
@every_implementation
def test_the_draw_follows_from_the_seed(name, device):
    case = Case("", 3, 20)
    usable(name, case, torch.float16, device)
    problem, given = case.problem(torch.float16, device), Sum(dropout=0.3).given(case, device)
    one, again = both(problem, name, given), both(problem, name, {**given, "seed": torch.tensor(5, device=device)})
    assert all(torch.equal(x, y) for x, y in zip(one, again, strict=True))  # the same bits each time
    assert not torch.equal(one[0], both(problem, name, {**given, "seed": 6})[0])


@every_device
def test_parts_of_the_queries_change_no_more_than_rounding(device, monkeypatch):
    case = Case("", 7, 40, 3, 2)
    usable("triton", case, torch.float16, device)
    problem, given = case.problem(torch.float16, device), SUMS["all"].given(case, device)
    whole = both(problem, "triton", given)
    monkeypatch.setattr("serrate.ops.mixture_of_logits.triton._SCORES", 2 * case.items)
    monkeypatch.setattr("serrate.ops.mixture_of_logits.triton.gradients._LOGITS", 1000)
    for x, y in zip(both(problem, "triton", given), whole, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=1e-4)


@every_device
@pytest.mark.parametrize("wanted", SUMS.values(), ids=SUMS)
def test_the_operators_pass_torchs_checks(wanted, device):
    case = Case("", 3, 9)
    usable("triton", case, torch.float16, device)
    problem, given = case.problem(torch.float16, device), wanted.given(case, device)
    tensors = [x.requires_grad_() for x in (*problem[:4], *problem.gate)]
    seed = torch.tensor(5, device=device) if wanted.dropout else None
    arguments = (tensors, given["shifts"], list(given["excluded"] or ()), seed, [0.05, wanted.scale, wanted.dropout])
    torch.library.opcheck(torch.ops.serrate.mixture_of_logits_logsumexp_triton.default, arguments)


# --- the choice and errors ---


@pytest.mark.parametrize(("case", "message"), [
    (Case("", 2, 3, 8, 9), "needs at most 64 pairs of components, padded to powers of two, got 128"),
    (Case("", 2, 3, 8, 4, 200), "needs at most 512 numbers an item, padded to powers of two, got 1024"),
    (Case("", 2, 3, hidden=150), "needs at most 128 hidden numbers, got 150"),
])  # fmt: skip
def test_an_implementation_that_cannot_serve_is_refused(case, message):
    with pytest.raises(NotUsable, match=message):
        mixture_of_logits_logsumexp(*case.problem()[:5], temperature=0.05, implementation="triton")


P = Case("", 2, 3, 2, 2, 4, 5).problem()  # 2 queries, 3 items
LABELS = torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(("changed", "message"), [
    ({"scale": math.nan}, "scale: expected a finite number, got nan"),
    ({"dropout": 1.0}, "dropout: expected a number from 0 to below 1, got 1.0"),
    ({"dropout": 0.5, "seed": torch.zeros(2)},
     "seed: expected an int, or one int64 on cpu, got (2,) torch.float32 on cpu"),
    ({"shifts": torch.zeros(2)}, "shifts: expected shape (3,), floating on cpu, got (2,) torch.float32 on cpu"),
    ({"shifts": torch.zeros(3).int()}, "shifts: expected shape (3,), floating on cpu, got (3,) torch.int32 on cpu"),
    ({"excluded": LABELS[::-1]}, "excluded: expected labels of items (3,) and of queries (2,), int64 on cpu, "
                                 "got (2,) torch.int64 on cpu"),
    ({"excluded": (LABELS[0], LABELS[1].int())}, "excluded: expected labels of items (3,) and of queries (2,), int64 "
                                                 "on cpu, got (2,) torch.int32 on cpu"),
    ({"temperature": 0.0}, "temperature: expected a finite number above 0, got 0.0"),
])  # fmt: skip
def test_a_sum_that_does_not_fit_is_refused(changed, message):
    with pytest.raises(InvalidArgument) as caught:
        mixture_of_logits_logsumexp(*P[:5], **{"temperature": 0.05, **changed})
    assert str(caught.value) == message
