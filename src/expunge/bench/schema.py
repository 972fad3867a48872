"""The JSON Schema of studies: editors complete keys, names and options, from the very classes that run."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from expunge.bench.recipe import Study
from expunge.methods import METHODS
from expunge.methods.base import Method
from expunge.metrics import METRICS
from expunge.scenarios import SCENARIOS
from expunge.training.recipe import Recipe


def json_schema() -> str:
    """JSON Schema (draft 2020-12) of a study file with all registered methods, scenarios and metrics.

    It accepts whatever may be right: `path/to/file.py:Mine` names code that is known only when it runs.
    """
    schema = Study.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    properties = schema["properties"]
    properties["extends"] = {"type": "string", "description": "another study, beside this one, to start from"}
    properties["train"] = _options(Recipe, definitions)
    methods = {name: _options(METHODS.load(name), definitions) for name in METHODS.usable()}
    properties["options"] = {"type": "object", "properties": methods, "additionalProperties": False}
    properties["methods"] = {"anyOf": [{"const": "all"}, _listed(methods, _presets())]}
    scenarios = {name: _options(SCENARIOS.load(name), definitions) for name in SCENARIOS.usable()}
    properties["scenarios"] = {**_listed(scenarios, None), "minItems": 1}
    metrics = {name: _options(METRICS.load(name), definitions) for name in METRICS.usable()}
    properties["metrics"] = {"anyOf": [{"type": "null"}, _listed(metrics, ["default"])]}
    for name in ("scenarios", "methods", "metrics", "published"):  # one name stands for a list of it
        properties[name] = {"anyOf": [{"type": "string"}, properties[name]]}
    properties["seeds"] = {"anyOf": [{"type": "integer", "minimum": 1}, properties["seeds"]]}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2)


def settings_schema(cls: type) -> str:
    """JSON Schema (draft 2020-12) of a settings class, such as that of `expunge.yaml`."""
    schema = TypeAdapter(cls).json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2)


def _presets() -> list[str]:
    loaded: list[tuple[str, type[Method]]] = [(name, METHODS.load(name)) for name in METHODS.usable()]
    return [f"{name}/{preset}" for name, cls in loaded for preset in cls.presets]


def _options(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = TypeAdapter(cls).json_schema()
    definitions.update(schema.pop("$defs", {}))
    return {key: schema[key] for key in ("type", "properties", "required") if key in schema} | {
        "additionalProperties": False
    }


def _listed(options: dict[str, dict[str, Any]], more: list[str] | None) -> dict[str, Any]:
    """A list of names, or of mappings with `name`, an optional `label`, and the options of that name.

    more: further names that are allowed; None: any text (`class:3`).
    """
    own_code = {"type": "string", "pattern": ":"}
    plain = [{"type": "string"}] if more is None else [{"enum": [*options, *more]}, own_code]
    mappings: list[dict[str, Any]] = [{"type": "object", "properties": {"name": own_code}, "required": ["name"]}]
    for name, block in options.items():
        properties = {"name": {"const": name}, "label": {"type": "string"}, **block.get("properties", {})}
        if more:
            properties["name"] = {"enum": [name, *(m for m in more if m.startswith(f"{name}/"))]}
        required = ["name", *block.get("required", [])]
        mappings.append(
            {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        )
    return {"type": "array", "items": {"anyOf": [*plain, *mappings]}}
