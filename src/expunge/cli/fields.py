"""From a settings class to command-line options, and back: file, then `--set`, then options; the later wins."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from expunge.cli.complete import names_of
from expunge.cli.faults import Interrupted
from expunge.cli.jobs import NESTED
from expunge.core.errors import UsageError, nearest
from expunge.core.options import OptionInfo, build, describe, label_of, option_names
from expunge.methods import METHODS

J = TypeVar("J")
_COMPLETE = {"model": "models", "method": "methods", "data": "datasets", "metrics": "metrics"}
_SHORT = {"options": ("--set", "-s"), "model_options": ("--model-set",), "data_options": ("--data-set",)}


Inner = Callable[[Mapping[str, Any]], type]


def job_command(
    app: typer.Typer, cls: type[J], *, inner: Inner | None = None, other: tuple[str, type] | None = None, **kwargs: Any
) -> Callable[[Callable[[J], None]], Callable[..., None]]:
    """Register `function(job)` as a command whose options are the fields of `cls`, plus `--config`.

    Unknown `--name value` pairs are kept: they are options of the method or the recipe and validated there.
    inner: the class of these options, from the other settings; a file may name them without the block `options`, too.
    other: (option, class): where that option is given, the settings are those of the other class, whose fields `cls`
    has, too.
    """
    passes = any(f.name == "options" for f in dataclasses.fields(cls))  # type: ignore[arg-type]

    def decorate(function: Callable[[J], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            context: typer.Context = values.pop("context")
            config = values.pop("config")
            job = assemble(_class_of(cls, other, values, config), values, config, context.args, inner)
            try:
                function(job)
            except UsageError as error:
                raise located(error, config, cls) from None
            except KeyboardInterrupt:
                folder = getattr(job, "out", None)
                where = f"finished work is kept in {folder}; " if folder else ""
                raise Interrupted(f"interrupted; {where}run the same command again to go on.") from None

        parameters = [_keyword("context", typer.Context), *_parameters(cls)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = function.__doc__
        settings = {"ignore_unknown_options": passes, "allow_extra_args": passes}
        app.command(label_of(cls), context_settings=settings, **kwargs)(command)
        return command

    return decorate


def _class_of(cls: type[J], other: tuple[str, type] | None, typed: Mapping[str, Any], config: Path | None) -> type[J]:
    """`cls`, or the other class where its option is given. `UsageError` for options that do not go with that one."""
    filed = {} if other is None or config is None else read_yaml(config)
    if other is None or (typed.get(other[0]) is None and filed.get(other[0]) is None):
        return cls
    known = set(option_names(other[1]))
    stray = next(
        (name for name, value in typed.items() if value is not None and value != [] and name not in known), None
    )
    if stray is not None:
        raise UsageError(
            f"--{stray.replace('_', '-')} does not go with --{other[0]}, which takes model, data and requests from the "
            "workspace; leave it out."
        )
    return other[1]


def assemble(
    cls: type[J], given_values: Mapping[str, Any], config: Path | None, extra: Sequence[str], inner: Inner | None = None
) -> J:
    """One validated job. Raises `UsageError` that names the option, and the file if the value stands there."""
    typed = {name: value for name, value in given_values.items() if value is not None and name not in NESTED}
    filed = read_settings(config, cls, typed, inner) if config is not None else {}
    values: dict[str, Any] = {**filed, **typed}
    if isinstance(metrics := values.get("metrics"), (str, list)):  # `--metrics a,b`, `--metrics a --metrics b`
        texts = [metrics] if isinstance(metrics, str) else metrics
        values["metrics"] = [name.strip() for text in texts for name in str(text).split(",") if name.strip()]
    if isinstance(values.get("method"), str):
        values["method"] = METHODS.named(values["method"])
    for name in NESTED:
        pairs = dict(pair(text) for text in given_values.get(name) or ())
        if name == "options":
            pairs |= passed_through(extra)
            _check_misspelt(cls, pairs, values, inner)
        if pairs:
            values[name] = {**(filed.get(name) or {}), **pairs}
    try:
        return build(cls, values)
    except UsageError as error:
        guilty = [key for key in filed if key not in typed and f"`{key}`" in str(error)]
        raise UsageError(f"{config}: {error}" if guilty else f"{error}{_hint(error)}") from None


def _check_misspelt(cls: type, loose: Mapping[str, Any], values: Mapping[str, Any], inner: Inner | None) -> None:
    """`UsageError` for an option that is near to one of the command and belongs to no method or recipe.

    It would otherwise be looked for among the options of a method, after complaints about what seems to be missing.
    """
    try:
        known = option_names(inner(values)) if inner is not None else []
    except UsageError:  # no method is named
        known = []
    own = [name for name in option_names(cls) if name not in NESTED]
    for name in loose:
        if name not in known and difflib.get_close_matches(name, own, n=1, cutoff=0.75):
            raise UsageError(f"{label_of(cls)} has no option `{name}`; {nearest(name, [*own, *known])}.")


def located(error: UsageError, config: Path | None, cls: type) -> UsageError:
    """The error with the file in front, if it is about a method option that stands in the file."""
    filed = read_yaml(config) if config is not None else {}
    block = filed.get("options")
    if isinstance(block, dict) and any(f"`{key}`" in str(error) for key in block):
        return type(error)(f"{config}: options: {error}")
    loose = {key.replace("-", "_") for key in filed}.difference(option_names(cls))
    return type(error)(f"{config}: {error}") if any(f"`{key}`" in str(error) for key in loose) else error


def _hint(error: UsageError) -> str:
    return " Give it as an option or in a file with --config." if "was not given" in str(error) else ""


def read_settings(path: Path, cls: type, typed: Mapping[str, Any], inner: Inner | None = None) -> dict[str, Any]:
    """The keys of a YAML file, checked against the fields of `cls`; dashes count as underscores.

    typed: what stands on the command line. Keys of the inner class are moved into the block `options`.
    """
    values = {key.replace("-", "_"): value for key, value in read_yaml(path).items()}
    for name in NESTED:
        if not isinstance(values.get(name) or {}, dict):
            raise UsageError(f"{path}: `{name}` must be a block of name: value lines, got {values[name]!r}.")
    loose = [key for key in values if key not in option_names(cls)]
    names = option_names(inner({**values, **typed})) if loose and inner is not None else []
    for key in loose:
        if key not in names:
            allowed = [*option_names(cls), *names]
            raise UsageError(f"{path}: {label_of(cls)} has no option `{key}`; {nearest(key, allowed)}.")
    if loose:
        values["options"] = {**{key: values.pop(key) for key in loose}, **(values.get("options") or {})}
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping with text keys; `UsageError` with the line if it cannot be read."""
    from expunge.core import yaml_text

    try:
        return yaml_text.read_yaml(path)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give a YAML file with the names of `--help`.") from None


