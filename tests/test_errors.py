import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate import errors
from serrate.errors import (
    InvalidArgument,
    InvalidConfig,
    InvalidData,
    InvalidRun,
    NotUsable,
    NotWritable,
    SerrateError,
    shorten,
    suggest,
)


def test_an_invalid_argument_names_the_argument_the_expected_and_the_got():
    assert str(InvalidArgument("offsets", "dtype int32 or int64", torch.float32)) == (
        "offsets: expected dtype int32 or int64, got torch.float32"
    )


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (InvalidArgument("k", "at least 1", 0), ValueError),
        (InvalidData("x"), ValueError),
        (InvalidConfig("x"), ValueError),
        (InvalidRun("x"), ValueError),
        (NotUsable("x"), RuntimeError),
        (NotWritable("x"), OSError),
    ],
)
def test_every_error_is_also_the_builtin_that_callers_expect(error, builtin):
    assert isinstance(error, SerrateError)
    assert isinstance(error, builtin)


def test_every_error_of_the_module_is_a_serrate_error():
    public = [value for name, value in vars(errors).items() if isinstance(value, type) and name[0] != "_"]
    raised = [cls for cls in public if issubclass(cls, BaseException)]
    assert len(raised) == 7
    assert all(issubclass(cls, SerrateError) for cls in raised)


# Surrogates and control characters too.
ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=300)


@given(ANY_TEXT)
def test_a_message_is_one_printable_line_whatever_it_holds(text):
    for error in (InvalidData(text), NotWritable(text), InvalidArgument(text, text, text)):
        message = str(error)
        assert message.splitlines() in ([message], [])
        assert message.isprintable()
        message.encode()  # a lone surrogate (an undecodable file name) would fail here, and on stderr


def test_lines_become_one_line_and_ordinary_text_stays():
    assert str(InvalidData("first:\n    second\r\nthird\n")) == "first: second third"
    assert str(InvalidData("a  b · ü 完")) == "a  b · ü 完"
    assert str(InvalidData("column 'a\tb\x1b[0m'")) == "column 'a\\tb\\x1b[0m'"


@pytest.mark.parametrize(
    "got",
    ["x" * 10_000, torch.zeros(100, 100), np.zeros((50, 50)), list(range(9999)), {i: i for i in range(999)}],
    ids=["text", "tensor", "array", "list", "dict"],
)
def test_a_huge_got_is_shortened(got):
    message = str(InvalidArgument("x", "something small", got))
    assert message.startswith("x: expected something small, got ")
    assert "…" in message or "..." in message
    assert len(message) < 250


def test_a_shortened_text_keeps_both_ends():
    assert shorten("a" * 50 + "b" * 50, 11) == "aaaaa…bbbbb"
    assert shorten("short", 11) == "short"
    assert shorten("exactly 11.", 11) == "exactly 11."
    assert shorten("") == ""
    assert shorten(None) == "None"


def test_a_got_whose_text_explodes_is_cut_before_it_is_built():
    value: list = ["x"]
    for _ in range(60):  # 2**60 leaves, if anyone wrote them out
        value = [value, value]
    assert len(str(InvalidArgument("x", "a flat list", value))) < 250


def test_a_path_or_dtype_reads_as_itself():
    assert str(InvalidArgument("out", "an empty folder", Path("a/b"))).endswith("got a/b")
    assert str(InvalidArgument("x", "int64", torch.int32)).endswith("got torch.int32")


@pytest.mark.parametrize(
    "error", [InvalidArgument("k", "at least 1", 0), InvalidData("a"), NotUsable("b"), NotWritable("c")]
)
def test_errors_survive_the_way_home_from_a_worker_process(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("colums", ["columns", "filter"], " (did you mean 'columns'?)"),
        ("zzz", ["columns", "filter"], ""),
        ("", ["columns"], ""),
        ("columns", [], ""),
        ("c" * 100_000, ["columns"], ""),
    ],
)
def test_suggestions(word, known, hint):
    assert suggest(word, known) == hint


def test_known_words_may_be_a_generator():
    assert suggest("tets", (word for word in ["test", "train"])) == " (did you mean 'test'?)"
