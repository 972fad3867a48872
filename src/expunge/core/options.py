"""Validated options: frozen dataclasses whose fields are, for example, the hyperparameters of a paper.

The same class is the Python argument, the YAML block and the command-line option. All classes raise `UsageError` with
the same wording for a bad value.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from expunge.core.errors import UsageError, nearest, shorten

T = TypeVar("T")
_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def options(cls: type[T]) -> type[T]:
    """Class decorator: make a class a frozen, keyword-only dataclass validated by pydantic.

    >>> @options
    ... class Demo:
    ...     lr: float = Field(0.1, gt=0, description="learning rate")
    >>> Demo(lr=-1)
    Traceback (most recent call last):
        ...
    expunge.core.errors.UsageError: demo: `lr` should be greater than 0, got -1.
    """
    built = pydantic_dataclass(frozen=True, kw_only=True, config=_CONFIG)(cls)
    for base in built.__mro__:
        for name, value in vars(base).items():
            if isinstance(value, FieldInfo) and name not in option_names(built):
                raise TypeError(f"{base.__name__}.{name} is declared in a base without @options and would be ignored.")
    raw_init = built.__init__

    @functools.wraps(raw_init)
    def init(self: Any, /, **kwargs: Any) -> None:
        try:
            raw_init(self, **kwargs)
        except ValidationError as error:
            raise explain(error, label_of(type(self)), option_names(type(self))) from None
        object.__setattr__(self, "_given", frozenset(kwargs))

    built.__init__ = init  # type: ignore[assignment, method-assign]
    return built  # type: ignore[return-value]


def label_of(cls: type) -> str:
    """The name of a class for users: that of its card, or the class name in lower case."""
    card = cls.__dict__.get("card") or getattr(cls, "card", None)
    return card.name if card is not None else cls.__name__.lower()


def given(instance: Any) -> frozenset[str]:
    """Names of the options that were given when an instance was created; the others have their defaults.

    An instance made by `dataclasses.replace` was given all of them.
    """
    names: frozenset[str] = getattr(instance, "_given", frozenset())
    return names


def option_names(cls: type) -> list[str]:
    """Names of the options of a class."""
    return [f.name for f in dataclasses.fields(cls) if f.init]


def explain(error: ValidationError, label: str, allowed: list[str]) -> UsageError:
    """The errors of pydantic as one `UsageError`; `label` names the class, `allowed` its options."""
    sentences = []
    for item in error.errors(include_url=False):
        path = shorten(".".join(str(part) for part in item["loc"]))
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            sentences.append(f"{label} has no option `{path}`; {nearest(path, allowed)}.")
        elif item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            sentences.append(f"{label}: `{path}` is required and was not given.")
        else:
            message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
            value = shorten(repr(item["input"]))
            sentences.append(f"{label}: `{path}` {message[:1].lower()}{message[1:]}, got {value}.")
    return UsageError(" ".join(sentences))


def build(cls: type[T], values: Mapping[str, Any], label: str | None = None) -> T:
    """Build `cls(**values)` from a mapping (YAML, command line).

    Former names of options (`cls.renamed`, old -> new) are accepted, because results and recipes of earlier versions
    contain them.

    Args:
        cls: a class decorated by `options`.
        values: option -> value.
        label: name of the class in messages.

    Raises:
        UsageError: for unknown options and bad values.
    """
    bad = [key for key in values if not isinstance(key, str)]
    if bad:
        raise UsageError(f"{label or label_of(cls)}: option names must be text, got {bad[0]!r}.")
    former: Mapping[str, str] = getattr(cls, "renamed", {})
    for old in former.keys() & values.keys():
        if former[old] in values:
            raise UsageError(
                f"{label or label_of(cls)}: `{old}` is the former name of `{former[old]}`; give one of them."
            )
    return cls(**{former.get(name, name): value for name, value in values.items()})


def to_dict(instance: Any) -> dict[str, Any]:
    """Options as a dict, ready for JSON."""
    return TypeAdapter(type(instance)).dump_python(instance, mode="json")


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """Description of one option, a row of `expunge show method NAME`."""

    name: str
    type: str
    default: Any
    bounds: str
    description: str


def describe(cls: type) -> list[OptionInfo]:
    """Name, type, default, bounds and description of every option of a class."""
    schema = TypeAdapter(cls).json_schema()
    rows = []
    required = set(schema.get("required", ()))
    for name, item in schema.get("properties", {}).items():
        variants = [v for v in item.get("anyOf", [item])]
        kinds = [_kind(v, schema) for v in variants]
        bounds = [
            f"{sign} {v[key]}"
            for v in variants
            for key, sign in (
                ("minimum", ">="),
                ("exclusiveMinimum", ">"),
                ("maximum", "<="),
                ("exclusiveMaximum", "<"),
            )
            if key in v
        ]
        default = "required" if name in required else item.get("default")
        rows.append(OptionInfo(name, " or ".join(kinds), default, ", ".join(bounds), item.get("description", "")))
    return rows


def _kind(variant: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "enum" in variant:
        return " | ".join(map(str, variant["enum"]))
    if "const" in variant:
        return str(variant["const"])
    if "$ref" in variant:
        return str(variant["$ref"]).rsplit("/", 1)[-1]
    kind = str(variant.get("type", "any"))
    if kind == "array" and "items" in variant:
        return f"list of {_kind(variant['items'], schema)}"
    return kind


__all__ = ["Field", "OptionInfo", "build", "describe", "explain", "given", "options", "pydantic", "to_dict"]
