"""Is the answer right, by a second grader that shares nothing with the first but where the answer stands?"""

import re
from decimal import Decimal
from typing import Any

from r1lite.prompts import final_answer, texts_of

NUMBER = re.compile(r"[+-]?(\d{1,40}(,\d{3})*)(\.\d{1,40})?", re.ASCII)


def exact(completions: list, answer: list[str], prefill: list[str] | None = None, **_: Any) -> list[float]:
    """1 where the final answer is the gold one, as a plain number or else letter by letter; in {0, 1}.

    No algebra and no LaTeX, so whatever it calls right is right. What it and `rewards.math:accuracy` disagree on is
    listed by `r1lite score`.
    """
    found = [final_answer(text) for text in texts_of(completions, prefill)]
    return [
        float(given is not None and given != "" and normal_form(given) == normal_form(gold))
        for given, gold in zip(found, answer, strict=True)
    ]


def normal_form(answer: str) -> str | Decimal:
    """A number for what reads as one, else the text with its white space folded."""
    text = " ".join(answer.split())
    number = text.removeprefix("$").removesuffix(".")
    return Decimal(number.replace(",", "")) if NUMBER.fullmatch(number) else text
