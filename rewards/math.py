"""Is the answer right?"""

import re
from decimal import Decimal
from typing import Any

from r1lite.prompts import parse, text_of

NUMBER = re.compile(r"[+-]?(\d{1,40}(,\d{3})*)(\.\d{1,40})?", re.ASCII)


def accuracy(completions: list, answer: list[str], **_: Any) -> list[float]:
    """1 where the text in `<answer>` equals the gold answer, else 0; in {0, 1} (R1 §2.2, accuracy reward).

    A malformed completion scores 0. Numbers are compared by value ("042" = "42" = "42.0" = "$42"), all else as text.
    """
    return [float(is_right(text_of(completion), gold)) for completion, gold in zip(completions, answer, strict=True)]


def is_right(completion: str, gold: str) -> bool:
    parsed = parse(completion)
    return parsed is not None and parsed.answer != "" and normal_form(parsed.answer) == normal_form(gold)


def normal_form(answer: str) -> str | Decimal:
    """A number for what reads as one, else the text with its white space folded."""
    text = " ".join(answer.split())
    number = text.removeprefix("$").removesuffix(".")
    return Decimal(number.replace(",", "")) if NUMBER.fullmatch(number) else text
