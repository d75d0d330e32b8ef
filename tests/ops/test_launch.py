"""Launches that are remembered: never the kernel of other arguments, and Triton's own way where it has to be."""

import weakref
from collections.abc import Callable, Iterator
from itertools import combinations
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402 - needs the line above
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler.compiler import make_backend  # noqa: E402
from triton.experimental.gluon import language as gl  # noqa: E402
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor  # noqa: E402
from triton.runtime.jit import JITFunction, create_function_from_signature  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

from serrate.ops import launch  # noqa: E402
from serrate.ops.launch import Launched, launched  # noqa: E402


def _kernel(x, numbers, n, factor, SIZE: tl.constexpr, HOW: tl.constexpr):  # noqa: N803
    pass


class Named(NamedTuple):
    """A tuple of a class of its own."""

    first: Any
    second: int


MEMORY = torch.zeros(64)
ALIGNED, ODD = MEMORY[:16], MEMORY[1:17]
TENSORS = [None, ALIGNED, ODD, ALIGNED.to(torch.bfloat16), torch.nn.Parameter(MEMORY), MEMORY.long(), MEMORY > 0]
NUMBERS = [0, 1, 2, 15, 16, 17, 32, -1, -16, 2**31 - 1, 2**31, 2**31 + 16, -2**31, -2**31 - 1, 2**63, True, False,
           1.0, 0.0]
TUPLES = [(), (1,), (1.0,), (True,), (16, 17), (17, 16), (16, 16), (2**31, 1), (None, 1), (ALIGNED, 1), (ODD, 1),
          (ALIGNED.half(), 1), ((ALIGNED, 2), 3), ((ODD, 2), 3), (3, (ALIGNED, 2)),
          Named(1, 2), Named(1.0, 2), Named(ALIGNED, 2), Named(ODD, 2)]
CONSTANTS = [1, 2, 16, 32, True, False, 0, None, "ieee", "tf32", (1, 2), (1, True), ("ieee", False)]


def _described() -> Iterator[Any]:
    for block in ([4, 1, 64], [1, 4, 64]):
        for x in (torch.zeros(4, 4, 64, dtype=dtype) for dtype in (torch.float32, torch.float16, torch.int32)):
            yield TensorDescriptor(x, list(x.shape), list(x.stride()), block)
        for swizzle in (64, 128):
            x, layout = torch.zeros(4, 4, 64, dtype=torch.float16), gl.NVMMASharedLayout(swizzle, 16, rank=3)
            yield GluonDescriptor(x, list(x.shape), list(x.stride()), block, layout)


def _changed() -> list[tuple]:
    """Return lists of arguments that differ in one or two places."""
    usual: tuple = (ALIGNED, (16, 1), 100, 0.5, 32, "ieee")
    found = [usual]
    given = ([*TENSORS, *_described()], [*TUPLES, *TENSORS], [*NUMBERS, None, ALIGNED], NUMBERS, CONSTANTS, CONSTANTS)
    for place, values in enumerate(given):
        found += [(*usual[:place], value, *usual[place + 1:]) for value in values]
    found += [(x, numbers, n, 0.5, 32, "ieee") for x in TENSORS[:3] for numbers in TUPLES[:3] for n in NUMBERS[:6]]
    return found


@pytest.mark.parametrize("fixed", [[], ["n"]], ids=["specialised", "not"])
def test_arguments_that_triton_tells_apart_have_keys_of_their_own(fixed):
    kernel = JITFunction(_kernel, do_not_specialize=fixed)
    bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
    mine = Launched(kernel)
    told = [(arguments, tuple(bind(*arguments)[1]), mine.told(arguments, {"num_warps": 4}, 0)[0])
            for arguments in _changed()]
    assert all(key is not None for _, _, key in told)
    for (one, of_triton, key), (other, of_triton_too, key_too) in combinations(told, 2):
        assert of_triton == of_triton_too or key != key_too, (one, other)


