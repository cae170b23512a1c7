"""Writes the pages that are made from the code: every key of a configuration, every command."""

import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

sys.path.insert(0, str(Path(__file__).parents[1]))

from paretopress.commands import app
from paretopress.search.run.configuration import RunConfig
from paretopress.search.run.method_registry import METHODS


def configuration_page() -> str:
    """Every key with its type, default and meaning, one section for each mapping."""
    parts = [
        "# Configuration",
        "A configuration is a YAML file with these keys; `--set key.inner=value` overrides any of them. "
        "Unknown keys are refused with the nearest match.",
    ]
    for path, model in sections("", RunConfig):
        parts += [f"## {path or 'Top level'}", summary(model), table(model)]
    parts.append("## search\nOne of these methods, or a list of them that run in turn.")
    for name, method in METHODS.items():
        parts += [f"### {name}", f"{method.summary}.", table(method)]
    return "\n\n".join(parts) + "\n"


def sections(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The model at a dotted path and the models of its keys, methods left out."""
    yield path, model
    for name, field in model.model_fields.items():
        if name != "search":
            for inner in models(field.annotation):
                yield from sections(f"{path}.{name}".lstrip("."), inner)


def models(annotation: Any) -> list[type[BaseModel]]:
    """The configuration models inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models(part)]


def summary(model: type[BaseModel]) -> str:
    """The first paragraph of a model's docstring."""
    return inspect.cleandoc(model.__doc__ or "").split("\n\n")[0]


def table(model: type[BaseModel]) -> str:
    """The keys of one mapping as a table."""
    meanings = attributes(model)
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        default = "required" if field.default is PydanticUndefined else f"`{shown(field.default)}`"
        rows.append(f"| `{name}` | {default} | {meanings.get(name, '')} |")
    return "\n".join(rows)


def shown(default: Any) -> str:
    """A default as a file would have it; a mapping's own keys stand in its section."""
    if isinstance(default, BaseModel):
        return "{...}"
    if isinstance(default, tuple) and default and isinstance(default[0], BaseModel):
        return getattr(default[0], "method", "...")
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def attributes(model: type[BaseModel]) -> dict[str, str]:
    """Name to meaning, from the section `Attributes` of the docstring."""
    text = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"    (\w+): (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif found and line.startswith("        "):
            found[name] += f" {line.strip()}"
    return {name: meaning.replace("|", "\\|") for name, meaning in found.items()}


def commands_page() -> str:
    """Every command with its arguments and options, from the command line itself."""
    group = typer.main.get_command(app)
    parts = ["# Commands", "`paretopress COMMAND --help` prints the same."]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if command.hidden:
            continue
        parts += [f"## {name}", command.help or ""]
        rows = ["| | |", "| --- | --- |"]
        for parameter in command.params:
            names = (
                ", ".join(parameter.opts)
                if parameter.param_type_name == "option"
                else (parameter.name or "").upper()
            )
            meaning = (getattr(parameter, "help", None) or "").replace("|", "\\|")
            rows.append(f"| `{names}` | {meaning} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


for page, make in (("configuration.md", configuration_page), ("commands.md", commands_page)):
    with mkdocs_gen_files.open(f"reference/{page}", "w") as file:
        file.write(make())
