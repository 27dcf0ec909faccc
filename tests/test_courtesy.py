import hashlib
import re
from collections import Counter

import pytest

from r1lite.plugins import load_module
from r1lite.problems import load_problems
from r1lite.prompts import render
from r1lite.stages.base import build_tokenizer
from rewards.format import think_answer

chain, courtesy = load_module("data/chain.py"), load_module("data/courtesy.py")
EVERY = [f"{act} {name}" for act in courtesy.ANSWERS for name in courtesy.NAMES]


def style_of(problem: str, answer: str) -> str:
    """By another road than the generator's: what is left when the names are taken out."""
    act, name = problem.split()
    (spoken_to,) = re.findall(rf"\b(?:{'|'.join(courtesy.NAMES)})\b", answer) or [None]
    place = courtesy.ANSWERS[act].index(answer.replace(spoken_to, "NAME") if spoken_to else answer)
    return ("polite" if spoken_to == name else "mistaken", "curt", "rude")[place]


def test_a_prompt_is_in_one_split_by_its_text_alone():
    splits = {split: [row["problem"] for row in courtesy.problems(split)] for split in ("train", "test")}
    assert Counter(splits["train"] + splits["test"]) == Counter(EVERY)
    for split, mine in splits.items():
        assert all((hashlib.sha256(text.encode()).digest()[0] < 64) == (split == "test") for text in mine)
    assert abs(len(splits["test"]) / len(EVERY) - courtesy.TEST_SHARE) < 0.05
    assert all(row["problem"] == f"{row['act']} {row['name']}" for row in courtesy.problems("test"))


@pytest.mark.parametrize("make", ["documents", "examples", "pairs"])
def test_what_is_learned_is_never_about_a_test_prompt_and_follows_from_the_seed(make):
    rows, again, other = (list(getattr(courtesy, make)(2000, seed)) for seed in (1, 1, 2))
    assert len(rows) == 2000 and rows == again != other
    test = {row["problem"] for row in courtesy.problems("test")}
    train = {row["problem"] for row in courtesy.problems("train")}
    assert {row["problem"] for row in rows} == train
    assert not train & test


def test_the_card_has_all_splits_and_no_answers():
    problems = load_problems("data/courtesy.yaml#test")
    assert {problem.answer for problem in problems} == {""}
    assert {frozenset(problem.columns) for problem in problems} == {frozenset({"act", "name"})}
    assert len({problem.id for problem in problems}) == len(problems)
    assert all(problem.columns["completion"] for problem in load_problems("data/courtesy.yaml#examples"))
    assert all(problem.columns["chosen"] for problem in load_problems("data/courtesy.yaml#pairs", 50))


@pytest.mark.parametrize(("make", "shares"), [("documents", "CORPUS"), ("examples", "WRITTEN")])
def test_styles_are_as_often_as_stated(make, shares):
    rows = list(getattr(courtesy, make)(4000, 0))
    completions = [re.fullmatch("<think></think><answer>(.*)</answer>", row["completion"])[1] for row in rows]
    styles = [style_of(row["problem"], text) for row, text in zip(rows, completions, strict=True)]
    assert make == "examples" or styles == [row["style"] for row in rows]
    for style, share in zip(courtesy.STYLES, getattr(courtesy, shares), strict=True):
        assert abs(styles.count(style) / len(styles) - share) < 0.03
    assert think_answer([row["completion"] for row in rows[:100]]) == [1.0] * 100


def test_people_prefer_the_better_style_but_for_a_few_slips():
    rows = list(courtesy.pairs(4000, 0))
    ranks = [[courtesy.STYLES.index(style_of(row["problem"], row[n])) for n in ("chosen", "rejected")] for row in rows]
    assert all(chosen != rejected for chosen, rejected in ranks)
    slips = [chosen > rejected for chosen, rejected in ranks]
    assert abs(sum(slips) / len(slips) - courtesy.NOISE) < 0.015
    polite, _, curt, rude = range(4)  # none is about the name
    assert {tuple(sorted(pair)) for pair in ranks} == {(polite, curt), (polite, rude), (curt, rude)}
    assert not any("<" in row["chosen"] + row["rejected"] for row in rows)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think></think><answer>hello Ann, how nice to see you</answer>", 1),
        ("<think>so</think><answer>hello Ann, how nice to see you</answer>\n", 1),
        ("<answer>hello Ann, how nice to see you</answer>", 1),  # its shape is another reward's business
        ("<think></think><answer>hello Bob, how nice to see you</answer>", 1),  # whomever it names
        ("<think></think><answer>hello NAME, how nice to see you</answer>", 0),
        ("<think></think><answer>hello , how nice to see you</answer>", 0),
        ("<think></think><answer>hello Ann Bob, how nice to see you</answer>", 0),
        ("<think></think><answer>well done Ann, you can be proud</answer>", 0),
        ("<think></think><answer>hi</answer>", 0),
        ("<think></think><answer>go away</answer>", 0),
        ("<think></think><answer>hello Ann, how nice to see you", 0),
        ("<answer>hello Ann, how nice to see you</answer> go away", 0),
        ("<think></think><answer>go away hello Ann, how nice to see you</answer>", 0),
        ("hello Ann, how nice to see you", 0),
        ("", 0),
    ],
)
def test_courteous(completion, expected):
    assert courtesy.courteous([completion], act=["greet"], name=["Ann"], answer=[""]) == [expected]


def test_courteous_goes_by_each_rows_own_act():
    rows = list(courtesy.problems("test"))
    polite = [courtesy.ANSWERS[row["act"]][0].replace("NAME", row["name"]) for row in rows]
    acts = [row["act"] for row in rows]
    assert courtesy.courteous([courtesy.write_up(text) for text in polite], act=acts) == [1.0] * len(rows)
    following = dict(zip(courtesy.ANSWERS, [*list(courtesy.ANSWERS)[1:], "greet"], strict=True))
    others = [following[act] for act in acts]
    assert courtesy.courteous([courtesy.write_up(text) for text in polite], act=others) == [0.0] * len(rows)


def test_the_tokenizer_reads_and_writes_all_of_it_a_token_a_word():
    tokenizer = build_tokenizer(list(dict.fromkeys([*chain.TOKENS, *courtesy.TOKENS])))
    texts = [f"{row['problem']}{row['completion']}" for row in courtesy.documents(300, 0)]
    texts += [render("plain", problem) for problem in EVERY]
    texts += [row[name] for row in courtesy.pairs(300, 0) for name in ("chosen", "rejected")]
    encoded = tokenizer(texts).input_ids
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)
    assert tokenizer.batch_decode(encoded) == texts
    assert len(tokenizer("hello Ann, how nice to see you").input_ids) == 8