def test_options_and_devices_are_told_apart_and_sizes_are_not():
    mine = Launched(JITFunction(_kernel))
    arguments = (ALIGNED, (16, 1), 100, 0.5, 32, "ieee")
    keys = [mine.told(arguments, options, device)[0]
            for options in ({}, {"num_warps": 4}, {"num_warps": 8}, {"num_stages": 4}, {"maxnreg": None})
            for device in (0, 1)]
    assert len(set(keys)) == len(keys)
    assert mine.told((ALIGNED, (16, 1), 104, 0.5, 32, "ieee"), {}, 0)[0] == keys[0]


def test_tensors_are_told_again_in_tuples_of_later_calls():
    mine = Launched(JITFunction(_kernel))
    keys = [mine.told((ALIGNED, numbers, 1, 0.5, 32, None), {}, 0)[0]
            for numbers in ((16, 1), (ALIGNED, 1), (ODD, 1), (16, 1), (ALIGNED.clone(), 1), None)]
    assert (keys[0], keys[1]) == (keys[3], keys[4])
    assert len(set(keys)) == 4


def test_arguments_of_other_kinds_have_no_key():
    class Other(torch.Tensor):
        pass

    mine = Launched(JITFunction(_kernel))
    for x in (ALIGNED.as_subclass(Other), object(), tl.float32, (object(),), (ALIGNED.as_subclass(Other),)):
        assert mine.told((x, None, 1, 0.5, 32, None), {}, 0)[0] is None


# --- which way a launch goes ---


class Compiled:
    """What Triton returns of a launch, with a launcher that writes down what it is given."""

    packed_metadata, function = (4, 1, 0), 77

    def __init__(self, scratch: int = 0):
        self.given: list[tuple] = []
        self._run = SimpleNamespace(launch=lambda *given: self.given.append(given), global_scratch_size=scratch,
                                    profile_scratch_size=0, launch_cooperative_grid=False, launch_pdl=False)


class Kernel:
    """A kernel of Triton's that compiles nothing."""

    def __init__(self, scratch: int = 0):
        self.params = JITFunction(_kernel).params
        self.pre_run_hooks: list[Any] = []
        self.compiled = Compiled(scratch)
        self.launched = 0

    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.launched += 1
            return self.compiled
        return run


ARGUMENTS = (ALIGNED, (16, 1), 100, 0.5, 32, "ieee")


@pytest.fixture
def known(monkeypatch):
    """Make launches those of a GPU with the Triton that is known."""
    monkeypatch.setattr(launch, "_KNOWN", True)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 5, raising=False)


def test_the_second_launch_goes_straight_to_the_kernel_of_the_first(known):
    kernel = Kernel()
    mine = launched(kernel)
    mine[(3,)](*ARGUMENTS, num_warps=4)
    mine[(7,)](ODD[3:], (16, 1), 200, 0.25, 32, "ieee", num_warps=4)
    assert kernel.launched == 1
    (given,) = kernel.compiled.given
    assert given[:5] == (7, 1, 1, 5, 77)
    assert given[-6:] == (ODD[3:].data_ptr(), (16, 1), 200, 0.25, 32, "ieee")


def test_arguments_by_name_are_brought_to_their_places(known):
    kernel = Kernel()
    mine = launched(kernel)
    mine[(3,)](*ARGUMENTS, num_warps=4)
    mine[(3,)](*ARGUMENTS[:3], HOW="ieee", num_warps=4, SIZE=32, factor=0.5)
    assert kernel.launched == 1
    assert kernel.compiled.given[0][-6:] == (ALIGNED.data_ptr(), *ARGUMENTS[1:])


