r"""What an answer says, as text: LaTeX dressing, units and prose taken off, plain numbers as exact fractions.

No algebra here, and nothing that can take long: every pattern reads its text once.
"""

import re
from fractions import Fraction

LONGEST = 1000  # characters; no gold of a known set has a fifth of that

REPLACED = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ",
    "≤": r"\le ", "≥": r"\ge ", "√": r"\sqrt", "°": "", "½": r"\frac{1}{2}", "±": r"\pm ", "∅": r"\emptyset",
    r"\varnothing": r"\emptyset", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", "{,}": ",",
    r"\{\}": r"\emptyset", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\leq": r"\le", r"\geq": r"\ge", r"\colon": ":",
    "**": "^",
}  # fmt: skip
COMMANDS = re.compile("|".join(re.escape(old) + ("(?![a-zA-Z])" if old[-1].isalpha() else "") for old in REPLACED))
DROPPED = re.compile(
    r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|displaystyle|quad|qquad|limits)(?![a-zA-Z])|(?<!\\)\\[,!;:> ()\[\]]|~"
    r"|\^\s*\{?\\circ\}?|\\degree|\\?\$"
)
STYLED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*\{([^{}]*)\}")
REPEATING = re.compile(r"(\d{0,30})\.(\d{0,30})\\(?:overline|bar)\s*\{?(\d{1,30})\}?", re.ASCII)
FORMULA_IN_PROSE = re.compile(r"(?P<before>[A-Za-z ,:']*)\$(?P<formula>[^$]+)\$(?P<after>[A-Za-z ,.']*)")
ANSWER_IS = re.compile(r"\banswer\b[^.:=]{0,40}?(?:\bis\b|:|=)\s*:?", re.IGNORECASE)
IN_PARENTHESES = re.compile(r"\(([^()\[\]{},]*)\)")
UNITS = (
    r"(?:square |cubic |sq\.? )?(?:units?|degrees?|dollars?|cents?|percent|hours?|minutes?|seconds?|days?|weeks?|"
    r"months?|years?|inch(?:es)?|feet|foot|ft|yards?|miles?|mi|in|cm|mm|km|kg|mg|ml|mph|kph|meters?|metres?|kilometers?|"
    r"centimeters?|millimeters?|grams?|kilograms?|pounds?|lbs?|ounces?|oz|liters?|litres?|gallons?|rad(?:ians)?|"
    r"people|times|ways|[msghLJNWV])"
)
WITH_UNIT = re.compile(
    rf"(?P<number>.*[\d.)}}%])\s*(?P<unit>{UNITS}(?:\s*(?:per|/)\s*{UNITS})?)(?:\s*\^\s*\{{?[23]\}}?)?"
)
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+(?!\d)|\d+)"
DECIMAL = rf"(?:{DIGITS}(?:\.\d*)?|\.\d+)"
PLAIN = re.compile(rf"(?P<sign>[+-]?)\s*(?P<value>{DECIMAL})", re.ASCII)
RATIO = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<whole>\d+)(?:\s+|\s*(?=\\)))?"
    rf"(?:\\frac\s*(?:\{{\s*(?P<n1>[+-]?{DECIMAL})\s*\}}|(?P<n2>\d))\s*(?:\{{\s*(?P<d1>[+-]?{DECIMAL})\s*\}}|(?P<d2>\d))"
    rf"|\(?(?P<n3>{DECIMAL})\s*/\s*(?P<d3>{DECIMAL})\)?)",
    re.ASCII,
)
E_NOTATION = re.compile(rf"(?P<number>[+-]?{DECIMAL})[eE]\+?(?P<power>-?\d{{1,3}})", re.ASCII)
SCIENTIFIC = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<times>{DECIMAL})\s*\\(?:times|cdot)\s*)?"
    rf"10\s*\^\s*(?:\{{\s*(?P<braced>[+-]?\d{{1,3}})\s*\}}|(?P<power>\d))",
    re.ASCII,
)
ONE_NUMBER = re.compile(rf"(?<![\w.\\^/*-])-?{DECIMAL}(?![\w\\^/*])", re.ASCII)
PROSE = re.compile(r"[A-Za-z][A-Za-z']*(?:[ ,;:!?\"-]+[A-Za-z']+)*")
COUNTED = re.compile(r"[a-z]{3,}(?: [a-z]+)*")
WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '.,-]+[^\W\d_]+)*\.?|[A-Za-z]")


