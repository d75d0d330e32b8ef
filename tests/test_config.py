import json
import string
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator, model_validator

from serrate.config import Config, override, read_yaml
from serrate.errors import InvalidConfig


class Columns(Config):
    user: str = "user"
    item: str = "item"


class FullSoftmax(Config):
    kind: Literal["full-softmax"] = "full-softmax"


class SampledSoftmax(Config):
    kind: Literal["sampled-softmax"]
    negatives: int = Field(128, ge=1)
    temperature: float = 1.0


class Item(Config):
    path: str


class Whole(Config):
    name: str
    columns: Columns = Columns()
    items: Item | None = None
    loss: Annotated[FullSoftmax | SampledSoftmax, Field(discriminator="kind")] = FullSoftmax()
    losses: tuple[Annotated[FullSoftmax | SampledSoftmax, Field(discriminator="kind")], ...] = ()
    tables: dict[str, Item] = Field(default_factory=dict)
    limit: int | Columns | None = None
    divisor: Annotated[float, Field(gt=0)] | Literal["length", "none"] | None = None
    cutoffs: tuple[int, ...] = (10, 50)
    learning_rate: float = Field(1e-3, gt=0)

    @field_validator("name")
    @classmethod
    def _not_blank(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("expected a name\nthat is not blank")
        return name

    @model_validator(mode="after")
    def _pair(self) -> "Whole":
        if self.name == "pair" and len(self.cutoffs) != 2:
            raise ValueError("a pair has two cutoffs")
        return self


def refusal(call) -> str:
    with pytest.raises(InvalidConfig) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 400
    assert "pydantic" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colums": {}}, "config: unknown key 'colums' (did you mean 'columns'?)"),
        ({"zzz": 1}, "config: unknown key 'zzz'"),
        ({"columns": {"usr": "u"}}, "config: unknown key 'columns.usr' (did you mean 'user'?)"),
        ({"items": {"path": "x", "pth": "y"}}, "config: unknown key 'items.pth' (did you mean 'path'?)"),
        ({"tables": {"a": {"pat": 1}}}, "config: missing key 'tables.a.path' (and 1 more)"),
        # A tagged union: the tag is no part of the path, and only the chosen member's keys are suggested.
        (
            {"loss": {"kind": "sampled-softmax", "temprature": 2}},
            "config: unknown key 'loss.temprature' (did you mean 'temperature'?)",
        ),
        ({"loss": {"kind": "full-softmax", "temprature": 2}}, "config: unknown key 'loss.temprature'"),
        (
            {"losses": [{"kind": "full-softmax"}, {"kind": "sampled-softmax", "negative": 2}]},
            "config: unknown key 'losses.1.negative' (did you mean 'negatives'?)",
        ),
        (
            {"loss": {"kind": "sampled-sotfmax"}},
            "config: loss.kind: expected one of 'full-softmax', 'sampled-softmax', got 'sampled-sotfmax' "
            "(did you mean 'sampled-softmax'?)",
        ),
        ({"loss": {"temperature": 2}}, "config: missing key 'loss.kind'"),
        ({"items": {}}, "config: missing key 'items.path'"),
        ({"learning_rate": 0}, "config: learning_rate: expected greater than 0, got 0"),
        ({"learning_rate": float("nan")}, "config: learning_rate: expected a finite number, got nan"),
        (
            {"loss": {"kind": "sampled-softmax", "negatives": 0}},
            "config: loss.negatives: expected greater than or equal to 1, got 0",
        ),
        # A plain union: whatever it would have taken, as one thing that is wrong.
        ({"divisor": 0}, "config: divisor: expected greater than 0, or 'length' or 'none', got 0"),
        ({"divisor": "lenght"}, "config: divisor: expected a valid number, or 'length' or 'none', got 'lenght' "
         "(did you mean 'length'?)"),
        ({"divisor": 0, "a": 1},
         "config: divisor: expected greater than 0, or 'length' or 'none', got 0 (and 1 more)"),
        ({"cutoffs": [10, "x"]}, "config: cutoffs.1: expected a valid integer, got 'x'"),
        ({"columns": "user"}, "config: columns: expected keys and values, got 'user'"),
        ({"columns": None}, "config: columns: expected keys and values, got None"),
        ({"name": " "}, "config: name: expected a name that is not blank, got ' '"),
        ({"name": "pair", "cutoffs": [1]}, "config: a pair has two cutoffs"),
        ({"a": 1, "b": 2, "c": 3}, "config: unknown key 'a' (and 2 more)"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(changes, message):
    got = refusal(lambda: Whole.parse({"name": "x", **changes}))
    assert got == message


def test_a_missing_key_is_named():
    assert refusal(lambda: Whole.parse({})) == "config: missing key 'name'"


def test_a_union_without_a_tag_still_names_the_key():
    got = refusal(lambda: Whole.parse({"name": "x", "limit": {"usr": 1}}))
    assert got.startswith("config: limit: ")


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_values_that_are_no_mapping_are_refused(values):
    assert refusal(lambda: Whole.parse(values)).startswith("config: expected keys and values, got ")


def test_keys_that_are_no_text_are_refused():
    assert "1" in refusal(lambda: Whole.parse({"name": "x", 1: 2}))


@pytest.mark.parametrize(
    "value",
    ["line\n" * 1000, ["x"] * 10_000, {"a": {"b": "c" * 5000}}, b"\x00" * 3000, "\x1b[31m"],
    ids=["lines", "list", "mapping", "bytes", "escape"],
)
@pytest.mark.parametrize("key", ["learning_rate", "cutoffs", "loss", "columns", "unheard of", "limit"])
def test_a_long_or_odd_value_stays_one_short_line(key, value):
    refusal(lambda: Whole.parse({"name": "x", key: value}))


def test_a_long_key_stays_one_short_line():
    refusal(lambda: Whole.parse({"name": "x", "k" * 10_000: 1}))
    refusal(lambda: Whole.parse({"name": "x", "line\n" * 100: 1}))


def test_a_value_that_holds_itself_is_refused():
    endless: dict = {}
    endless["columns"] = endless
    refusal(lambda: Whole.parse({"name": "x", **endless}))


def test_configs_are_frozen_and_compare_by_value():
    config = Whole.parse({"name": "x"})
    assert config == Whole(name="x")
    with pytest.raises(ValueError, match="frozen"):
        config.name = "y"


def test_plain_values_are_complete_and_come_back_through_json():
    config = Whole.parse(
        {"name": "x", "loss": {"kind": "sampled-softmax"}, "losses": [{"kind": "full-softmax"}], "limit": 3}
    )
    plain = json.loads(json.dumps(config.plain()))
    assert plain["loss"] == {"kind": "sampled-softmax", "negatives": 128, "temperature": 1.0}
    assert plain["columns"] == {"user": "user", "item": "item"}
    assert Whole.parse(plain) == config


def read(tmp_path: Path, content: str | bytes):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_yaml(path)


def test_yaml_is_read_as_plain_values(tmp_path):
    text = "a: 1e-3\nb: 1e5\nc: 2001-02-03\nd: [1, 2.5, .5e1]\ne: ~\nf: {g: true}\nh: '1e-3'\ni: 1.5E+2\n"
    values = {"a": 0.001, "b": 100000.0, "c": "2001-02-03", "d": [1, 2.5, 5.0], "e": None, "f": {"g": True}}
    assert read(tmp_path, text) == {**values, "h": "1e-3", "i": 150.0}


def test_aliases_and_merges_work(tmp_path):
    text = "a: &x {b: 1}\nc: *x\nd: &y {<<: *x, b: 2}\ne: {<<: *y, b: 3}\n"
    assert read(tmp_path, text) == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 2}, "e": {"b": 3}}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a: [1, 2\nb: 3\n", "is not valid YAML at line 2"),
        ("a: b: c\n", "is not valid YAML at line 1"),
        ("a: 1\nb:\n  c: 2\nb: 3\n", "at line 4 (key 'b' is given twice)"),
        ("a:\n  b: 1\n  b: 1\n", "at line 3 (key 'b' is given twice)"),
        ("? [1, 2]\n: x\n", "is not valid YAML at line 1"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML"),
        ("a: !!python/object:os.system x\n", "is not valid YAML at line 1"),
        ("a: !!int twelve\n", "is not valid YAML"),
        ("a: " + "[" * 100_000, "is not valid YAML"),
        ("a: " + "9" * 10_000, "is not valid YAML"),
        ("a: \x00\n", "is not valid YAML"),
        (b"a: \xff\xfe", "not UTF-8 text"),
        ("", "must hold a mapping of keys to values, got nothing"),
        ("# only a comment\n", "must hold a mapping of keys to values, got nothing"),
        ("- a\n- b\n", "must hold a mapping of keys to values, got ['a', 'b']"),
        ("just text\n", "must hold a mapping of keys to values, got 'just text'"),
        ("3\n", "must hold a mapping of keys to values, got 3"),
    ],
)
def test_bad_yaml_is_one_line_that_names_the_file(tmp_path, content, part):
    message = refusal(lambda: read(tmp_path, content))
    assert str(tmp_path / "recipe.yaml") in message
    assert part in message


