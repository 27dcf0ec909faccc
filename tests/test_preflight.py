"""A reward is proven on its recipe's own problems before anything is trained."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from test_cli import r1lite

from r1lite.models import load_tokenizer, locate
from r1lite.preflight import prove, prove_golds
from r1lite.recipe import RecipeError, load_recipe, prove_rewards
from r1lite.records import Problem
from r1lite.rubric import SET
from r1lite.stages.config import Reward
from r1lite.stages.sample import Config

REWARDS = """
import time
from rewards.math import accuracy

def good(completions, answer, **_):
    return accuracy(completions, answer)

def brevity(completions, **_):
    return [1 / (1 + len(c)) for c in completions]

def raises(completions, **_):
    raise KeyError("gold")

def short(completions, **_):
    return [1.0]

def text(completions, **_):
    return ["high"] * len(completions)

def endless(completions, **_):
    return [float("inf")] * len(completions)

def a_tuple(completions, **_):
    return tuple(1.0 for _ in completions)

def no_columns(completions):
    return [1.0] * len(completions)

def wants(completions, solution, **_):
    return [1.0] * len(completions)

def messages(completions, **_):
    return [float(len(c[0]["content"]) > 1) for c in completions]

def substring(completions, answer, **_):
    return [float(a in c) for c, a in zip(completions, answer)]

def always(completions, answer, **_):
    return [1.0] * len(completions)

def never(completions, answer, **_):
    return [None] * len(completions)

def half(completions, answer, **_):
    return [a / 2 for a in accuracy(completions, answer)]

def picky(completions, **_):
    raise ValueError("no such gold")

def exits(completions, **_):
    import os
    os._exit(0)

async def later(completions, answer, **_):
    return accuracy(completions, answer)

class Lenient:
    def __init__(self, factor): self.factor = factor
    def __call__(self, completions, **_): return [self.factor for _ in completions]
"""


@pytest.fixture
def recipe(tmp_path):
    """recipes/tiny/zero.yaml with another reward, on problems of the test's own."""
    (tmp_path / "mine.py").write_text(REWARDS)
    problems = [{"problem": f"What is {n} and {n}?", "answer": str(2 * n), "level": n} for n in range(1, 40)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, problems)))

    def write(name: str, *rows: dict, **fields):
        data = yaml.safe_load(Path("recipes/tiny/zero.yaml").read_text())
        del data["stages"]["report"], data["stages"]["zero"]["probe"]
        use = name if ":" in name else f"{tmp_path}/mine.py:{name}"
        data["stages"]["zero"] |= {"problems": f"{tmp_path}/p.jsonl", "rewards": [{"use": use, **fields}]}
        if rows:
            (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return load_recipe(path)

    return write


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("good", {}),
        ("later", {}),
        ("rewards.math:accuracy", {}),
        ("rewards.exact:exact", {}),
        ("trl.rewards:accuracy_reward", {"messages": True, "columns": {"solution": "answer"}, "preflight": False}),
    ],
)
def test_a_right_reward_is_proven(recipe, name, fields):
    (proof,) = prove_rewards(recipe(name, **fields), ["zero"])
    if fields.get("preflight", True):
        assert (proof.golds, proof.shuffled, proof.hacked, proof.judged) == (1.0, 0.0, 0, True)
        assert 0 < proof.p50 <= proof.p99
    else:
        assert proof.skipped == "preflight: off"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("brevity", {}),
        ("rewards.format:think_answer", {}),
        ("messages", {"messages": True}),
        ("Lenient", {"args": {"factor": 0.5}}),
    ],
)
def test_a_reward_without_a_gold_is_run_and_not_judged(recipe, name, fields):
    (proof,) = prove_rewards(recipe(name, **fields), ["zero"])
    assert not proof.judged
    assert proof.golds is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"mine.py:raises raises KeyError: 'gold' \(.*mine.py, line 12\)"),
        ("short", "mine.py:short must return a list of 39 scores, one a completion; got"),
        ("text", "mine.py:text must score with finite numbers or None; got 'high'"),
        ("endless", "mine.py:endless must score with finite numbers"),
        ("a_tuple", "mine.py:a_tuple must return a list of 39 scores"),
        ("no_columns", r"mine.py:no_columns must take the columns that it does not use; end its parameters with \*\*_"),
        ("wants", r"mine.py:wants asks for 'solution', .* there are: answer, .* `columns: {solution: answer}`"),
        ("messages", r"mine.py:messages raises TypeError: .*; set `messages: true`"),
        ("substring", r"mine.py:substring falls for \d+ hacks, such as"),
        ("always", "mine.py:always scores other problems' answers 1.00 on average, not about 0"),
        (
            "never",
            "mine.py:never scores 39 of 39 gold answers other than 1, first None for '2' of 'What is 1 and 1[?]'",
        ),
        ("half", "mine.py:half scores 39 of 39 gold answers other than 1, first 0.5"),
        ("picky", r"mine.py:picky raises ValueError: no such gold \(.*mine.py, line \d+\)"),
        ("exits", "mine.py:exits ended its process"),
    ],
)
def test_a_wrong_reward_is_named(recipe, name, message):
    with pytest.raises(RecipeError, match=message) as error:
        prove_rewards(recipe(name), ["zero"])
    assert "stages.zero.rewards.0: " in str(error.value)