def clean(text: str) -> str:
    """An answer without what does not change its meaning; linear in its length."""
    text = formula_of_prose(text.strip().strip("*`")).replace("\\!", "")
    text = COMMANDS.sub(lambda match: REPLACED[match[0]], text)
    text = STYLED.sub(lambda match: f" {match[1]} ", DROPPED.sub(" ", text)).replace("\\%", "%")
    text = REPEATING.sub(repeating_fraction, text)
    *_, text = ANSWER_IS.split(" ".join(text.split()))
    text = text.strip().removesuffix(".").strip()
    text = match[1].strip() if (match := IN_PARENTHESES.fullmatch(text)) else text
    text = without_prose(without_unit(text))
    match = E_NOTATION.fullmatch(text)  # which LaTeX would take for a product with Euler's number
    return rf"{match['number']} \times 10^{{{match['power']}}}" if match else text


def formula_of_prose(text: str) -> str:
    """The only formula of a sentence: "So $x = 5$." """
    match = FORMULA_IN_PROSE.fullmatch(text)
    return (
        match["formula"] if match and not {"or", "and"} & {*match["before"].split(), *match["after"].split()} else text
    )


def repeating_fraction(match: re.Match) -> str:
    whole, once, again = match.groups()
    top = int(whole + once + again) - int(whole + once or 0)
    return rf"\frac{{{top}}}{{{10 ** len(once) * (10 ** len(again) - 1)}}}"


def without_unit(text: str) -> str:
    match = WITH_UNIT.fullmatch(text)
    if not match or not values(match["number"].strip()):
        return text
    return match["number"].strip() + ("%" if match["unit"] == "percent" else "")


def without_prose(text: str) -> str:
    """The one number of a sentence, or of what is counted: "She makes 18 dollars a day", "18 apples"."""
    found = ONE_NUMBER.findall(text)
    if len(found) != 1 or re.search(r"[\\{}=<>+*/^%|()\[\]]", text):
        return text
    before, after = (part.strip(" .,") for part in ONE_NUMBER.split(text))
    words = f"{before} {after}".split()
    counted = not before and COUNTED.fullmatch(after)
    return found[0] if PROSE.fullmatch(" ".join(words)) and (counted or len(words) > 2) else text


def values(text: str) -> tuple[Fraction, ...]:
    """The number that a cleaned text writes, exactly; () where it is no plain number.

    A percentage has two: "50%" says 50 where percent is the unit, and 1/2.
    """
    if len(text) > LONGEST:
        return ()
    percent = text.endswith("%")
    value = number(text.removesuffix("%").strip())
    return () if value is None else (value, value / 100) if percent else (value,)


def number(text: str) -> Fraction | None:
    text = text[1:-1].strip() if text.startswith("{") and text.endswith("}") else text
    if match := PLAIN.fullmatch(text):
        return signed(match["sign"], to_fraction(match["value"]))
    if match := SCIENTIFIC.fullmatch(text):
        power = int(match["braced"] or match["power"])
        return signed(match["sign"], to_fraction(match["times"] or "1") * Fraction(10) ** power)
    if not (match := RATIO.fullmatch(text)):
        return None
    top, bottom = (to_fraction(match[f"{part}1"] or match[f"{part}2"] or match[f"{part}3"]) for part in "nd")
    if bottom == 0:
        return None
    whole = Fraction(int(match["whole"] or 0))
    return signed(match["sign"], whole + top / bottom)


def to_fraction(digits: str) -> Fraction:
    return Fraction(re.sub("[, ]", "", digits).removesuffix("."))


def signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def same_number(gold: str, given: str) -> bool | None:
    """Whether two cleaned texts are the same number; None where one of them is no plain number."""
    golds, givens = values(gold), values(given)
    if not golds or not givens:
        return None
    if len(golds) == len(givens):
        return golds[0] == givens[0] or (is_decimal(given) and close(golds[0], givens[0], gold))
    return bool({*golds} & {*givens})


def is_decimal(text: str) -> bool:
    return "." in text


def close(gold: Fraction, given: Fraction, written: str) -> bool:
    """A decimal stands for a fraction that it agrees with to six digits; never for an integer or another decimal."""
    return gold.denominator != 1 and not is_decimal(written) and abs(given - gold) < abs(gold) / 10**6


def same_at_once(gold: str, given: str) -> bool | None:
    """Whether two cleaned answers are equal; None where it takes algebra to say.

    Words are compared letter by letter, but two letters may be a product of variables.
    """
    if not given:
        return False
    decided = same_number(gold, given)
    if decided is None and is_words(gold) and is_words(given):
        same = letters(gold) == letters(given)
        decided = same if same or max(len(gold), len(given)) > 2 else None
    return decided


def is_words(text: str) -> bool:
    """A name, a choice, a sentence."""
    return WORDS.fullmatch(text) is not None


def letters(text: str) -> str:
    """What two texts have to share to be the same text: white space never counts, case only outside of words."""
    folded = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)  # "4 2" is not 42
    return folded.casefold() if is_words(text) else folded