def test_launches_that_somebody_wants_to_hear_of_are_tritons_own(known, monkeypatch):
    kernel = Kernel()
    mine = launched(kernel)
    for _ in range(2):
        mine[(3,)](*ARGUMENTS)
    assert kernel.launched == 1
    heard = [(triton.knobs.runtime, "launch_enter_hook", lambda metadata: None),
             (triton.knobs.runtime, "launch_exit_hook", lambda metadata: None), (triton.knobs.runtime, "debug", True),
             (triton.knobs.compilation, "instrumentation_mode", "iisan"), (kernel, "pre_run_hooks", [print])]
    for count, (where, name, value) in enumerate(heard):
        with monkeypatch.context() as patched:
            patched.setattr(where, name, value)
            mine[(3,)](*ARGUMENTS)
        assert kernel.launched == 2 + count, name
    hook = heard[0][2]
    triton.knobs.runtime.launch_enter_hook.add(hook)
    mine[(3,)](*ARGUMENTS)
    triton.knobs.runtime.launch_enter_hook.remove(hook)
    assert kernel.launched == 2 + len(heard)
    mine[(3,)](*ARGUMENTS)
    assert kernel.launched == 2 + len(heard)


@pytest.mark.parametrize("start", [
    lambda mine: mine[(3, 2)](*ARGUMENTS),
    lambda mine: mine[(3,)](*ARGUMENTS[:5]),
    lambda mine: mine[(3,)](object(), *ARGUMENTS[1:]),
], ids=["grid", "default", "kind"])  # fmt: skip
def test_what_is_not_understood_is_left_to_triton(known, start):
    kernel = Kernel()
    mine = launched(kernel)
    for _ in range(3):
        start(mine)
    assert kernel.launched == 3


def test_kernels_that_need_memory_of_their_own_are_left_to_triton(known):
    kernel = Kernel(scratch=128)
    mine = launched(kernel)
    for _ in range(2):
        mine[(3,)](*ARGUMENTS)
    assert kernel.launched == 2


def test_no_more_is_remembered_than_has_room(known, monkeypatch):
    monkeypatch.setattr(launch, "_MOST", 4)
    kernel = Kernel()
    mine = launched(kernel)
    for size in range(100):
        mine[(3,)](*ARGUMENTS[:4], size, "ieee")
        assert len(mine._begun) <= 4
    assert kernel.launched == 100


# --- computations that are made again ---


class Computation:
    """Launches one kernel twice, between tensors given and one made in between."""

    def __init__(self, also=lambda x: None):
        self.kernel, self.also, self.done = Kernel(), also, 0
        self.mine, self.memory = launched(self.kernel), {}
        self.more: Callable[[], dict[str, torch.Tensor]] = dict

    def __call__(self, x: torch.Tensor, out: torch.Tensor, name: str = "twice") -> list[tuple]:
        """Return what the launcher is given."""
        def compute() -> dict:
            self.done += 1
            between = torch.empty(24, dtype=torch.bfloat16)
            self.mine[(3,)](x, (16, 1), 100, between, 32, "ieee", num_warps=4)
            self.also(x)
            self.mine[(5,)](between, (16, 1), None, out, 32, ("ieee", 1), num_warps=4)
            return {"between": between, **self.more()}

        self.kernel.compiled.given.clear()
        self.result = launch.recalled(self.memory, name, (x, out), compute)
        return list(self.kernel.compiled.given)


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(64), torch.zeros(64)


def test_the_third_computation_is_the_launches_of_the_second(known):
    mine = Computation()
    pairs = [_pair() for _ in range(5)]
    given = [mine(*pair) for pair in pairs]
    assert mine.done == 2
    assert mine.result["between"].shape == (24,)
    assert mine.result["between"].data_ptr() == given[-1][0][-3]
    for (x, out), (first, second) in zip(pairs[2:], given[2:], strict=True):
        assert first[:5] == (3, 1, 1, 5, 77)
        assert second[:5] == (5, 1, 1, 5, 77)
        assert (first[-6], *first[-5:-3], *first[-2:]) == (x.data_ptr(), (16, 1), 100, 32, "ieee")
        assert second[-5:] == ((16, 1), None, out.data_ptr(), 32, ("ieee", 1))
        assert first[-3] == second[-6] not in (x.data_ptr(), out.data_ptr(), 0)


