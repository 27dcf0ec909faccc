"""Is the reasoning in one language?"""

import re
from collections import Counter
from typing import Any

from r1lite.prompts import TAG, reasoning, texts_of

LANGUAGES = ("en", "zh", "ja", "ko", "ru", "fr", "de", "es")

# Not language: commands of LaTeX with the names of their environments, and code as long as it is ASCII; anything else
# in a code block is prose that hides there.
NOT_PROSE = re.compile(r"\\(?:begin|end)\{[a-z]+\*?\}|\\[A-Za-z]+|```[\x00-\x7f]*?```|`[\x20-\x5f\x61-\x7f]+`")
SENTENCE_END = re.compile(r"[.!?;:\n\u3002\uff01\uff1f\uff1b\uff1a]+")
HAN = r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = r"\u3041-\u3096\u30a1-\u30fa\u30fc"
HANGUL = r"\u1100-\u11ff\uac00-\ud7af"
CYRILLIC = r"\u0400-\u052f"
LATIN = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\u0300-\u036f"
WORD = re.compile(
    rf"(?P<han>[{HAN}])|(?P<kana>[{KANA}]+)|(?P<hangul>[{HANGUL}]+)|(?P<cyrillic>[{CYRILLIC}]+)"
    rf"|(?P<latin>(?<![0-9_{LATIN}])[{LATIN}]++(?:['\u2019][{LATIN}]++)*+(?![0-9_]))"  # x1 and 2x are names
    rf"|(?P<other>[^\W\d_{HAN}{KANA}{HANGUL}{CYRILLIC}{LATIN}]+)"
)
# What tells apart the languages that share a script: common words, but none that English has in another sense.
FUNCTION_WORDS = {
    language: words.split()
    for language, words in {
        "en": "the of and to is are was that this it in we you for with so if then be have not or as on by from let",
        "fr": "le la les des du une et est dans que qui avec nous donc il elle sur pas ce sont ont alors",
        "de": "der das und ist nicht ein eine f\u00fcr wir sich auf zu dem wenn dann sind haben wird auch oder",
        "es": "el los las una es que por para del como se entonces tenemos si pero porque lo la m\u00e1s muy",
    }.items()
}


def language_consistency(
    completions: list, language: str | list[str] = "en", prefill: list[str] | None = None, **_: Any
) -> list[float]:
    r"""Words in the target language / words, of the reasoning; in [0, 1] (R1 v2 eq. 7).

    The reasoning is what stands in `<think>`, the whole completion where there is no such part; without words it scores
    0. `language` is one of en, zh, ja, ko, ru, fr, de, es, for all completions or as a column. A Han character is a
    word, and so is a run of two or more letters of any other script; numbers, names with digits, LaTeX commands, ASCII
    code and single letters are none. Words are told apart by script: Cyrillic is ru, Hangul ko, kana ja, and Han is zh
    or, in a sentence with kana, ja. Latin words have the language whose function words are most frequent in their
    sentence, en on a tie; a word with letters beyond ASCII is not English. Raises ValueError for another language.
    """
    targets = [language] * len(completions) if isinstance(language, str) else language
    unknown = sorted({str(target) for target in targets} - set(LANGUAGES))
    if unknown:
        raise ValueError(f"there is no language {unknown[0]!r}; use one of {', '.join(LANGUAGES)}")
    return [
        share(word_languages(thought(text)), target)
        for text, target in zip(texts_of(completions, prefill), targets, strict=True)
    ]


def thought(text: str) -> str:
    return reasoning(text) if "<think>" in text or "</think>" in text else text


def share(languages: list[str], target: str) -> float:
    return languages.count(target) / len(languages) if languages else 0.0


def word_languages(text: str) -> list[str]:
    """The language of each word, "other" where it is none of LANGUAGES."""
    prose = NOT_PROSE.sub(" ", TAG.sub(" ", text))
    return [language for sentence in SENTENCE_END.split(prose) for language in languages_of_sentence(sentence)]


def languages_of_sentence(sentence: str) -> list[str]:
    words = [(match.lastgroup or "", match[0]) for match in WORD.finditer(sentence)]
    words = [(script, word) for script, word in words if len(word) > 1 or script in ("han", "kana")]
    east = "ja" if any(script == "kana" for script, _ in words) else "zh"
    latin = latin_language([word.lower() for script, word in words if script == "latin"])
    by_script = {"han": east, "kana": "ja", "hangul": "ko", "cyrillic": "ru", "latin": latin}
    return [
        "other" if (script, latin) == ("latin", "en") and not is_english(word) else by_script.get(script, "other")
        for script, word in words
    ]


def is_english(word: str) -> bool:
    return word.replace("\u2019", "'").isascii()


def latin_language(words: list[str]) -> str:
    """The language with the most function words among `words`; the first of them, English, on a tie."""
    counts = Counter(words)
    return max(FUNCTION_WORDS, key=lambda language: sum(counts[word] for word in FUNCTION_WORDS[language]))