def test_a_reward_that_hangs_is_named(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("r1lite.preflight.SECONDS", 1.0)
    (tmp_path / "stuck.py").write_text("def stuck(completions, **_):\n    while True: pass\n")
    with pytest.raises(RecipeError, match="stuck took more than 1 s for 39 gold completions"):
        prove_rewards(recipe(f"{tmp_path}/stuck.py:stuck"), ["zero"])


def test_the_proof_goes_through_the_models_own_template(recipe, toy_model, tmp_path):
    """One that has opened the thinking: a completion that opens it again is malformed."""
    tokenizer = load_tokenizer(toy_model)
    tokenizer.chat_template = "{{ messages[0].content }}<think>\n"
    shutil.copytree(toy_model, tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe("rewards.format:think_answer")
    chat = [f"stages.zero.model={tmp_path}/model", "prompt=chat"]
    (proof,) = prove_rewards(load_recipe(tmp_path / "recipe.yaml", chat), ["zero"])
    assert proof.golds == 1.0
    (tmp_path / "naive.py").write_text(
        "def naive(completions, **_):\n    return [float(c[0]['content'].startswith('<think>')) for c in completions]\n"
    )
    recipe(f"{tmp_path}/naive.py:naive")
    (proof,) = prove_rewards(load_recipe(tmp_path / "recipe.yaml", chat), ["zero"])
    assert proof.golds == 0.0


def test_a_problem_that_is_its_own_answer_is_found(recipe):
    """accuracy does algebra, so on sums the prompt's echo is right; another grader is needed there."""
    sums = [{"problem": f"{n}+{n}", "answer": str(2 * n)} for n in range(1, 9)]
    with pytest.raises(RecipeError, match=r"falls for 1 hacks, such as '<think>so</think><answer>1\+1</answer>'"):
        prove_rewards(recipe("rewards.math:accuracy", *sums), ["zero"])
    (proof,) = prove_rewards(recipe("rewards.exact:exact", *sums), ["zero"])
    assert proof.hacked == 0


def test_preflight_off_skips_the_proof(recipe):
    (proof,) = prove_rewards(recipe("half", preflight=False), ["zero"])
    assert proof.skipped == "preflight: off"


def test_a_gold_that_cannot_be_read_is_an_error_that_names_it(recipe, toy_model):
    rows = [{"problem": "1+1", "answer": "2"}, {"problem": "1/2", "answer": "\\frac{1}{"}]
    with pytest.raises(RecipeError, match=r"scores 1 of 2 gold answers other than 1, first 0.0 for '.+frac\{1\}\{'"):
        prove_rewards(recipe("rewards.math:accuracy", *rows), ["zero"])
    problems = [Problem(**row) for row in rows]
    accuracy = Reward(use="rewards.math:accuracy")
    tokenizer = load_tokenizer(toy_model)
    prove_golds(accuracy, locate, "plain", tokenizer, problems[:1], "mine.jsonl")
    with pytest.raises(ValueError, match=r"mine.jsonl: 1 of 2 gold answers do not score 1 by rewards.math:accuracy"):
        prove_golds(accuracy, locate, "plain", tokenizer, problems, "mine.jsonl")


def test_check_prints_the_proofs_and_exits_2_where_one_fails(recipe, tmp_path):
    recipe("good")
    done = r1lite("check", str(tmp_path / "recipe.yaml"))
    assert done.returncode == 0, done.stderr
    assert "proven" in done.stdout
    recipe("always")
    done = r1lite("check", str(tmp_path / "recipe.yaml"))
    assert done.returncode == 2
    assert "fails" in done.stdout
    assert "mine.py:always" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["raises", "short", "text"])
def test_a_run_stops_before_training_and_names_the_reward(recipe, tmp_path, name):
    recipe(name)
    done = r1lite("run", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert f"mine.py:{name}" in done.stderr
    assert not list((tmp_path / "runs").glob("*/*")), "no stage was started"


def test_a_reward_is_proven_on_the_sets_that_it_is_about_alone(tmp_path):
    """Golds that it cannot read are no fault where it is not asked about them."""
    for name, answer in (("sums", "{}"), ("words", "word{}")):
        rows = [{"problem": f"{name} {n}", "answer": answer.format(n), "level": n} for n in range(1, 9)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text(
        "def digits(completions, answer, problem_set=None, **_):\n"
        "    return [float(a.isdigit() and f'<answer>{a}</answer>' in c and 'so' in c)\n"
        "            for c, a in zip(completions, answer)]\n"
    )
    sums, words = (str(tmp_path / f"{name}.jsonl") for name in ("sums", "words"))

    def faults_of(about) -> list[str]:
        settings = {
            "kind": "sample", "model": "data/tiny_base", "prompt": "plain", "problems": [words, sums], "samples": 1,
            "max_tokens": 8, "rewards": [{"use": f"{tmp_path}/mine.py:digits", "about": about}],
        }  # fmt: skip
        (proof,) = prove({"traces": Config.model_validate(settings)}, ["traces"])
        assert proof.judged
        return proof.faults

    assert [fault.split("; ")[0] for fault in faults_of(None)] == [
        f"the reward {tmp_path}/mine.py:digits scores 8 of 16 gold answers other than 1, first 0.0 for 'word1' of 'words 1'"
    ]
    assert faults_of([sums]) == []
    assert "scores 8 of 8 gold answers" in faults_of([words])[0]


def test_golds_of_other_sets_are_not_looked_at_when_a_stage_starts(toy_model):
    problems = [Problem("1+1", "2", {SET: "sums"}), Problem("greet Ann", "", {SET: "general"})]
    tokenizer = load_tokenizer(toy_model)
    accuracy = Reward(use="rewards.math:accuracy", about=["sums"])
    prove_golds(accuracy, locate, "plain", tokenizer, problems, "both")
    prove_golds(accuracy.model_copy(update={"about": ["neither"]}), locate, "plain", tokenizer, problems, "both")
    with pytest.raises(ValueError, match="both: 1 of 2 gold answers do not score 1"):
        prove_golds(accuracy.model_copy(update={"about": None}), locate, "plain", tokenizer, problems, "both")
