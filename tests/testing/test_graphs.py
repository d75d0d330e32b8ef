"""Captured graphs, on a CPU by a stand-in for capturing, and on a GPU."""

import pytest
import torch

from serrate.testing import graphs


def changing(x):
    for step in (1.0, 2.0):
        x.add_(step)
        yield


@pytest.fixture
def stand_in(monkeypatch):
    """Captures by keeping results, and replays by running again; tells whether it is to follow."""
    follows = [True]

    def capture(run):
        captured = [x.clone() for x in run()]

        def replay():
            if follows[0]:
                for old, new in zip(captured, run(), strict=True):
                    old.copy_(new)

        return captured, replay

    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    return follows


def test_a_graph_that_follows_passes(stand_in):
    x = torch.zeros(3)
    graphs.assert_captured(lambda: (x + 1, x * 2), changing(x))
    assert torch.equal(x, torch.full((3,), 3.0))


def test_a_graph_that_does_not_is_told_with_its_change(stand_in):
    x = torch.zeros(3)
    stand_in[0] = False
    with pytest.raises(AssertionError, match="result 1 of the captured graph is another after change 0"):
        graphs.assert_captured(lambda: (torch.ones(2), x * 2), changing(x))


def test_the_mode_is_set_back_whatever_happens(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with pytest.raises(ZeroDivisionError), graphs.nothing_waits():
        raise ZeroDivisionError
    assert modes == ["error", "default"]


@pytest.mark.gpu
def test_who_waits_is_told_and_graphs_follow():
    x = torch.zeros(3, device="cuda")
    graphs.assert_captured(lambda: (x + 1,), changing(x))
    with pytest.raises(RuntimeError, match="synchronizing"), graphs.nothing_waits():
        x.sum().item()