def pair(text: str, option: str = "--set") -> tuple[str, str]:
    """`name=value` behind an option, with dashes of the name as underscores."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        example = "mode=RGB" if option == "--data-set" else "lr=0.01"
        raise UsageError(f"expected name=value after {option}, got `{text}`; e.g. {option} {example}.")
    return name.strip().replace("-", "_"), value


def passed_through(extra: Sequence[str]) -> dict[str, str]:
    """`--alpha 0.1 --rewind --clip=3` as a mapping; a name without a value means true, `--no-name` false.

    >>> passed_through(["--alpha", "0.1", "--rewind", "--clip=-3"])
    {'alpha': '0.1', 'rewind': 'true', 'clip': '-3'}
    """
    values: dict[str, str] = {}
    rest = list(extra)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or len(token) == 2:
            raise UsageError(f"unexpected argument `{token}`; options are written --name value.")
        name, equals, value = token[2:].partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        elif not equals:
            name, value = (name[3:], "false") if name.startswith("no-") else (name, "true")
        values[name.replace("-", "_")] = value
    return values


def typed_options(cls: type, values: Mapping[str, Any], *, commands: Sequence[str] = ()) -> dict[str, Any]:
    """Text from the command line in the shape `cls` expects: lists split at commas, `none` where it is allowed.

    commands: options of the command itself, so that a misspelt `--seeed` finds its neighbour among them too.
    """
    rows = {row.name: row for row in describe(cls)}
    for name in values:
        if name not in rows:
            raise UsageError(f"{label_of(cls)} has no option `{name}`; {nearest(name, [*rows, *commands])}.")
    return {name: _shaped(rows[name], value) for name, value in values.items()}


def _shaped(row: OptionInfo, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    kinds = row.type.split(" or ")
    if "null" in kinds and value.lower() in ("none", "null"):
        return None
    if any(kind.startswith(("list", "array")) for kind in kinds):
        return [part.strip() for part in value.strip("[]()").split(",") if part.strip()]
    return value


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    required = annotation is typer.Context
    default = inspect.Parameter.empty if required else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameters(cls: type) -> list[inspect.Parameter]:
    hints = get_type_hints(cls)
    parameters = [_parameter(row, hints[row.name]) for row in describe(cls)]
    help_text = "YAML file with the same names; what stands on the command line wins"
    config = Annotated[Path | None, typer.Option("--config", help=help_text, show_default=False)]
    return [*parameters, _keyword("config", config)]


def _parameter(row: OptionInfo, hint: Any) -> inspect.Parameter:
    dashed = row.name.replace("_", "-")
    required = row.default == "required"
    plain = required or row.default is None or row.default is False or row.default == {}
    note = " [required]" if required else "" if plain else f" [default: {row.default}]"
    kind, declared = _kind(hint), [f"--{dashed}"]
    if row.name in NESTED:
        kind, declared = list[str], list(_SHORT[row.name])
    elif kind is bool:
        declared = [f"--{dashed}/--no-{dashed}"] if row.default else [f"--{dashed}"]
    complete = names_of(_COMPLETE[row.name]) if row.name in _COMPLETE else None
    option = typer.Option(
        *declared,
        help=f"{row.description}{note}",
        show_default=False,
        autocompletion=complete,
        metavar=_metavar(row, kind),
    )
    return _keyword(row.name, Annotated[kind | None, option])


def _metavar(row: OptionInfo, kind: Any) -> str | None:
    if row.name in NESTED:
        return "NAME=VALUE"
    if kind in (bool, Path):
        return None
    type_names = {"integer": "INT", "number": "FLOAT", "string": "TEXT", "list of string": "NAME"}
    first = row.type.split(" or ")[0]
    return type_names.get(first, first.replace(" ", ""))


def _kind(hint: Any) -> Any:
    """What the parser checks itself: paths and flags (for completion); the rest is text that the class validates."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    return hint if hint in (bool, Path) or hint == list[str] else str
