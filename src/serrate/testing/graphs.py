"""What operators on a GPU promise of the host: nothing waits, and a captured graph follows what changes in place."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Raise RuntimeError where the host waits for a GPU, from when that has nothing left to do."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_captured(run: Callable[[], Sequence[Tensor]], changes: Iterable[object]) -> None:
    """Raise where `run` waits for the GPU, or where its captured graph gives other bits than `run` after a change.

    `changes` makes one in place before each of its items, as a generator does: inputs of other contents.
    """
    run()  # what is compiled and kept at the first call
    with nothing_waits():
        run()
    captured, replay = _capture(run)
    for number, _ in enumerate(changes):
        replay()
        for i, (replayed, eager) in enumerate(zip(captured, run(), strict=True)):
            if not torch.equal(replayed, eager):
                raise AssertionError(f"result {i} of the captured graph is another after change {number}")


def _capture(run: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    return captured, graph.replay
