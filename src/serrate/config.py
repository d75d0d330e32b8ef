"""Typed configuration: every part owns its `Config`, unknown keys are refused with a suggestion.

A configuration is written as YAML (recipes) or JSON (saved runs), changed on the command line as
`key.path=value`, and frozen once it is built.
"""

import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InvalidConfig, shorten, suggest


class Config(BaseModel):
    """Base of every configuration: frozen, strict about keys, one-line errors that name the key."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Build from plain values; raise `InvalidConfig` naming the first key that is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidConfig(f"config: {_explain(cls, error)}") from None

    def plain(self) -> dict[str, Any]:
        """Return nested plain values (JSON types), complete: defaults included."""
        return self.model_dump(mode="json")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raise `InvalidConfig` when the file is missing, malformed or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InvalidConfig(f"config: cannot read {path} ({reason})") from None
    values = _load(text, str(path))
    if not isinstance(values, dict):
        got = "nothing" if values is None else shorten(repr(values))
        raise InvalidConfig(f"config: {path} must hold a mapping of keys to values, got {got}")
    return values


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Return `values` with `key.path=value` assignments applied, each value read as YAML.

    Raises `InvalidConfig` when an assignment cannot be read, or its path goes through something without keys.
    """
    changed = dict(values)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip()
        keys = path.split(".")
        if not equals or not all(keys):
            raise InvalidConfig(f"config: expected key.path=value, got {shorten(repr(assignment))}")
        changed = _set(changed, keys, _load(text, f"the value of {shorten(path)!r}"), path)
    return changed


def _set(values: Any, keys: list[str], value: Any, path: str) -> Any:
    if not keys:
        return value
    if values is None:  # a part that was left out
        values = {}
    if not isinstance(values, dict):
        raise InvalidConfig(f"config: {shorten(path)!r} goes through {_brief(values)}, which has no keys")
    return {**values, keys[0]: _set(values.get(keys[0]), keys[1:], value, path)}


class _PlainLoader(yaml.SafeLoader):
    """Reads the types of JSON: dates stay text, `1e-3` is a number, a key that is given twice is refused."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class's own way
        first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":timestamp", ":value"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice",
                                               problem_mark=key.start_mark)
                seen.add(key.value)
        return node


_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _load(text: str, what: str) -> Any:
    """Return the plain values of a YAML text; raise `InvalidConfig` saying that `what` is not valid YAML."""
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.MarkedYAMLError as error:
        where = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = error.problem or error.context
    except yaml.YAMLError:
        where, reason = "", "it holds characters that YAML has no place for"
    except RecursionError:
        where, reason = "", "nested too deeply"
    except ValueError as error:  # a number that Python cannot hold, a tag that does not fit
        where, reason = "", str(error)
    raise InvalidConfig(f"config: {what} is not valid YAML{where} ({shorten(reason)})")


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    """Return one line on the first thing wrong: the key as the person wrote it, the expected and the got."""
    first, *others = error.errors(include_url=False)
    path, known = _trace(cls, first["loc"])
    context = first.get("ctx", {})
    alike = [other for other in others if _trace(cls, other["loc"])[0] == path]  # what else a union would have taken
    others = len(others) - len(alike)
    more = f" (and {others} more)" if others else ""
    if "discriminator" in context:
        path.append(_bare(context["discriminator"]))
    key = ".".join(path)
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key {shorten(key)!r}{suggest(path[-1], known)}{more}"
        case "missing" | "union_tag_not_found":
            return f"missing key {shorten(key)!r}{more}"
        case "union_tag_invalid":
            tag, tags = context["tag"], context["expected_tags"]
            hint = suggest(tag, map(_bare, tags.split(", ")))
            reason = f"expected one of {tags}, got {shorten(repr(tag))}{hint}"
        case "model_type" | "model_attributes_type" | "dict_type":
            reason = f"expected keys and values, got {_brief(first['input'])}"
        case "value_error" | "assertion_error":  # the words of one of our own validators
            whole = isinstance(first["input"], Mapping | BaseModel)
            reason = shorten(context["error"]) + ("" if whole else f", got {_brief(first['input'])}")
        case _:
            expected = first["msg"].replace("Input should be ", "expected ").split(", unable to parse")[0]
            expected += "".join(f", or {other['msg'].removeprefix('Input should be ')}" for other in alike)
            named = re.findall(r"'([^']+)'", expected)  # of a literal
            hint = suggest(first["input"], named) if isinstance(first["input"], str) else ""
            reason = f"{expected}, got {_brief(first['input'])}{hint}"
    return f"{shorten(key)}: {reason}{more}" if key else f"{reason}{more}"


def _trace(annotation: Any, location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """Return the keys that lead to `location`, and the keys that are known where its last one stands.

    Pydantic adds the member that it chose from a union (its tag or its type); no person wrote that, so it is
    left out.
    """
    path: list[str] = []
    known: list[str] = []
    for part in location:
        members = _members(annotation)
        if len(members) > 1:
            annotation = next((member for member in members if _answers_to(member, part)), Any)
            continue
        fields = getattr(members[0], "model_fields", None)
        path.append(str(part))
        known = sorted(fields or [])
        if fields is None:  # a list or a mapping: what it holds comes last
            annotation = ([Any] + [held for held in typing.get_args(members[0]) if held is not ...])[-1]
        else:
            annotation = fields[part].annotation if part in fields else Any
    return path, known


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union (None aside), or what is no union as the only one."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _members(inner[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in inner if part is not type(None) for member in _members(part)]
    return [annotation]


def _answers_to(member: Any, name: int | str) -> bool:
    """Whether pydantic calls this member of a union `name`: by its class, or by the tag that it carries."""
    fields = getattr(member, "model_fields", {}).values()
    tags = [tag for field in fields for tag in typing.get_args(field.annotation)]
    return name == getattr(member, "__name__", None) or name in tags


def _bare(quoted: str) -> str:
    return quoted.strip("'")


def _brief(value: Any) -> str:
    return shorten(value) if isinstance(value, list | tuple | dict | set) else shorten(repr(value))
