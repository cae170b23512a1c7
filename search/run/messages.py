"""Messages for errors in a configuration, one line each, with the fault, the value and a remedy where one is known."""

import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from ...spaces.nearest import nearest


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return a message of one line for the first validation error.

    For an unknown key the message suggests the nearest known key.

    Args:
        error: error that pydantic raised.
        model: configuration model that was validated.
    """
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(_keys(path, model))
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {path[-1]!r}; {nearest(path[-1], _fields(model, path[:-1]))}"
    if first["type"] == "missing":
        return f"{where} is missing; give it in the configuration or with --set {where}=VALUE"
    if first["type"] == "union_tag_not_found":
        return f"{where} has no key {first['ctx']['discriminator']}; add it"
    if first["type"] == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in first["ctx"]["expected_tags"].split(",")]
        name, tag = first["ctx"]["discriminator"].strip("'"), first["ctx"]["tag"]
        return f"{where}: unknown {name} {tag!r}; {nearest(tag, tags)}"
    message = first["msg"].removeprefix("Value error, ")
    plain = first["input"] is None or isinstance(first["input"], str | int | float)
    got = f" (got {first['input']!r})" if plain else ""
    return f"{where}: {message}{got}" if where else message


def _keys(path: list[str], model: type[BaseModel]) -> list[str]:
    """Return `path` without the tags of union alternatives that pydantic inserts, which are no keys of the file."""
    behind = [i > 0 and (path[i - 1].isdigit() or path[i - 1] == "workers") for i in range(len(path))]
    return [part for i, part in enumerate(path) if not (behind[i] and _is_tag(part, model))]


def _is_tag(part: str, model: type[BaseModel]) -> bool:
    inner = [m for field in model.model_fields.values() for m in _models(field.annotation)]
    return any(part in _tags(m) for m in inner)


def _fields(model: type[BaseModel], path: list[str]) -> set[str]:
    """Return the names of the keys that a configuration may have at `path`."""
    candidates: list[Any] = [model]
    for part in path:
        found: list[Any] = []
        for candidate in candidates:
            if part in candidate.model_fields:
                found += _models(candidate.model_fields[part].annotation)
        tagged = [m for m in candidates if part in _tags(m)]
        candidates = found or tagged or candidates
    return {name for candidate in candidates for name in candidate.model_fields}


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("method") or model.model_fields.get("kind")
    return typing.get_args(field.annotation) if field else ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the configuration models inside a type annotation (unions, sequences, annotated types)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []
