"""Conditions on metadata columns: comparisons, `in`, `and`, `or`, `not`; parsed, never executed.

age < 18          user == 4711          user == 007          10 <= score < 20          city in {Rome, Oslo} and not vip

Values are compared as in `expunge.data.values`. The literal takes the type of the column: in a text column `007` is the
text 007, in an integer column it is an error. A missing cell satisfies no comparison, also under `not`: a condition
selects the rows for which it is known to hold.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from expunge.core.errors import DataError, UsageError, nearest, shorten
from expunge.data.values import is_missing, key, keys, kind_of

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
# Quoted text, or a bare value that begins with a digit: `0005`, `2020-01-31`, `4f1c`.
_TOKENS = re.compile(r"""'[^']*'|"[^"]*"|(?<![\w.])(?:\d+(?:\.\d*)?[eE]\+\d+(?!\w)|\d[\w.:-]*)""")
MOST = 20_000  # characters of a condition
_NUMBER = re.compile(r"(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?")
_WHOLE = re.compile(r"0|[1-9]\d*")


class Truth(NamedTuple):
    """Rows (n,) for which a condition is known to hold, and known not to hold; neither if a cell is missing."""

    yes: np.ndarray
    no: np.ndarray


def evaluate(expression: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Evaluate a condition.

    Args:
        expression: the condition. Names are columns if such a column exists, otherwise text, so `city == Rome` needs no
            quotes; a column whose name is no identifier is written in quotes on the left.
        columns: typed columns (n,) by name.

    Returns:
        Boolean mask (n,) of the rows for which it holds.

    Raises:
        UsageError: for anything other than comparisons.
        DataError: for an unknown column, text compared with numbers, and a value that the column's type cannot have.

    >>> evaluate("age < 18 or city == Rome", {"age": np.array([10, 40]), "city": np.array(["Oslo", "Rome"])})
    array([ True,  True])
    """
    if len(expression) > MOST:
        raise UsageError(f"the condition has {len(expression):,} characters; at most {MOST:,} are read.")
    source = _TOKENS.sub(_quoted, expression.strip())
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(f"`{shorten(expression)}` is not a condition; write for example `user == 4711`.") from None
    try:
        return np.array(_Evaluator(expression, source, columns).truth(tree).yes)
    except RecursionError:
        raise UsageError(f"`{shorten(expression)}` is nested too deeply; write a simpler condition.") from None


def _quoted(token: re.Match[str]) -> str:
    """Quote values that Python would not read as the written number."""
    text = token.group()
    return text if text[0] in "'\"" or _NUMBER.fullmatch(text) else f"'{text}'"


class _Evaluator:
    def __init__(self, expression: str, source: str, columns: Mapping[str, np.ndarray]) -> None:
        self.expression = expression
        self.source = source
        self.columns = columns

    def truth(self, node: ast.expr) -> Truth:
        if isinstance(node, ast.BoolOp):
            parts = [self.truth(value) for value in node.values]
            return _all_of(parts) if isinstance(node.op, ast.And) else _negated(_all_of(map(_negated, parts)))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return _negated(self.truth(node.operand))
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            steps = zip(operands, node.ops, operands[1:], strict=False)
            return _all_of(self.compare(*step) for step in steps)
        if isinstance(node, ast.Name) and node.id in self.columns and kind_of(self.columns[node.id]) == "boolean":
            column = self.columns[node.id]
            return _known(np.ma.getdata(column), column)
        raise self.refuse()

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Truth:
        if isinstance(op, (ast.In, ast.NotIn)):
            column = self.column(left)
            if not isinstance(right, (ast.Set, ast.Tuple, ast.List)):
                raise self.refuse()
            equal = [self.with_value(column, ast.Eq, item, left) for item in right.elts]
            inside = _negated(_all_of(map(_negated, equal))) if equal else _known(np.zeros(len(column), bool), column)
            return _negated(inside) if isinstance(op, ast.NotIn) else inside
        if type(op) not in _COMPARE:
            raise self.refuse()
        if self.is_column(left) or not self.is_column(right):
            if self.is_column(right, strict=True):
                return self.with_column(self.column(left), type(op), self.column(right))
            return self.with_value(self.column(left), type(op), right, left)
        return self.with_value(self.column(right), _MIRRORED.get(type(op), type(op)), left, right)  # `10 <= score`

    def with_column(self, left: np.ndarray, op: type[ast.cmpop], right: np.ndarray) -> Truth:
        texts = [kind_of(column) == "text" for column in (left, right)]
        if texts[0] != texts[1]:
            raise DataError(f"`{shorten(self.expression)}` compares text with numbers.")
        values = [keys(data) if texts[0] else data for data in map(np.ma.getdata, (left, right))]
        return _known(_COMPARE[op](*values), left, right)

    def with_value(self, column: np.ndarray, op: type[ast.cmpop], node: ast.expr, column_node: ast.expr) -> Truth:
        """Compare a column, named by `column_node`, with the literal `node`."""
        value, written = self.literal(node)
        data, kind = np.ma.getdata(column), kind_of(column)
        if kind == "text":
            if op not in (ast.Eq, ast.NotEq) and not isinstance(value, str):
                name = ast.unparse(column_node)
                asked = shorten(self.expression)
                raise DataError(f"the column `{name}` holds text, but `{asked}` asks if it is {shorten(written)}.")
            return _known(_COMPARE[op](keys(data), key(written)), column)
        if kind == "boolean" and isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if isinstance(value, str):
            # An unknown name next to a numeric column is more likely a mistyped column than a text.
            holds = "whole numbers" if kind == "integer" else "true or false" if kind == "boolean" else "numbers"
            name = ast.unparse(column_node)
            asked = shorten(self.expression)
            raise DataError(f"the column `{name}` holds {holds}, but `{asked}` compares it with `{shorten(value)}`.")
        if kind == "integer" and isinstance(value, float):
            return _known(_compare_whole(data, op, value), column)
        return _known(_COMPARE[op](data, value), column)

    def is_column(self, node: ast.expr, *, strict: bool = False) -> bool:
        """Whether a node names a column; quoted text does not if `strict`."""
        if isinstance(node, ast.Name):
            return node.id in self.columns
        return not strict and isinstance(node, ast.Constant) and node.value in self.columns

    def column(self, node: ast.expr) -> np.ndarray:
        name = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
        if not isinstance(name, str):
            raise self.refuse()
        if name not in self.columns:
            raise DataError(f"there is no metadata column `{shorten(name)}`; {nearest(name, self.columns)}.")
        return self.columns[name]

    def literal(self, node: ast.expr) -> tuple[str | int | float | bool, str]:
        """The value of a literal, and its text."""
        if isinstance(node, ast.Name):
            return node.id, node.id
        sign = ""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            node, sign = node.operand, "-"
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
            if isinstance(node.value, (str, bool)):
                if not sign:
                    return node.value, str(node.value)
                if isinstance(node.value, str) and _TOKENS.fullmatch(node.value):  # -0005
                    return f"-{node.value}", f"-{node.value}"
            else:
                value = node.value
                return -value if sign else value, sign + (ast.get_source_segment(self.source, node) or str(value))
        raise self.refuse()

    def refuse(self) -> UsageError:
        return UsageError(
            f"`{shorten(self.expression)}` is not understood; allowed: comparisons (== != < <= > >= in) of columns "
            f"({', '.join(self.columns) or 'none'}) with values, joined by and, or, not."
        )


def _compare_whole(data: np.ndarray, op: type[ast.cmpop], value: float) -> np.ndarray:
    """Compare integers with a float exactly, without converting them to floats."""
    if math.isinf(value) or math.isnan(value):
        return np.full(len(data), bool(_COMPARE[op](0.0, value)))
    if value == int(value):
        return np.asarray(_COMPARE[op](data, int(value)))
    if op in (ast.Eq, ast.NotEq):
        return np.full(len(data), op is ast.NotEq)
    below = math.floor(value)
    return np.asarray(data <= below if op in (ast.Lt, ast.LtE) else data > below)


def _known(answer: np.ndarray, *columns: np.ndarray) -> Truth:
    """The answer for rows without missing cells."""
    yes = np.asarray(answer, dtype=bool)
    present = ~np.logical_or.reduce([is_missing(column) for column in columns])
    return Truth(yes & present, ~yes & present)


def _negated(truth: Truth) -> Truth:
    return Truth(truth.no, truth.yes)


def _all_of(parts: Any) -> Truth:
    yes, no = zip(*parts, strict=True)
    return Truth(np.logical_and.reduce(yes), np.logical_or.reduce(no))
