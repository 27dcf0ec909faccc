"""Is the completion shaped as asked?"""

from typing import Any

from r1lite.prompts import TAGS, parse, texts_of


def think_answer(completions: list, prefill: list[str] | None = None, **_: Any) -> list[float]:
    """1 where a completion is exactly `<think>...</think><answer>...</answer>`, else 0 (R1 §2.2, format reward)."""
    return [float(parse(text) is not None) for text in texts_of(completions, prefill)]


def tag_count(completions: list, prefill: list[str] | None = None, **_: Any) -> list[float]:
    """0.25 for each of <think>, </think>, <answer>, </answer> that is in its place; in {0, 0.25, 0.5, 0.75, 1}.

    A tag is in its place where it occurs exactly once, and after all occurrences of the tags before it in that list.
    Partial credit for a model that rarely gets the whole shape right; the idea is open-r1's `tag_count` reward. Text
    around the tags costs nothing here, and a tag that the prompt has written counts for every completion alike.
    """
    return [0.25 * tags_in_place(text) for text in texts_of(completions, prefill)]


def tags_in_place(text: str) -> int:
    count, end = 0, -1  # end: where the tags so far occur last
    for tag in TAGS:
        count += text.count(tag) == 1 and text.find(tag) > end
        end = max(end, text.rfind(tag))
    return count