def test_what_was_made_is_made_alike(known):
    def made() -> dict[str, torch.Tensor]:
        return {"zeros": torch.zeros(2, 3, dtype=torch.int32), "like": torch.empty_like(turned),
                "new": turned.new_empty((4, 1), dtype=torch.float64), "empty": torch.empty(5, dtype=torch.float16)}

    turned = torch.zeros(4, 3).T
    mine = Computation()
    for _ in range(3):
        mine.more = made
        mine(*_pair())
    assert mine.done == 2
    for name, expected in made().items():
        found = mine.result[name]
        assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert not mine.result["zeros"].any()


def test_names_and_memories_are_told_apart(known):
    mine, other = Computation(), Computation()
    for _ in range(4):
        mine(*_pair())
        mine(*_pair(), name="again")
        other(*_pair())
    assert (mine.done, other.done) == (4, 2)
    assert launch.recalled(None, "twice", _pair(), lambda: {"x": ALIGNED}) == {"x": ALIGNED}


def test_no_tensor_is_kept(known):
    mine, pairs = Computation(), [_pair() for _ in range(3)]
    kept = [weakref.ref(x) for pair in pairs for x in pair]
    while pairs:
        mine(*pairs.pop())
    assert [each() for each in kept] == [None] * 6


@pytest.mark.parametrize("also", [
    lambda x: x.zero_(),
    lambda x: torch.ones(3),
    lambda x: x[1:],
], ids=["changes", "fills", "views"])  # fmt: skip
def test_what_asks_more_of_torch_is_always_computed(known, also):
    mine = Computation(also)
    for _ in range(4):
        mine(*_pair())
    assert mine.done == 4


@pytest.mark.parametrize("argument", [
    lambda mine, x, secret: secret,
    lambda mine, x, secret: (secret, 1),
    lambda mine, x, secret: ((x, 1), 1),
    lambda mine, x, secret: TensorDescriptor(secret, [64], [1], [16]),
], ids=["tensor", "tuple", "nested", "descriptor"])  # fmt: skip
def test_tensors_of_others_are_never_launched_again(known, argument):
    secret = torch.zeros(64)
    mine = Computation()
    mine.also = lambda x: mine.mine[(3,)](x, argument(mine, x, secret), 100, x, 32, "ieee", num_warps=4)
    for _ in range(4):
        mine(*_pair())
    assert mine.done == 4


def test_results_of_others_are_never_given_again(known):
    mine = Computation()
    mine.more = lambda: {"other": ALIGNED}
    for _ in range(4):
        mine(*_pair())
    assert mine.done == 4


@pytest.mark.parametrize("made", [
    lambda x: TensorDescriptor(x, [64], [1], [16]),
    lambda x: GluonDescriptor(x, [8, 8], [8, 1], [4, 8], gl.NVMMASharedLayout(32, 32, rank=2)),
], ids=["triton", "gluon"])  # fmt: skip
def test_tuples_and_descriptors_are_made_again(known, made):
    mine, pairs = Computation(), [_pair() for _ in range(4)]
    mine.also = lambda x: mine.mine[(3,)](made(x), (x, 7, None), 100, x, 32, "ieee", num_warps=4)
    given = [mine(*pair) for pair in pairs]
    assert mine.done == 2

    def check(x: torch.Tensor, launches: list[tuple]) -> None:
        descriptor, several = launches[1][-6:-4]
        assert descriptor == made(x)
        assert descriptor.base is several[0] is x
        assert several[1:] == (7, None)

    for i in (2, 3):
        check(pairs[i][0], given[i])
    kept = [weakref.ref(x) for pair in pairs for x in pair]
    for each in (pairs, given, mine.kernel.compiled.given):
        each.clear()
    assert [each() for each in kept] == [None] * 8


