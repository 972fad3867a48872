"""From a study file to a checked `Study`: YAML, `extends`, overrides, and errors that name the key."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic import ValidationError

from expunge.bench.recipe import DataPart, ModelPart, PretrainPart, Seeds, Study
from expunge.core.errors import UsageError, nearest
from expunge.core.yaml_text import parse_yaml, read_yaml, reason

_PARTS: dict[str, type[pydantic.BaseModel]] = {
    "data": DataPart,
    "model": ModelPart,
    "pretrain": PretrainPart,
    "seeds": Seeds,
}


def load_study(path: str | Path, overrides: Iterable[str] = ()) -> Study:
    """Read a study; `overrides` are `key.subkey=value` strings in YAML syntax.

    Raises `UsageError` naming file and key.
    """
    content, changed = _read(Path(path), ()), list(overrides)
    for text in changed:
        override(content, text)
    study = parse_study(content, str(path))
    written = {} if "extends" in read_yaml(Path(path)) else study.options  # what is inherited may be for other methods
    try:
        study.check_options_used(written)
        study.check_options_used(text.split("=")[0].split(".")[1] for text in changed if text.startswith("options."))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return study


def parse_study(content: Mapping[str, Any], where: str = "study") -> Study:
    """A study from plain mappings and lists, with everything in it checked."""
    try:
        return Study.model_validate(content).checked()
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error, content)}") from None
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def override(content: dict[str, Any], text: str) -> None:
    """Set one value in place: `train.epochs=3`, `seeds=[0, 1]`."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"expected key=value, got `{text}`; for example train.epochs=3.")
    *parents, last = key.strip().split(".")
    place = content
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UsageError(f"`{key}` cannot be set: `{parent}` is not a mapping.")
        place = inner
    try:
        place[last] = parse_yaml(value)
    except yaml.YAMLError as error:
        raise UsageError(f"`{text}` is not valid YAML{reason(error)}.") from None


def _read(path: Path, parents: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in parents:
        raise UsageError(f"{path} extends itself; remove one `extends`.")
    try:
        content = read_yaml(path, "study")
    except FileNotFoundError:
        raise UsageError(f"study {path} does not exist; `expunge reproduce --list` shows the built-in ones.") from None
    parent = content.pop("extends", None)
    if parent is None:
        return content
    return _merge(_read(path.parent / str(parent), (*parents, path.resolve())), content)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged, everything else is replaced."""
    merged = copy.deepcopy(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _explain(error: ValidationError, content: Mapping[str, Any]) -> str:
    """Pydantic's findings, one per place, the deepest ones: a union reports every branch it tried."""
    places: dict[tuple[int | str, ...], str] = {}
    for item in error.errors(include_url=False):
        place = _place(item["loc"], content, keep_last=item["type"] in ("missing", "extra_forbidden"))
        path = _dotted(place)
        if item["type"] == "extra_forbidden":
            fields = _PARTS.get(str(place[0]), Study) if len(place) > 1 else Study
            sentence = f"unknown key `{path}`; {nearest(str(place[-1]), fields.model_fields)}."
        elif item["type"] == "missing":
            sentence = f"`{path}` is required."
        else:
            message = item["msg"].removeprefix("Input ")
            sentence = f"`{path}` {message[:1].lower()}{message[1:]}, got {item['input']!r}."
        places.setdefault(place, sentence)
    return " ".join(s for p, s in places.items() if not any(len(q) > len(p) and q[: len(p)] == p for q in places))


def _place(loc: tuple[int | str, ...], content: Any, *, keep_last: bool) -> tuple[int | str, ...]:
    """Where in the study: pydantic's location without the names of union branches."""
    place: list[int | str] = []
    for at, part in enumerate(loc):
        inside = range(len(content)) if isinstance(content, (list, tuple)) else content
        if isinstance(inside, (range, Mapping)) and part in inside:
            place.append(part)
            content = content[part]
        elif keep_last and at == len(loc) - 1:
            place.append(part)
    return tuple(place)


def _dotted(place: tuple[int | str, ...]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).removeprefix(".")
