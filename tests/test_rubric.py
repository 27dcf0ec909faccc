import pytest

from r1lite.engines import Completion
from r1lite.models import load_tokenizer
from r1lite.records import Problem
from r1lite.rubric import grade, load_reward
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

def endless(completions, **_):
    return [float("nan") for _ in completions]

def short(completions, **_):
    return [1.0]

def sees(prompts, completions, completion_ids, answer, level, **_):
    return [float(p[-1] == ":" and c == "42" and i == [7, 5, 1] and a == "7" and v == 3)
            for p, c, i, a, v in zip(prompts, completions, completion_ids, answer, level)]
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return lambda name, **args: load_reward(Reward(use=f"{path}:{name}", args=args))


def test_a_reward_from_a_file_gets_its_args_and_its_name(plugin):
    reward = plugin("brevity", most=2)
    assert reward(completions=["ab", "abc"], answer=["", ""]) == [1.0, 0.0]
    assert reward.__name__ == "brevity"


def test_coroutines_are_awaited_and_none_is_a_score(plugin):
    assert plugin("slow")(completions=["a", "b"]) == [0.5, 0.5]
    assert plugin("unsure")(completions=["a"]) == [None]


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
    texts, scores = grade(plugin("sees"), tokenizer, "plain", problems, groups)
    assert texts == ["42"] * 3
    assert scores == [1.0, 1.0, 0.0]


def test_chat_completions_come_as_messages(toy_model):
    tokenizer = load_tokenizer(toy_model)
    seen = []

    def spy(prompts, completions, **_):
        seen.append((prompts[0][0]["role"], completions[0][0]))
        return [0.0]

    grade(spy, tokenizer, "chat", [Problem("1+1", "2")], [[Completion(tokenizer("42").input_ids, [], False)]])
    assert seen == [("user", {"role": "assistant", "content": "42"})]