def test_one_tensor_in_two_places_says_nothing_of_two(known):
    mine, (x, out) = Computation(), _pair()
    for _ in range(3):
        mine(x, x)
    assert mine.done == 2
    mine(x, out)
    assert mine.done == 3
    other = Computation()
    for _ in range(2):
        other(*_pair())
    first, second = other(x, x)
    assert other.done == 2
    assert first[-6] == second[-3] == x.data_ptr()


def test_launches_of_tritons_own_are_not_made_again(known):
    mine = Computation()
    mine.kernel.compiled._run.global_scratch_size = 128
    for _ in range(4):
        mine(*_pair())
    assert (mine.done, mine.kernel.launched) == (4, 8)


def test_launches_on_another_device_are_not_made_again(known, monkeypatch):
    mine = Computation(lambda x: monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 1))
    for _ in range(4):
        monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0)
        mine(*_pair())
    assert mine.done == 4


def test_other_alignments_and_devices_and_hooks_are_computed(known, monkeypatch):
    mine, (x, out) = Computation(), _pair()
    for _ in range(3):
        mine(x, out)
    assert mine.done == 2
    mine(x[1:], out)
    assert mine.done == 3
    for where, name, value in ((torch._C, "_cuda_getDevice", lambda: 1),
                               (triton.knobs.runtime, "launch_enter_hook", lambda metadata: None),
                               (mine.kernel, "pre_run_hooks", [print])):
        done = mine.done
        with monkeypatch.context() as patched:
            patched.setattr(where, name, value)
            mine(x, out)
        assert mine.done == done + 1, name
    mine(x, out)
    assert mine.done == done + 1


def test_without_a_gpu_everything_is_computed(monkeypatch):
    monkeypatch.setattr(launch, "_KNOWN", False)
    mine = Computation()
    for _ in range(4):
        mine(*_pair())
    assert mine.done == 4


# --- on a GPU ---


@launched
@triton.jit
def _scaled(x, strided, bias, out, n, factor, SIZE: tl.constexpr):  # noqa: N803
    """out = factor · (x + first of strided + bias), whose numbers lie a step apart."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    value = tl.load(x + i, mask=i < n).to(tl.float32) + tl.load(strided[0] + i * strided[1], mask=i < n)
    if bias is not None:
        value += tl.load(bias + i, mask=i < n)
    tl.store(out + i, value * factor, mask=i < n)


@pytest.mark.gpu
def test_kernels_follow_their_arguments():
    memory = torch.arange(4096, device="cuda")
    usual: tuple = (48, torch.float32, 0, 1, None)
    others: tuple = ((1, 16, 17), (torch.bfloat16, torch.int64), (1, 8), (2, 16), (torch.float32, torch.int64))
    calls = [usual] + [(*usual[:i], x, *usual[i + 1:]) for i, values in enumerate(others) for x in values]
    for n, dtype, first, step, of_bias in calls * 2:  # compiled, then remembered
        x, other = memory[first:].to(dtype)[first:], memory.float()[first:]
        bias = None if of_bias is None else memory.to(of_bias)[1:]
        out = torch.zeros(64, device="cuda")
        _scaled[(triton.cdiv(n, 32),)](x, (other, step), bias, out, n, 2.0, 32, num_warps=1)
        expected = x[:n].float() + other[: n * step : step] + (0 if bias is None else bias[:n].float())
        assert torch.equal(out[:n], 2 * expected), (n, dtype, first, step, of_bias)
        assert not out[n:].any()


@pytest.mark.gpu
def test_a_graph_holds_launches_that_are_remembered():
    x, other, out = (torch.ones(32, device="cuda") for _ in range(3))

    def run():
        _scaled[(1,)](x, (other, 1), None, out, 32, 3.0, 32, num_warps=1)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    x.fill_(4)
    graph.replay()
    assert torch.equal(out, torch.full_like(out, 15))
