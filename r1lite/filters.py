"""What rejection sampling drops: filters over rows of rollouts, which never generate and never look outside the rows.

A row has `id`, `problem_id`, `prefill`, `completion`, `sample` and `tokens`, besides what a caller's own tests ask for.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from rewards.language import word_languages
from rewards.repetition import WORD

Row = dict[str, Any]
Filter = Callable[[list[Row]], set[str]]  # from the rows that are left to the ids of those that it drops

BLANK_LINES = re.compile(r"\n\s*\n")
LONGEST_LOOP = 50  # words; what returns after more of them is a passage, which near_duplicates and people look for
SHINGLE = 5  # words


def sift(rows: list[Row], filters: dict[str, Filter]) -> tuple[list[Row], dict[str, str], list[dict[str, Any]]]:
    """The rows that pass all filters in turn, the reason of each other one by its id, and the funnel.

    The reason is the first filter that drops a row; the funnel has how many each dropped and how many were left.
    """
    left, reasons, funnel = rows, dict[str, str](), []
    for reason, drops in filters.items():
        dropped = drops(left)
        reasons |= dict.fromkeys(dropped, reason)
        left = [row for row in left if row["id"] not in dropped]
        funnel.append({"reason": reason, "dropped": len(dropped), "left": len(left)})
    return left, reasons, funnel


def failing(passes: Callable[[Row], bool]) -> Filter:
    """Drops each row that does not pass on its own."""
    return lambda rows: {row["id"] for row in rows if not passes(row)}


def competing(stay: Callable[[list[Row]], list[Row]], order: Callable[[Row], Any]) -> Filter:
    """Drops the rows that do not stay among those of the same problem, which come in an order of their own.

    So that where a row stands in the file decides nothing.
    """

    def drops(rows: list[Row]) -> set[str]:
        problems = defaultdict(list)
        for row in sorted(rows, key=order):
            problems[row["problem_id"]].append(row)
        staying = {row["id"] for mine in problems.values() for row in stay(mine)}
        return {row["id"] for row in rows} - staying

    return drops


def whole(row: Row) -> str:
    return str(row["prefill"] + row["completion"])


def in_language(text: str, language: str) -> bool:
    """Whether each word is of the language, as the reward language_consistency reads it; so is no word at all."""
    return set(word_languages(text)) <= {language}


def longest_paragraph(text: str) -> int:
    """Characters of the longest text between blank lines."""
    return max(len(paragraph.strip()) for paragraph in BLANK_LINES.split(text))


def words_of(text: str) -> list[str]:
    """Words as the reward repetition has them: between white space, case aside; each Han or kana character is one."""
    return WORD.findall(text.lower())


def goes_round(text: str, times: int) -> bool:
    """Whether some 1 to LONGEST_LOOP words stand `times` times in a row, as in "wait wait wait wait".

    Punctuation stays with its word, and numbers are words: a matrix has rows of zeros, so `times` is better not small.
    """
    words = words_of(text)
    # n words stand there `times` times where each of n * (times - 1) words in a row is the one n words later. Of so
    # many places in a row one is a multiple of their number: only from those is it worth while to look around.
    for n in range(1, min(LONGEST_LOOP, len(words) // times) + 1):
        length, end = n * (times - 1), len(words) - n
        for place in range(0, end, length):
            first = after = place
            while after < end and after - first < length and words[after] == words[after + n]:
                after += 1
            while after > place and first > 0 and after - first < length and words[first - 1] == words[first - 1 + n]:
                first -= 1
            if after - first == length:
                return True
    return False


def shingles(text: str) -> set[tuple[str, ...]]:
    """All runs of SHINGLE words; of a shorter text all its words."""
    words = words_of(text)
    return set(zip(*(words[start:] for start in range(SHINGLE)), strict=False)) or {tuple(words)}


def similarity(one: set, other: set) -> float:
    """Jaccard: what both have / what either has."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def without_duplicates(rows: list[Row]) -> list[Row]:
    """The first row with each text."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(whole(row), row)
    return list(first.values())


def without_near_duplicates(rows: list[Row], least: float) -> list[Row]:
    """Each row whose similarity to all that stay before it is below `least`."""
    staying, taken = [], list[set]()
    for row in rows:
        mine = shingles(whole(row))
        # No two sets are more similar than their sizes, which are quicker to compare.
        close = (each for each in taken if min(len(each), len(mine)) / max(len(each), len(mine)) >= least)
        if all(similarity(mine, each) < least for each in close):
            staying.append(row)
            taken.append(mine)
    return staying


def most_diverse(rows: list[Row], count: int) -> list[Row]:
    """The first row, then in turn the one whose nearest of those taken is the least similar, the earlier on a tie."""
    if len(rows) <= count:
        return rows
    sets = [shingles(whole(row)) for row in rows]
    taken, nearest = [0], {index: similarity(sets[0], sets[index]) for index in range(1, len(rows))}
    while len(taken) < count:
        newest = min(nearest, key=lambda index: nearest[index])
        del nearest[newest]
        taken.append(newest)
        nearest = {index: max(value, similarity(sets[newest], sets[index])) for index, value in nearest.items()}
    return [rows[index] for index in taken]
