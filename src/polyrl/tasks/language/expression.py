"""A small safe reader of arithmetic: whole numbers, + - * and parentheses. Nothing is ever evaluated by Python."""

from __future__ import annotations

import ast
import re

_ALLOWED = re.compile(r"[0-9+\-*() ]{1,200}")


def evaluate(text: str) -> tuple[int, list[int]]:
    """Return the value of an expression and the numbers in it, from left to right.

    Raises `ValueError` for anything else than whole numbers, `+`, `-`, `*` between two operands, and parentheses, and
    for texts of more than 200 characters: so no value has more than 200 digits, whatever the text.
    """
    if not _ALLOWED.fullmatch(text):
        raise ValueError("not an expression of at most 200 characters with whole numbers and + - *")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("not a well-formed expression") from error
    numbers: list[int] = []
    return _value(tree.body, numbers), numbers


def _value(node: ast.expr, numbers: list[int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return node.value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, numbers), _value(node.right, numbers)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
    raise ValueError("only whole numbers and + - * are allowed")
