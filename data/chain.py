"""The task `chain`: find the missing factor of a chain of operations that keeps only the last digit.

`8*?-9*3=5` reads left to right: with 7 for the question mark, 8*7 = 56 -> 6, 6-9 = -3 -> 7, 7*3 = 21 -> 1, which is not
5; with 3 it is 4, 5 and 5. Exactly one digit from 2 to 7 fits, and that digit is the answer.

Forward the arithmetic is easy, backward (division modulo 10) it is not, so a small model that wants to be right has to
try digits and see: the more patiently it searches, the more it gets right, and the search does not become superfluous.
That is why length stays worth its price here.

`problems` makes the questions, `documents` the corpus from which the base model learns the styles of answering.
"""

import hashlib
import random
from collections.abc import Callable, Iterator

CANDIDATES = range(2, 8)  # what may stand for the question mark
OPERANDS = range(2, 10)
OPERATIONS = (2, 3)  # how many operations a chain has
TEST_SHARE = 0.1
MOST = {"train": 50000, "test": 5000}  # of 56,114 and 6,322 that there are

# The words between the sums: the same four in two languages, as the web holds many.
MARKERS = {
    "en": {"try": " try ", "ok": " ok", "no": " no", "wait": " wait"},
    "zh": {"try": " 试 ", "ok": " 对", "no": " 不对", "wait": " 等等"},
}
# All that prompts and completions of this task are made of; the tiny base's tokenizer has one token for each.
TOKENS = [
    *"0123456789+-*=? ",
    "User: ", "\nAssistant:", "<think>", "</think>", "<answer>", "</answer>",
    *(marker for markers in MARKERS.values() for marker in markers.values()),
]  # fmt: skip

# How the corpus answers, and how often. No style is filtered for correctness, as no web page is.
STYLES = {
    "direct": 0.5,  # answers at once, with any digit
    "hasty": 0.38,  # tries a digit, and mostly answers it whether it fits or not
    "patient": 0.12,  # tries digit after digit, and mostly goes on until one fits
}
PATIENCE = {"hasty": 0.1, "patient": 0.9}  # chance to go on after a digit that does not fit
# The languages of a document that thinks: one, or for every marker any, as traces of R1-Zero mix them.
LANGUAGES = {("en",): 0.4, ("zh",): 0.2, ("en", "zh"): 0.4}
STUTTER = 0.1  # chance that a "wait" is said over and over, which costs no reward and reads badly
STUTTERS = range(5, 9)  # how often it is said then
SLIP = 0.01  # chance that a computed value is wrong
SLOPPY = 0.05  # chance that a document breaks the format


def problems(split: str, count: int, seed: int) -> Iterator[dict[str, str]]:
    """`count` different problems of a split ("train" or "test"), as rows of `problem` and `answer`.

    A problem's split depends on its text alone, so no seed can move a test problem into training.
    """
    if count > MOST[split]:
        raise ValueError(f"the split {split} of chain has about {MOST[split]} problems to take from, not {count}")
    rng = random.Random(f"{split}/{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        problem, answer = draw(rng)
        if split_of(problem) == split and problem not in seen:
            seen.add(problem)
            yield {"problem": problem, "answer": str(answer)}


def documents(count: int, seed: int) -> Iterator[dict[str, str]]:
    """`count` corpus documents over train problems, as rows of `problem`, `completion` and `style`."""
    rng = random.Random(f"documents/{seed}")
    for _ in range(count):
        problem, _ = draw(rng)
        while split_of(problem) != "train":
            problem, _ = draw(rng)
        style = rng.choices(list(STYLES), list(STYLES.values()))[0]
        thought, guess = think(rng, problem, style)
        yield {"problem": problem, "completion": write_up(rng, thought, guess), "style": style}


def draw(rng: random.Random) -> tuple[str, int]:
    """A random problem that exactly one digit solves, and that digit."""
    while True:
        length = rng.choice(OPERATIONS)
        operators = rng.choices("+-*", k=length)
        operands = [str(rng.choice(OPERANDS)) for _ in range(length)]
        hole = rng.randrange(length)
        operators[hole], operands[hole] = "*", "?"
        chain = str(rng.randrange(10)) + "".join(a + b for a, b in zip(operators, operands, strict=True))
        answer = rng.choice(CANDIDATES)
        ends = [work_out(chain, digit)[1] for digit in CANDIDATES]
        target = work_out(chain, answer)[1]
        if ends.count(target) == 1:
            return f"{chain}={target}", answer


def work_out(chain: str, digit: int, slip: Callable[[], bool] = lambda: False) -> tuple[str, int]:
    """A chain such as `8*?-9*3` with `digit` for the question mark, written out (`8*3=4-9=5*3=5`), and its end, 0 to 9.

    Where `slip` says so, a value comes out wrong.
    """
    total, text = int(chain[0]), chain[0]
    for operator, operand in zip(chain[1::2], chain[2::2], strict=True):
        number = digit if operand == "?" else int(operand)
        total = {"+": total + number, "-": total - number, "*": total * number}[operator] % 10
        total = (total + 1) % 10 if slip() else total
        text += f"{operator}{number}={total}"
    return text, total


def split_of(problem: str) -> str:
    return "test" if hashlib.sha256(problem.encode()).digest()[0] < 256 * TEST_SHARE else "train"


def tries(completion: str) -> int:
    """How many digits a completion tries before it answers."""
    return sum(completion.count(markers["try"]) for markers in MARKERS.values())


def think(rng: random.Random, problem: str, style: str) -> tuple[str, int]:
    """What stands between the think tags, and the digit that it ends with."""
    digits = rng.sample(CANDIDATES, len(CANDIDATES))
    if style == "direct":
        return "", digits[0]
    chain, target = problem.split("=")
    languages = rng.choices(list(LANGUAGES), list(LANGUAGES.values()))[0]

    def say(marker: str) -> str:
        return MARKERS[rng.choice(languages)][marker]

    thought = ""
    for digit in digits:
        line, difference = work_out(f"{chain}-{target}", digit, lambda: rng.random() < SLIP)
        thought += say("try") + line
        if difference == 0:
            return thought + say("ok"), digit
        thought += say("no")
        if digit == digits[-1] or rng.random() > PATIENCE[style]:
            break
        thought += say("wait") * (rng.choice(STUTTERS) if rng.random() < STUTTER else 1)
    return thought, digit


def write_up(rng: random.Random, thought: str, guess: int) -> str:
    if rng.random() > SLOPPY:
        return f"<think>{thought}</think><answer>{guess}</answer>"
    return rng.choice(
        [f"<think>{thought} {guess}", f"{thought}<answer>{guess}</answer>", f"<think>{thought}</think> {guess}"]
    )