def test_a_missing_file_a_folder_and_an_unreadable_file_are_named(tmp_path, monkeypatch):
    assert "No such file" in refusal(lambda: read_yaml(tmp_path / "none.yaml"))
    assert "Is a directory" in refusal(lambda: read_yaml(tmp_path))

    def denied(self: Path, **_) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", denied)
    assert "Permission denied" in refusal(lambda: read_yaml(tmp_path / "secret.yaml"))


@pytest.mark.parametrize(
    ("values", "assignment", "expected"),
    [
        ({}, "a=1", {"a": 1}),
        ({"a": 1}, "a=two", {"a": "two"}),
        ({}, "a.b.c=1", {"a": {"b": {"c": 1}}}),
        ({"a": {"b": 1, "c": 2}}, "a.b=3", {"a": {"b": 3, "c": 2}}),
        ({"a": None}, "a.b=3", {"a": {"b": 3}}),  # an optional part that was left out
        ({}, "filter=rating>=4", {"filter": "rating>=4"}),
        ({}, "a==", {"a": "="}),
        ({}, "a=", {"a": None}),
        ({}, "a=null", {"a": None}),
        ({}, "a=''", {"a": ""}),
        ({}, "a='12'", {"a": "12"}),
        ({}, "a=1e-3", {"a": 0.001}),
        ({}, "a=2001-02-03", {"a": "2001-02-03"}),
        ({}, "a=[10, 50]", {"a": [10, 50]}),
        ({}, "a={b: 1}", {"a": {"b": 1}}),
        ({}, " a.b = 1 ", {"a": {"b": 1}}),
        ({"a": 1}, "a={b: 1}", {"a": {"b": 1}}),
    ],
)
def test_an_assignment_sets_one_key(values, assignment, expected):
    before = json.dumps(values)
    assert override(values, [assignment]) == expected
    assert json.dumps(values) == before  # the given values are left alone


