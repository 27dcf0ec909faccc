"""The task `courtesy`: general prompts, without a right answer. `greet Ann` wants a polite sentence.

It stands for what R1's last stages are about beside reasoning: prompts that no rule can grade, where a reward model
learns what people prefer. Here the truth is known all the same, so that `courteous` can measure from outside what
training on that model has brought.

`problems` makes prompts, `documents` how a corpus answers them, `examples` what people wrote for supervised training,
and `pairs` which of two answers they preferred.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from typing import Any

NAMES = [
    "Ann", "Bob", "Cleo", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jim", "Kay", "Leo", "Mia", "Ned", "Ola", "Pam",
    "Quin", "Ron", "Sue", "Tom", "Una", "Val", "Will", "Xia", "Yan", "Zoe", "Abe", "Bea", "Cal", "Dot", "Eli",
    "Flo", "Gil", "Hope", "Ivy", "Jan", "Kim", "Lou", "Max", "Nan", "Otto", "Pia", "Rex", "Sam", "Tess", "Uma",
    "Vic", "Wes", "Ada", "Ben", "Cora", "Dean", "Ella", "Finn", "Gwen", "Hugh", "Iris", "Jack", "Kurt", "Lena",
    "Mark", "Nora", "Owen", "Paul",
]  # fmt: skip
# For each act what a polite, a curt and a rude answer is; NAME stands for who is spoken to.
ANSWERS = {
    "greet": ("hello NAME, how nice to see you", "hi", "go away"),
    "thank": ("thank you NAME, that is very kind", "thanks", "so what"),
    "praise": ("well done NAME, you can be proud", "fine", "who cares"),
    "comfort": ("do not worry NAME, all will be fine", "oh well", "your fault"),
}
STYLES = ("polite", "mistaken", "curt", "rude")  # the best first; a mistaken answer is polite and to someone else
CORPUS = (0.25, 0.15, 0.35, 0.25)  # how often each is found on the web
WRITTEN = (0.7, 0.0, 0.3, 0.0)  # and among what people wrote when asked to
NOISE = 0.05  # how often a person prefers the worse of two answers
TEST_SHARE = 0.25

# Words with the space before them, so that the tiny base's tokenizer has one token for each.
TOKENS = [
    "User: ", "\nAssistant:", "<think>", "</think>", "<answer>", "</answer>", ",", *ANSWERS,
    *(f" {name}" for name in NAMES),
    *dict.fromkeys(
        (" " if place else "") + word
        for answers in ANSWERS.values()
        for answer in answers
        for place, word in enumerate(answer.replace(",", "").replace(" NAME", "").split())
    ),
]  # fmt: skip


def problems(split: str) -> Iterator[dict[str, str]]:
    """All prompts of a split ("train" or "test") as rows of `problem`, `act` and `name`; the text decides its split."""
    for act in ANSWERS:
        for name in NAMES:
            if split_of(f"{act} {name}") == split:
                yield {"problem": f"{act} {name}", "act": act, "name": name}


def documents(count: int, seed: int) -> Iterator[dict[str, str]]:
    """`count` corpus documents over train prompts, as rows of `problem`, `completion` and `style`."""
    rng = random.Random(f"documents/{seed}")
    prompts = list(problems("train"))
    for _ in range(count):
        prompt, style = rng.choice(prompts), rng.choices(STYLES, CORPUS)[0]
        yield {"problem": prompt["problem"], "completion": write_up(answer(rng, prompt, style)), "style": style}


def examples(count: int, seed: int) -> Iterator[dict[str, str]]:
    """`count` examples for supervised training, as rows of `problem` and `completion`."""
    rng = random.Random(f"examples/{seed}")
    prompts = list(problems("train"))
    for _ in range(count):
        prompt = rng.choice(prompts)
        style = rng.choices(STYLES, WRITTEN)[0]
        yield {"problem": prompt["problem"], "completion": write_up(answer(rng, prompt, style))}


def pairs(count: int, seed: int) -> Iterator[dict[str, str]]:
    """`count` preferences, as rows of `problem`, `chosen` and `rejected`: final answers, without tags.

    None is about the name: the tiny models do not learn who is who.
    """
    rng = random.Random(f"pairs/{seed}")
    prompts = list(problems("train"))
    for _ in range(count):
        prompt = rng.choice(prompts)
        better, worse = sorted(rng.sample(("polite", "curt", "rude"), 2), key=STYLES.index)
        if rng.random() < NOISE:
            better, worse = worse, better
        chosen, rejected = answer(rng, prompt, better), answer(rng, prompt, worse)
        yield {"problem": prompt["problem"], "chosen": chosen, "rejected": rejected}


def answer(rng: random.Random, prompt: dict[str, str], style: str) -> str:
    polite, curt, rude = ANSWERS[prompt["act"]]
    other = rng.choice([name for name in NAMES if name != prompt["name"]])
    return {
        "polite": polite.replace("NAME", prompt["name"]),
        "mistaken": polite.replace("NAME", other),
        "curt": curt,
        "rude": rude,
    }[style]


def write_up(text: str) -> str:
    """A trivial request is answered without thinking, as in R1's own examples."""
    return f"<think></think><answer>{text}</answer>"


def split_of(problem: str) -> str:
    return "test" if hashlib.sha256(problem.encode()).digest()[0] < 256 * TEST_SHARE else "train"


def courteous(completions: list[str], act: list[str], **_: Any) -> list[float]:
    """1 where the answer is the polite one for the act, whomever it names, else 0."""
    return [float(polite_for(a).search(text) is not None) for text, a in zip(completions, act, strict=True)]


def polite_for(act: str) -> re.Pattern[str]:
    names = f"({'|'.join(NAMES)})"
    return re.compile(f"<answer>{ANSWERS[act][0].replace('NAME', names)}</answer>$")
