"""Reading of YAML files without code execution, with bounded time and memory.

Differences from PyYAML's safe loader: a key that is given twice is an error; `1e-3` is a number, as in YAML 1.2;
anchors, aliases and merge keys (`<<`) work, but a text that is too large, too deep, or grows too much by its aliases
is refused before it is built.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from expunge.core.errors import UsageError

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 50
MAX_VALUES = 20_000
"""Keys and values, with aliases expanded."""

MERGE = "tag:yaml.org,2002:merge"


def parse_yaml(text: str) -> Any:
    r"""Plain values of a YAML text: mappings, lists, strings, numbers, booleans, None, dates.

    Raises:
        yaml.YAMLError: if the text is no YAML, gives a key twice, or exceeds a limit of this module.

    >>> parse_yaml("base: &b {lr: 1e-3}\nfast: {<<: *b, epochs: 2}")["fast"]
    {'lr': 0.001, 'epochs': 2}
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    _check_events(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded(node, {}, ())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def read_yaml(path: Path, what: str = "") -> dict[str, Any]:
    """The mapping in a YAML file; empty for an empty file.

    Args:
        path: the file, UTF-8.
        what: what the file is, for messages ("recipe").

    Raises:
        FileNotFoundError: if there is no such file.
        UsageError: if it cannot be read, or holds no mapping with text keys; the line is named.
    """
    name = f"{what} {path}".strip()
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise UsageError(f"{name} cannot be read ({error.strerror}); give a YAML file.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is not valid YAML{reason(error)}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or any(not isinstance(key, str) for key in content):
        raise UsageError(f"{name} must be a mapping: `name: value` lines with text names.")
    return content


def reason(error: yaml.YAMLError) -> str:
    """End of a message: ` in line 3: what is wrong`, or `: what is wrong`."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{f' in line {mark.line + 1}' if mark is not None else ''}: {problem}"


def _located(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, mark)


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys; a merge key (`<<`) may repeat keys that the mapping overrides."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[Any] = set()
            for key_node, _ in node.value:
                if key_node.tag == MERGE or not isinstance(key_node, yaml.ScalarNode):
                    continue
                key = (key_node.tag, key_node.value)
                if key in seen:
                    raise _located(f"the key `{key_node.value}` is given twice; keep one line", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+e[-+]?[0-9]+"), list("-+0123456789"))


def _check_events(text: str) -> None:
    """Check depth and number of values while parsing, before anything is built."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        values += isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent))
        if depth > MAX_DEPTH:
            raise _located(f"it is nested deeper than {MAX_DEPTH} levels", event.start_mark)
        if values > MAX_VALUES:
            raise _located(f"it has more than {MAX_VALUES:,} values", event.start_mark)


def _expanded(node: yaml.Node, sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """Number of values of a node with aliases expanded; raises `yaml.YAMLError` above `MAX_VALUES` or for a cycle."""
    if id(node) in above:
        raise _located("an alias contains itself", node.start_mark)
    if id(node) not in sizes:
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        else:
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
        below = (*above, id(node))
        sizes[id(node)] = 1 + sum(_expanded(part, sizes, below) for part in inner)
        if sizes[id(node)] > MAX_VALUES:
            raise _located(f"its aliases stand for more than {MAX_VALUES:,} values", node.start_mark)
    return sizes[id(node)]
