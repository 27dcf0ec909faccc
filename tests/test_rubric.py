import pytest

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