def test_later_assignments_win_and_none_change_nothing():
    assert override({"a": 1}, []) == {"a": 1}
    assert override({}, ["a.b=1", "a.c=2", "a.b=3"]) == {"a": {"b": 3, "c": 2}}


def test_parts_that_share_an_alias_are_changed_apart():
    shared = {"x": 1}
    assert override({"a": shared, "b": shared}, ["a.x=2"]) == {"a": {"x": 2}, "b": {"x": 1}}


@pytest.mark.parametrize(
    ("values", "assignment", "part"),
    [
        ({}, "a", "expected key.path=value, got 'a'"),
        ({}, "", "expected key.path=value, got ''"),
        ({}, "=1", "expected key.path=value, got '=1'"),
        ({}, ".a=1", "expected key.path=value"),
        ({}, "a.=1", "expected key.path=value"),
        ({}, "a..b=1", "expected key.path=value"),
        ({}, " =1", "expected key.path=value"),
        ({"a": 1}, "a.b=2", "'a.b' goes through 1, which has no keys"),
        ({"a": ["x"]}, "a.0=2", "'a.0' goes through ['x'], which has no keys"),
        ({"a": "x" * 9999}, "a.b=2", "which has no keys"),
        ({}, "a=[1", "the value of 'a' is not valid YAML at line 1"),
        ({}, "a={b: 1, b: 2}", "key 'b' is given twice"),
        ({}, "a=" + "[" * 9999, "not valid YAML"),
        ({}, "a\nb", "expected key.path=value"),
        ({}, "a" * 9999, "expected key.path=value"),
    ],
)
def test_a_bad_assignment_is_refused_in_one_line(values, assignment, part):
    assert part in refusal(lambda: override(values, [assignment]))


@given(st.text(max_size=40))
def test_an_assignment_is_applied_or_refused_never_anything_else(text):
    try:
        changed = override({"a": {"b": 1}}, [text])
    except InvalidConfig as error:
        message = str(error)
    else:
        assert isinstance(changed, dict)
        message = ""
    assert message.isprintable()


KEYS = st.text("abc", min_size=1, max_size=3)
PLAIN = st.none() | st.booleans() | st.integers(-9, 9) | st.text(string.printable, max_size=5)


@given(st.lists(KEYS, min_size=1, max_size=4), PLAIN)
def test_an_assignment_of_any_depth_reads_back(keys, value):
    changed = override({}, [f"{'.'.join(keys)}={json.dumps(value)}"])
    for key in keys:
        changed = changed[key]
    assert changed == value
