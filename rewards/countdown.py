"""Does the expression use the given numbers, and come out at the target?"""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from r1lite.prompts import final_answer, texts_of

LONGEST = 200  # characters of an expression; bounds its depth and the size of its numbers too
SIGNS = {
    "\u00d7": "*",
    "\u00f7": "/",
    "\u2212": "-",
    "\\times": "*",
    "\\cdot": "*",
    "\\div": "/",
    "\\left": "",
    "\\right": "",
    "$": "",
}
EXPRESSION = re.compile(r"[0-9 +*/()-]+")
LEADING_ZERO = re.compile(r"(?<![0-9])0[0-9]")
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def countdown(
    completions: list, numbers: list[list[int]], target: list[int], prefill: list[str] | None = None, **_: Any
) -> list[float]:
    r"""1 where the final answer is an expression with the value `target` that uses each of `numbers` once; in {0, 1}.

    The expression has whole numbers, + - * / (or their signs in print and LaTeX: \times \cdot \div) and parentheses, no
    signs of numbers, and may be followed by `= target`; it is computed exactly, in fractions. TinyZero's game, and with
    the target 24 one of R1's logic data (R1 v2 Table 4).
    """
    return [
        float(solves(final_answer(text) or "", given, wanted))
        for text, given, wanted in zip(texts_of(completions, prefill), numbers, target, strict=True)
    ]


def solves(answer: str, numbers: list[int], target: int) -> bool:
    expression, equals, result = plain(answer).partition("=")
    if equals and result.strip() != str(target):
        return False
    used: list[int] = []
    try:
        value = compute(read(expression.strip()), used)
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError, RecursionError):  # the parser's, for odd text
        return False
    return value == target and sorted(used) == sorted(numbers)


def plain(answer: str) -> str:
    """The answer in ASCII signs and single spaces; "" where it is too long to be one."""
    if len(answer) > LONGEST:
        return ""
    for sign, replacement in SIGNS.items():
        answer = answer.replace(sign, f" {replacement} ")
    return " ".join(answer.split())


def read(expression: str) -> ast.expr:
    if not EXPRESSION.fullmatch(expression) or LEADING_ZERO.search(expression):
        raise ValueError("not an expression of whole numbers")
    return ast.parse(expression, mode="eval").body


def compute(node: ast.expr, used: list[int]) -> Fraction:
    """The value of a tree that is nothing but whole numbers, which are added to `used`, and the four operations."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](compute(node.left, used), compute(node.right, used))
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        used.append(node.value)
        return Fraction(node.value)
    raise ValueError("not arithmetic")
