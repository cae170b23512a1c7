"""Validation errors of the configuration as one clear line: fact, value, remedy."""

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where something is close, then the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first validation error in one line; unknown keys are answered with the nearest match."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {path[-1]!r}; {nearest(path[-1], _fields(model, path[:-1]))}"
    if first["type"] == "missing":
        return f"{where} is missing; give it in the configuration or with --set {where}=VALUE"
    if first["type"] in ("union_tag_invalid", "literal_error"):
        return f"{where}: {first['msg']} (got {first['input']!r})"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (got {first['input']!r})" if where else message


def _fields(model: type[BaseModel], path: list[str]) -> set[str]:
    """Names of the keys that exist at `path`."""
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
    field = model.model_fields.get("method")
    return typing.get_args(field.annotation) if field else ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Configuration models inside an annotation (unions, sequences, annotated types)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []
