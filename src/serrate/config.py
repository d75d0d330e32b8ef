"""Typed configuration: every part owns its `Config`, unknown keys are refused with a suggestion.

A configuration is written as YAML (recipes) or JSON (saved runs), changed on the command line as `key.path=value`,
and frozen once it is built.
"""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InvalidConfig, suggest


class Config(BaseModel):
    """Base of every configuration: frozen, strict about keys, one-line errors that name the key."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Build from plain values; raise `InvalidConfig` naming the first key that is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidConfig(_one_line(cls, error)) from None

    def plain(self) -> dict[str, Any]:
        """Return nested plain values (JSON types), complete: defaults included."""
        return self.model_dump(mode="json")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raise `InvalidConfig` when the file is missing, malformed or not a mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InvalidConfig(f"config: cannot read {path} ({reason})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise InvalidConfig(f"config: {path} is not valid YAML{where}") from None
    if not isinstance(values, dict):
        raise InvalidConfig(f"config: {path} must hold a mapping of keys to values, got {type(values).__name__}")
    return values


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Return `values` with `key.path=value` assignments applied; values are read as YAML scalars."""
    changed = dict(values)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise InvalidConfig(f"config: expected key.path=value, got {assignment!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InvalidConfig(f"config: the value of {path!r} is not valid YAML: {text!r}") from None
        changed = _set(changed, path.split("."), value, path)
    return changed


def _set(values: Any, keys: list[str], value: Any, path: str) -> Any:
    if not keys:
        return value
    if not isinstance(values, dict):
        raise InvalidConfig(f"config: {path!r} goes through {values!r}, which has no keys")
    return {**values, keys[0]: _set(values.get(keys[0], {}), keys[1:], value, path)}


def _one_line(cls: type[BaseModel], error: ValidationError) -> str:
    first, *others = error.errors(include_url=False)
    path = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(cls, first["loc"][:-1])
        return f"config: unknown key {path!r}{suggest(str(first['loc'][-1]), known)}{more}"
    if first["type"] == "missing":
        return f"config: missing key {path!r}{more}"
    return f"config: {path or cls.__name__}: {first['msg']}, got {first['input']!r}{more}"


def _keys_at(cls: Any, location: tuple[int | str, ...]) -> list[str]:
    """Return the known keys of the (possibly nested, possibly tagged-union) config that `location` leads to."""
    candidates: list[Any] = [cls]
    for part in location:
        step: list[Any] = []
        for candidate in candidates:
            fields = getattr(candidate, "model_fields", {})
            if part in fields:
                step += _config_classes(fields[part].annotation)
        candidates = step or candidates  # the tag of a union is a location of its own
    return sorted({key for candidate in candidates for key in candidate.model_fields})


def _config_classes(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _config_classes(part)]
