"""The choice of an implementation: explicit ones succeed or raise, automatic ones keep every reason."""

import pytest

from serrate.errors import InvalidArgument, NotUsable
from serrate.ops import select
from serrate.ops.select import Choice, Implementation, choose, implementations


def never(call):
    raise AssertionError("chosen only, never computed")


FAST = Implementation("fast", never, lambda call: None if call == "even" else f"needs even, got {call}")
EXACT = Implementation("exact", never, lambda call: "needs odd" if call == "even" else None)
PICKY = Implementation("picky", never, lambda call: "never serves")


@pytest.fixture(autouse=True)
def operation(monkeypatch):
    monkeypatch.setattr(select, "_operations", {})
    select.register("sort", [PICKY, FAST, EXACT])


def test_implementations_stand_in_the_order_they_are_tried():
    assert implementations("sort") == (PICKY, FAST, EXACT)


def test_the_first_usable_one_is_chosen_and_the_reasons_are_kept():
    assert choose("sort", "even") == Choice(FAST, (("picky", "never serves"),))
    assert choose("sort", "odd") == Choice(EXACT, (("picky", "never serves"), ("fast", "needs even, got odd")))


def test_an_explicit_choice_is_taken_whatever_its_rank():
    assert choose("sort", "odd", "exact") == Choice(EXACT)


def test_an_explicit_choice_that_cannot_serve_raises():
    with pytest.raises(NotUsable) as caught:
        choose("sort", "odd", "fast")
    assert str(caught.value) == "implementation 'fast' of sort cannot serve this call: needs even, got odd"


def test_no_usable_implementation_tells_every_reason():
    select.register("sort", [PICKY, FAST])
    with pytest.raises(NotUsable) as caught:
        choose("sort", "odd")
    assert str(caught.value) == (
        "no implementation of sort can serve this call (picky: never serves; fast: needs even, got odd)")


def test_unknown_names_are_answered_with_the_closest_known_one():
    with pytest.raises(InvalidArgument) as caught:
        choose("sort", "odd", "fats")
    assert str(caught.value) == (
        "implementation: expected one of picky, fast, exact (did you mean 'fast'?), got 'fats'")
    with pytest.raises(InvalidArgument) as caught:
        implementations("sorting")
    assert str(caught.value) == "operation: expected one of sort (did you mean 'sort'?), got 'sorting'"
