r"""Is one mathematical answer equal to another? For the processes of the pool: sympy may take any time and memory.

math-verify reads the LaTeX, and has the last word on what is left after the checks for what it gets wrong: tuples that
are sets, numbers that agree in their first digits, equations without delimiters (tests/rewards/accuracy_table.py).
"""

import functools
import logging
import re
from dataclasses import dataclass
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, I, N, Rational, Symbol
from sympy.core.relational import Relational

from rewards.answers import is_decimal, is_words, letters, same_at_once, same_number

MATRIX = re.compile(r"\\begin\{([pbB]|small)?(?:matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{[a-zA-Z]*\}", re.DOTALL)
ASSIGNED = re.compile(
    r"(?P<name>[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?|\([A-Za-z](?:, ?[A-Za-z])+\))"
    r"\s*(?:=|\\in(?![a-z]))\s*(?P<value>[^=]+)"
)
ASKED_FOR = re.compile(r"[^=<>\d]*[A-Za-z][^=<>\d]*=(?P<value>[^=<>]+)")
RATIO = re.compile(r"[^:\\(){}]+(?::[^:\\(){}]+)+")
RELATION = re.compile(r"=|\\in(?![a-z])")
IN_BASE = re.compile(r"[0-9A-Fa-f]+_(?:\{\d+\}|\d+)")
BRACKET = re.compile(r"\\[{}]|\\[lr]angle|[()\[\]{}]")
BETWEEN = re.compile(r"\s*(?:,\s*(?:and|or)\b|[,;]|\band\b|\bor\b|\\cup)\s*")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
FUNCTION = re.compile(
    r"(?<![\\a-zA-Z])(sqrt|exp|arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|pi|infty)(?![a-z])"
)
OPERATORS = re.compile(r"[\\{}^_+*/=<>]")
DIGITS = 60  # to which numbers are compared that have no exact form


