"""Does the completion go round in circles?"""

import re
from typing import Any

from r1lite.prompts import texts_of

HAN_KANA = "\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# What has no spaces is cut into pieces, so that "hahaha..." is more than one word.
WORD = re.compile(rf"[{HAN_KANA}]|[^\s{HAN_KANA}]{{1,20}}")


def repetition(
    completions: list, n: int = 20, penalty: float = -1.0, prefill: list[str] | None = None, **_: Any
) -> list[float]:
    """penalty * (1 - distinct n-grams / n-grams) of the completion's words; in [penalty, 0].

    The repetition penalty of arXiv 2502.03373 (appendix), over the whole completion as open-r1 has it. Words stand
    between white space, case aside; each Han or kana character is one. Fewer than n words score 0. n-grams of a few
    words return in every sound derivation, the more the longer it is, so that a small n is a length penalty in
    disguise; the paper's n is 40 tokens, and 20 words are about as much. Raises ValueError for a penalty above 0 or an
    n below 1.
    """
    if penalty > 0 or n < 1:
        raise ValueError(f"repetition needs a penalty of at most 0 and an n of at least 1; got {penalty} and {n}")
    shares = [repeated(WORD.findall(text.lower()), n) for text in texts_of(completions, prefill)]
    return [penalty * share if share else 0.0 for share in shares]


def repeated(words: list[str], n: int) -> float:
    """The share of n-grams that occurred before; 0 where there are none."""
    n_grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1 - len(set(n_grams)) / len(n_grams) if n_grams else 0.0
