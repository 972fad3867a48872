"""A tiny language for conditions on metadata columns: comparisons, `in`, `and`, `or`, `not`. Parsed, never executed.

age < 18          user == 4711          10 <= score < 20          city in {Rome, Oslo} and not label == 3
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from expunge.core.errors import DataError, UsageError, nearest

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def evaluate(expression: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Boolean mask of the rows that fulfil `expression`.

    Names are columns where such a column exists, otherwise plain text, so `city == Rome` needs no quotes; a column
    whose name is no identifier is written in quotes on the left. Raises `UsageError` for anything else than
    comparisons, `DataError` for an unknown column or a text compared with numbers.

    >>> evaluate("age < 18 or city == Rome", {"age": np.array([10, 40]), "city": np.array(["Oslo", "Rome"])})
    array([ True,  True])
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(f"`{expression}` is not a condition; write for example `user == 4711`.") from None
    return _Evaluator(expression, columns).mask(tree)


class _Evaluator:
    def __init__(self, expression: str, columns: Mapping[str, np.ndarray]) -> None:
        self.expression = expression
        self.columns = columns

    def mask(self, node: ast.expr) -> np.ndarray:
        if isinstance(node, ast.BoolOp):
            parts = [self.mask(value) for value in node.values]
            combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return np.asarray(combine.reduce(parts))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.mask(node.operand)
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            steps = zip(operands, node.ops, operands[1:], strict=False)
            return np.asarray(np.logical_and.reduce([self.compare(*step) for step in steps]))
        if isinstance(node, ast.Name) and node.id in self.columns and self.columns[node.id].dtype == bool:
            return self.columns[node.id]
        raise self.refuse()

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> np.ndarray:
        if isinstance(op, (ast.In, ast.NotIn)):
            column = self.column(left)
            if not isinstance(right, (ast.Set, ast.Tuple, ast.List)):
                raise self.refuse()
            found = np.isin(column, [self.fit(column, self.literal(item), left) for item in right.elts])
            return ~found if isinstance(op, ast.NotIn) else found
        if type(op) not in _COMPARE:
            raise self.refuse()
        if self.is_column(left) or not self.is_column(right):
            column = self.column(left)
            other = self.column(right) if self.is_column(right, strict=True) else None
            value = other if other is not None else self.fit(column, self.literal(right), left)
            return self.apply(op, column, value)
        column = self.column(right)  # `10 <= score`
        return self.apply(op, self.fit(column, self.literal(left), right), column)

    def apply(self, op: ast.cmpop, left: Any, right: Any) -> np.ndarray:
        kinds = {np.asarray(side).dtype.kind in "US" for side in (left, right)}
        if len(kinds) > 1:
            raise DataError(f"`{self.expression}` compares text with numbers.")
        return np.asarray(_COMPARE[type(op)](left, right))

    def is_column(self, node: ast.expr, *, strict: bool = False) -> bool:
        """Whether a node names a column; `strict` leaves quoted text out."""
        if isinstance(node, ast.Name):
            return node.id in self.columns
        return not strict and isinstance(node, ast.Constant) and node.value in self.columns

    def column(self, node: ast.expr) -> np.ndarray:
        name = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
        if not isinstance(name, str):
            raise self.refuse()
        if name not in self.columns:
            raise DataError(f"there is no metadata column `{name}`; {nearest(name, self.columns)}.")
        return self.columns[name]

    def literal(self, node: ast.expr) -> str | int | float | bool:
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            value = node.operand.value
            if isinstance(value, (int, float)):
                return -value
        raise self.refuse()

    def fit(self, column: np.ndarray, value: str | int | float | bool, where: ast.expr) -> str | int | float | bool:
        """The literal in the column's kind: numbers become text for text columns, never the other way."""
        if column.dtype.kind in "US":
            return str(value)
        if isinstance(value, str):
            name = ast.unparse(where)
            # An unknown name next to a numeric column is more likely a mistyped column than a text.
            raise DataError(f"the column `{name}` holds numbers, but `{self.expression}` compares it with `{value}`.")
        return value

    def refuse(self) -> UsageError:
        return UsageError(
            f"`{self.expression}` is not understood; allowed: comparisons (== != < <= > >= in) of columns "
            f"({', '.join(self.columns) or 'none'}) with values, joined by and, or, not."
        )