def equal(gold: str, given: str) -> bool:
    """Whether a cleaned answer equals a cleaned gold; False, too, where the gold cannot be read."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the time limit is ours
    return readable(gold) and bool(same(gold, given))


@functools.lru_cache(maxsize=4096)
def readable(gold: str) -> bool:
    if same_number(gold, gold) or is_words(gold) or IN_BASE.fullmatch(gold):
        return True
    parts = structure(gold)
    if parts.kind != "one":
        return bool(parts.items) and all(map(readable, parts.items))
    return gold != "" and (not OPERATORS.search(gold) or read(latex(gold)) is not None)


def same(gold: str, given: str) -> bool:
    decided = same_at_once(gold, given)
    if decided is not None:
        return decided
    if letters(gold) == letters(given):
        return True
    if IN_BASE.fullmatch(gold) or IN_BASE.fullmatch(given):
        return re.sub("[{}]", "", gold) == re.sub("[{}]", "", given)
    if name_of(gold) == name_of(given) or len(RELATION.findall(gold)) != len(RELATION.findall(given)):
        gold, given = value_of(gold), value_of(given)
    if not RELATION.search(gold) and (asked := ASKED_FOR.fullmatch(given)):
        given = asked["value"].strip()
    wanted, got = structure(gold), structure(given)
    if wanted.kind == got.kind == "list" and len(wanted.items) != len(got.items):
        return False
    if wanted.kind != got.kind and {wanted.kind, got.kind} != {"list", "set"}:
        return False
    if wanted.kind == "one":
        return same_number(gold, given) or same_expression(latex(gold), latex(given), is_decimal(given))
    if wanted.kind in ("list", "set", "union"):
        return same_elements(wanted.items, got.items)
    return len(wanted.items) == len(got.items) and all(map(same, wanted.items, got.items))


def same_elements(golds: tuple[str, ...], givens: tuple[str, ...]) -> bool:
    return all(any(same(gold, given) for given in givens) for gold in golds) and all(
        any(same(gold, given) for gold in golds) for given in givens
    )


def name_of(text: str) -> str | None:
    """The x of "x = 5", of "x \\in [0, 1]" and the f(x) of "f(x) = 5"."""
    match = ASSIGNED.fullmatch(text)
    return match["name"] if match else None


def value_of(text: str) -> str:
    match = ASSIGNED.fullmatch(text)
    return match["value"].strip() if match else text


@dataclass(frozen=True)
class Structure:
    """`kind` is one, list, set, union, ratio, a pair of brackets such as "[)", or matrix with its shape."""

    kind: str
    items: tuple[str, ...]


def structure(text: str) -> Structure:
    if match := MATRIX.fullmatch(text):
        rows = [row.split("&") for row in match[2].split("\\\\") if row.strip()]
        shape = "x".join(str(len(row)) for row in rows)
        return Structure(f"matrix {shape}", tuple(cell.strip() for row in rows for cell in row))
    if "\\cup" in text and len(parts := split(text, r"\cup")) > 1:
        return Structure("union", parts)
    brackets = enclosing(text)
    if brackets:
        opening, closing = brackets
        inner = text[len(opening) : -len(closing)].strip()
        items = split(inner, ",")
        if opening == "\\{":
            return Structure("set", items)
        if opening != "{" and len(items) > 1:
            return Structure(opening + closing, items)
        return structure(inner) if opening in "({" else Structure("one", (text,))
    items = split(THOUSANDS.sub("", text))
    if len(items) > 1:
        return Structure("list", items)
    if RATIO.fullmatch(text):
        return Structure("ratio", tuple(part.strip() for part in text.split(":")))
    if "\\pm" in text:
        return Structure("set", (text.replace("\\pm", "+"), text.replace("\\pm", "-")))
    return Structure("one", (text,))


def enclosing(text: str) -> tuple[str, str] | None:
    """The brackets around the whole of a text."""
    depth = 0
    marks = list(BRACKET.finditer(text))
    if not marks or marks[0].start() != 0 or marks[-1].end() != len(text):
        return None
    for mark in marks:
        depth += 1 if mark[0] in OPENING else -1
        if depth == 0:
            return (marks[0][0], mark[0]) if mark.end() == len(text) else None
    return None


OPENING = ("(", "[", "{", "\\{", "\\langle")


def split(text: str, separator: str | None = None) -> tuple[str, ...]:
    """The items between the separators that stand in no brackets; all kinds of separators but \\cup by default."""
    depths, depth = {}, 0
    for mark in BRACKET.finditer(text):
        depth += 1 if mark[0] in OPENING else -1
        depths[mark.end()] = depth
    items, start, level, ends = [], 0, 0, sorted(depths)
    for match in BETWEEN.finditer(text):
        while ends and ends[0] <= match.start():
            level = depths[ends.pop(0)]
        wanted = match[0].strip() == separator if separator else "\\cup" not in match[0]
        if level == 0 and wanted:
            items.append(text[start : match.start()].strip())
            start = match.end()
    return tuple(filter(None, [*items, text[start:].strip()]))


def latex(text: str) -> str:
    """LaTeX for what may be plain writing: `sqrt(2)/2`, `exp(16)-1`, `2^10`, `x**2`. Decimals become fractions."""
    text = FUNCTION.sub(lambda match: {"exp": "e^", "infty": r"\infty "}.get(match[1], f"\\{match[1]} "), text)
    text = re.sub(r"(?:(?<=\^)|(?<=\\sqrt )|(?<=\\sqrt))\s*\(", "(", text)
    text = braced(text)
    text = re.sub(r"\^\s*(-?\d+(?:\.\d+)?)", r"^{\1}", text)
    text = re.sub(r"\d*\.\d+", decimal_fraction, THOUSANDS.sub("", text))
    for plain, command in (("<=", r"\le "), (">=", r"\ge "), ("*", r"\cdot ")):
        text = text.replace(plain, command)
    return text


def braced(text: str) -> str:
    r"""`^(...)` and `\sqrt (...)` with braces, since LaTeX would take the bracket alone."""
    closing: list[int] = []
    out = list(text)
    for index, letter in enumerate(text):
        if letter == "(":
            before = text[:index].rstrip()
            takes_all = before.endswith(("^", "\\sqrt"))
            closing.append(takes_all)
            out[index] = "{" if takes_all else "("
        elif letter == ")" and closing:
            out[index] = "}" if closing.pop() else ")"
    return "".join(out)


def decimal_fraction(match: re.Match) -> str:
    whole, _, part = match[0].partition(".")
    return rf"(\frac{{{int(whole + part)}}}{{{10 ** len(part)}}})"


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Any:
    """What math-verify reads in LaTeX, a sympy object, or None."""
    if re.search(r"(?<![_^\d.])\d[\d.]*\s+[\d.]", text):
        return None  # two numbers, which would be read as one
    found = parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    if not found or isinstance(found[0], str):
        return None
    return found[0].subs({Symbol("i", real=real): I for real in (True, False)})


def same_expression(gold: str, given: str, given_is_decimal: bool) -> bool:
    a, b = read(gold), read(given)
    if a is None or b is None:
        return False
    if isinstance(a, Expr) and isinstance(b, Expr):
        if a.free_symbols != b.free_symbols:
            return False
        return same_function(a, b) if a.free_symbols else same_constant(a, b, given_is_decimal)
    if isinstance(a, Relational) and isinstance(b, Relational):
        return same_relation(a, b)
    if isinstance(a, Expr | Relational) or isinstance(b, Expr | Relational):
        return False  # one of them is something else, and math-verify might take its last part
    return bool(verify(a, b, strict=True, timeout_seconds=None))


def same_constant(a: Any, b: Any, approximately: bool) -> bool:
    """Rationals exactly, all else to 50 digits; a decimal that stands for a root or fraction to 6."""
    a, b = a.doit(), b.doit()
    if a == b:
        return True
    if a.is_Rational and b.is_Rational and not approximately:
        return False
    if not (a.is_finite and b.is_finite):
        return False
    if 0 in (a, b):
        return bool((a - b).equals(0))
    x, y = N(a, DIGITS), N(b, DIGITS)
    tolerance = 1e-6 if approximately and not a.is_integer else 10 ** (10 - DIGITS)
    return bool(abs(x - y) <= tolerance * abs(x))


def same_function(a: Any, b: Any) -> bool:
    """Equal at some points to 50 digits, which no two different short expressions are."""
    points = [(values_at(a, seed), values_at(b, seed)) for seed in range(4)]
    if any(x is None or y is None for x, y in points):
        return bool(a.equals(b))
    return all(abs(x - y) <= 10 ** (10 - DIGITS) * max(abs(x), abs(y)) for x, y in points)


def same_relation(a: Any, b: Any) -> bool:
    """Equations whose sides differ by the same but for a factor, inequalities by the same but for a positive one."""
    (kind, a), (other, b) = difference(a), difference(b)
    if kind != other or a.free_symbols != b.free_symbols:
        return False
    points = [(values_at(a, seed), values_at(b, seed)) for seed in range(4)]
    if any(x is None or y is None or 0 in (x, y) for x, y in points):
        return False
    factors = [x / y for x, y in points]
    first = factors[0]
    return (kind == "=" or first > 0) and all(abs(f - first) <= 10 ** (10 - DIGITS) * abs(first) for f in factors)


def difference(relation: Any) -> tuple[str, Any]:
    """A relation as what it says about the difference of its sides: = 0, > 0, >= 0 or != 0."""
    kind = relation.rel_op
    if kind in ("<", "<="):
        return kind.replace("<", ">"), relation.rhs - relation.lhs
    return {"==": "="}.get(kind, kind), relation.lhs - relation.rhs


def values_at(expression: Any, seed: int) -> Any:
    """The value at a point that follows from the seed, its coordinates of both signs; None if there is none."""
    symbols = sorted(expression.free_symbols, key=str)
    point = {s: Rational((-1) ** (seed * (i + 1)) * (37 * seed + 11 * i + 17), 19 + i) for i, s in enumerate(symbols)}
    value = N(expression.subs(point).doit(), DIGITS)
    return value if value.is_number and value.is_finite else None
