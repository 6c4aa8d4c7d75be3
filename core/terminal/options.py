"""Options of a verb, derived from its specs' fields: `--rate`, `--n-epochs`, ... with the help and defaults that the forms show."""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from rich.markup import escape

from core.errors import CoreError
from core.specs import Spec


def option_parameters(spec: type[Spec], skip: tuple[str, ...] = (), prefix: str = "") -> list[inspect.Parameter]:
    """One keyword option for each field, its name after `prefix`; None means "not given": a spec file's value is not overridden.

    The help is escaped: rich takes what stands in brackets (a default) for markup and leaves it out.
    """
    made = []
    for name, field in spec.model_fields.items():
        if name in skip:
            continue
        kind = _option_type(field.annotation)
        default = "" if field.is_required() else f" [default: {_short(field.default)}]"
        help_text = f"{field.description}{default}"
        option = f"--{prefix}{name}".replace("_", "-")
        annotation = Annotated[kind | None, typer.Option(option, help=escape(help_text))]  # type: ignore[valid-type]
        made.append(inspect.Parameter(prefix + name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return made


def _option_type(annotation: Any) -> type:
    """bool, int and float are parsed as such; everything else is text (JSON where it is structured)."""
    plain = [arg for arg in get_args(annotation) if arg is not type(None)] if get_origin(annotation) else [annotation]
    if len(plain) == 1 and plain[0] in (bool, int, float):
        return plain[0]
    return str


def _short(value: Any) -> str:
    return str(value.model_dump(exclude_defaults=True) or "sample mspacman") if hasattr(value, "model_dump") else str(value)


def spec_values(spec: type[Spec], given: dict[str, Any], spec_file: Path | None) -> dict[str, Any]:
    """Values for the spec: the file's, overridden by the options that were given."""
    values = _read(spec_file) if spec_file else {}
    for name, value in given.items():
        if value is None:
            continue
        structured = isinstance(value, str) and value.strip().startswith(("{", "["))
        if structured:
            try:
                value = json.loads(value)
            except ValueError as error:
                raise CoreError(f"{name} is no valid JSON: {error}", given=value) from error
        elif isinstance(value, str) and value.lower() in ("null", "none") and name not in ("frozen_part",):
            value = None
        values[name] = value
    if values.get("threshold") is not None and given.get("rate") is None and "rate" in spec.model_fields:
        values["rate"] = None
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise CoreError(f"{path} is no readable spec: {error}", given=str(path), legal="a JSON or TOML file") from error


def with_options(
    function: Callable[..., Any], spec: type[Spec], skip: tuple[str, ...] = (), *, also: dict[str, type[Spec]] | None = None
) -> Callable[..., Any]:
    """Gives `function(..., **options)` a signature with the spec's options in place of `**options`, and those of `also` by prefix."""
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    further = [option for prefix, other in (also or {}).items() for option in option_parameters(other, prefix=prefix)]
    merged = signature.replace(parameters=[*own, *option_parameters(spec, skip), *further], return_annotation=None)

    def call(**values: Any) -> Any:
        return function(**values)

    call.__doc__ = function.__doc__
    call.__name__ = function.__name__
    call.__signature__ = merged  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in merged.parameters.values()}
    return call


COMMON = {"--store": True, "--device": True, "--json": False, "--detach": False, "--no-detach": False}
"""Options that hold for every verb, and whether a value follows."""


def common_first(arguments: Sequence[str]) -> list[str]:
    """The same words with the common options before the verb, where the parser wants them: people write them at the end as well.

    Raises CoreError for one that lacks its value.
    """
    first, rest, words = [], [], iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word.partition("=")[0] in COMMON:
            first.append(word)
            if COMMON.get(word):
                value = next(words, None)
                if value is None:
                    raise CoreError(f"{word} needs a value.", code="usage", next="Add --help to see what is legal.")
                first.append(value)
        else:
            rest.append(word)
    return first + rest
