"""Is the chosen option the right one?"""

import re
from typing import Any

from r1lite.prompts import final_answer, texts_of

GOLD = re.compile(r"[A-J]")
# What letters are dressed in: \text{B}, \mathbf{B}, $B$, \(B\), **B**, "B".
DRESS = re.compile(r"\\(?:text|mathrm|mathbf|boldsymbol|mathit)(?:bf|it|rm)?(?![A-Za-z])|\\[()]|[*$`\"\u201c\u201d{}]")
LINKS = r"(?:or|and|nor)\b"
VERBS = r"(?:is|because|since|as)\b"
# A letter that begins a line: "B", "(b)", "B.", "B) Paris", "B - Paris", "B is it", "A or C"; "A dog" has an article.
FIRST = re.compile(rf"\(?([A-Ja-j])(?:[).:,;/!]|$| (?=[-\u2013\u2014&/]|{LINKS}|{VERBS}))")
# Letters further on: " (B)", " B)", "option B", "the answer is B", and whatever is listed, as in "B or C" and "B, C".
LATER = re.compile(
    rf"""(?:(?<=\ \()|(?<=\ ))([A-J])\)
    | (?:(?i:\b(?:option|choice|answer|letter|is)):?\ ?\(? | (?:[,;/&]|\b{LINKS})\ ?\(?)
      ([A-J])(?![\w'\u2019])(?!\ (?!{LINKS}|{VERBS})\w)
    | (?<![\w'\u2019])([A-J])(?=\ ?[,;/&]|\ {LINKS})""",
    re.VERBOSE,
)


def choice(completions: list, answer: list[str], prefill: list[str] | None = None, **_: Any) -> list[float]:
    r"""1 where the letter in the final answer is the gold one, else 0; in {0, 1} (R1 v2 B.3.1, multiple choice).

    Read are "B", "(B)", "b)", "B. Paris", "\text{B}", "Option B", "The answer is B" and the like. An answer that names
    no letter, or several, is wrong; so is "D) Both A and B". Raises ValueError for a gold answer that is no letter A-J.
    """
    for gold in answer:
        if not GOLD.fullmatch(gold.strip()):
            raise ValueError(
                f"the gold answer {gold!r} is no letter from A to J; name the column that holds the letter"
            )
    return [
        float(letters(final_answer(text) or "") == {gold.strip()})
        for text, gold in zip(texts_of(completions, prefill), answer, strict=True)
    ]


def letters(answer: str) -> set[str]:
    """The options that an answer names."""
    return {letter for line in DRESS.sub("", answer).splitlines() for letter in letters_of_line(" ".join(line.split()))}


def letters_of_line(line: str) -> set[str]:
    first = FIRST.match(line)
    later = {next(filter(None, match)) for match in LATER.findall(line)}
    return later | {first[1].upper()} if first else later
