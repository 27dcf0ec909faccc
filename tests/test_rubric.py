import asyncio
import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1lite import rubric
from r1lite.engines import Completion
from r1lite.models import load_tokenizer
from r1lite.records import Problem
from r1lite.rubric import grade, is_async, load_reward, scores_of
from r1lite.stages.config import Reward

FILE = """
from dataclasses import dataclass

@dataclass
class Limit:
    most: int

def brevity(completions, most=10, **_):
    return [float(len(c) <= Limit(most).most) for c in completions]

async def slow(completions, **_):
    return [0.5 for _ in completions]

def unsure(completions, **_):
    return [None for _ in completions]

def text(completions, **_):
    return ["high" for _ in completions]

def nothing(completions, **_):
    return [float("nan") for _ in completions]

def endless(completions, **_):
    return [float("inf") for _ in completions]

def flags(completions, **_):
    return [c == "a" for c in completions]

def by_solution(completions, solution, **_):
    return [float(c == s) for c, s in zip(completions, solution)]

def open_r1(completions, **_):
    return [float(completion[0]["content"] == "a") for completion in completions]

class Shorter:
    def __init__(self, than=2):
        self.than = than

    def __call__(self, completions, **_):
        return [float(len(c) < self.than) for c in completions]

class Later(Shorter):
    async def __call__(self, completions, **_):
        return [float(len(c) < self.than) for c in completions]

shorter, later = Shorter(), Later()

def model_of(completions, model, **_):
    return [float(model.endswith("tiny_base")) for _ in completions]

def short(completions, **_):
    return [1.0]

def only_b(completions, prompts, completion_ids, answer, problem_set, level, log_metric, trainer_state, unit=1, **others):
    lists = [prompts, completion_ids, answer, problem_set, level, *(v for v in others.values() if isinstance(v, list))]
    assert {len(each) for each in lists} == {len(completions)}, "all columns are cut alike"
    assert set(problem_set) == {"b"} and level == [int(a) for a in answer]
    assert completions == [f"c{a}" for a in answer] == [c[0].replace("i", "c") for c in completion_ids]
    assert trainer_state == "state"
    log_metric("rows", len(completions))
    return [unit * float(a) for a in answer]

async def only_b_later(**columns):
    return only_b(**columns)

class OnlyB:
    def __init__(self, unit=1): self.unit = unit
    def __call__(self, **columns): return only_b(**columns, unit=self.unit)

class OnlyBLater(OnlyB):
    async def __call__(self, **columns): return only_b(**columns, unit=self.unit)

def one_too_many(completions, **_):
    return [1.0] * (len(completions) + 1)

def half_sure(completions, **_):
    return [None if number else 1.0 for number, _ in enumerate(completions)]

def sees(prompts, completions, completion_ids, answer, level, **_):
    return [float(p[-1] == ":" and c == "42" and i == [7, 5, 1] and a == "7" and v == 3)
            for p, c, i, a, v in zip(prompts, completions, completion_ids, answer, level)]
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return lambda name, **fields: load_reward(Reward(use=f"{path}:{name}", **fields))


def test_a_reward_from_a_file_gets_its_args_and_its_name(plugin):
    reward = plugin("brevity", args={"most": 2})
    assert reward(completions=["ab", "abc"], answer=["", ""]) == [1.0, 0.0]
    assert reward.__name__ == "brevity"


def test_a_coroutine_function_stays_one_so_that_trl_awaits_several_at_once(plugin):
    from trl.trainer.grpo_trainer import is_async_callable

    for name, expected in (("slow", [0.5, 0.5]), ("later", [1.0, 0.0])):
        reward = plugin(name)
        assert is_async(reward) and is_async_callable(reward)
        assert scores_of(reward, completions=["a", "bb"]) == expected
    assert not is_async(plugin("brevity"))


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("unsure", {}, [None, None]),
        ("nothing", {}, [None, None]),  # NaN is no score in TRL
        ("flags", {}, [1.0, 0.0]),
        ("by_solution", {"columns": {"solution": "answer"}}, [1.0, 0.0]),
        ("open_r1", {"messages": True}, [1.0, 0.0]),
        ("shorter", {}, [1.0, 0.0]),
        ("Shorter", {"args": {"than": 3}}, [1.0, 1.0]),
        ("model_of", {"model": "data/tiny_base"}, [1.0, 1.0]),
    ],
)
def test_ways_to_plug_in(plugin, name, fields, expected):
    assert plugin(name, **fields)(completions=["a", "bb"], answer=["a", "a"]) == expected


def test_a_reward_of_trl_itself():
    reward = load_reward(Reward(use="trl.rewards:think_format_reward", messages=True))
    assert reward(completions=["<think>a</think>b", "b"]) == [1.0, 0.0]


@pytest.mark.parametrize("name", ["text", "endless", "short"])
def test_what_is_no_score_is_an_error_that_names_the_reward(plugin, name):
    with pytest.raises(ValueError, match=rf"the reward .*mine.py:{name} must"):
        plugin(name)(completions=["a", "b"])


def test_grade_calls_a_reward_as_the_trainer_does(plugin, toy_model):
    tokenizer = load_tokenizer(toy_model)
    problems = [Problem("1+1", "7", {"level": 3}), Problem("1+2", "8", {"level": 3})]
    end = tokenizer.eos_token_id
    ids = tokenizer("42").input_ids
    groups = [[Completion([*ids, end], [], False)] * 2, [Completion(ids, [], True)]]
    texts, scores, _ = grade(plugin("sees"), tokenizer, "plain", problems, groups)
    assert texts == ["42"] * 3
    assert scores == [1.0, 1.0, 0.0]


def test_chat_completions_come_as_messages_and_rewards_learn_what_the_template_has_written(toy_model):
    tokenizer = load_tokenizer(toy_model)
    tokenizer.chat_template = "{{ messages[0].content }}<think>\n"
    seen = []

    def spy(prompts, completions, prefill, log_metric, **_):
        seen.append((prompts[0][0]["role"], completions[0][0], prefill))
        log_metric("spy/seen", 1.0)
        return [0.0]

    group = [Completion(tokenizer("42").input_ids, [], False)]
    _, _, metrics = grade(spy, tokenizer, "chat", [Problem("1+1", "2")], [group])
    assert metrics == {"spy/seen": 1.0}
    assert seen == [("user", {"role": "assistant", "content": "42"}, ["<think>"])]


def call_about(reward, sets: list[str]) -> tuple[list, list]:
    """Scores of a completion for each set, whose answer is its place; and what was logged."""
    logged = []
    places = range(len(sets))
    scores = reward(
        completions=[f"c{place}" for place in places],
        prompts=[f"p{place}" for place in places],
        completion_ids=[[f"i{place}"] for place in places],
        problem_set=sets,
        answer=[str(place) for place in places],
        level=list(places),
        prefill=[""] * len(sets),
        trainer_state="state",
        log_metric=lambda *metric: logged.append(metric),
        log_extra=None,
    )
    return (asyncio.run(scores) if inspect.iscoroutine(scores) else scores), logged


ABOUT_B = [
    ("only_b", {}, 1),
    ("only_b", {"args": {"unit": 3}}, 3),
    ("only_b_later", {}, 1),
    ("OnlyB", {"args": {"unit": 2}}, 2),
    ("OnlyBLater", {"args": {"unit": 2}}, 2),
]


@pytest.mark.parametrize(("name", "fields", "unit"), ABOUT_B, ids=[str(row[:2]) for row in ABOUT_B])
def test_a_reward_sees_the_rows_that_it_is_about_and_scores_no_others(plugin, name, fields, unit):
    reward = plugin(name, about=["b", "elsewhere"], **fields)
    assert is_async(reward) == name.endswith(("later", "Later")), "TRL awaits what it awaited before"
    scores, logged = call_about(reward, ["a", "b", "c", "b", "b"])
    assert scores == [None, 1.0 * unit, None, 3.0 * unit, 4.0 * unit]
    assert logged == [("rows", 3)]
    assert call_about(reward, ["b", "b"])[0] == [0.0, 1.0 * unit]
    assert call_about(reward, ["a", "c"]) == ([None, None], []), "a function is not called for nothing"
    assert call_about(reward, []) == ([], [])


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_every_score_is_at_its_own_row(sets):
    def score(completions, **_):
        return [float(text[1:]) for text in completions]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rubric, "load_function", lambda _: score)
        reward = load_reward(Reward(use="any:score", about=["a", "b"]))
    scores, _ = call_about(reward, sets)
    assert scores == [float(place) if name in "ab" else None for place, name in enumerate(sets)]


def test_a_wrong_number_of_scores_is_told_in_terms_of_the_rows_that_it_saw(plugin):
    with pytest.raises(ValueError, match="one_too_many must return a list of 2 scores"):
        call_about(plugin("one_too_many", about=["b"]), ["b", "a", "b"])


def test_no_score_for_a_row_that_it_is_about_stays_none(plugin):
    assert call_about(plugin("half_sure", about=["b"]), ["a", "b", "b"])[0] == [None, 1.0, None]


def test_messages_and_renamed_columns_are_of_the_same_rows(plugin):
    reward = plugin("open_r1", messages=True, about=["b"])
    assert reward(completions=["a", "a", "x"], problem_set=["a", "b", "b"]) == [None, 1.0, 0.0]
    reward = plugin("by_solution", columns={"solution": "answer"}, about=["b"])
    assert reward(completions=["x", "y"], problem_set=["a", "b"], answer=["x", "y"]) == [None, 1.0]


def test_a_reward_about_some_sets_says_so_where_no_sets_are_named(plugin):
    with pytest.raises(ValueError, match="about"):
        plugin("brevity", about=["b"])(completions=["a"], answer=["a"])
