"""The eval stage with scripted engines, and with the real one killed in the middle."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import r1lite

from r1lite.artifacts import Artifact, Spec
from r1lite.engines import Completion, Finished
from r1lite.models import load_tokenizer
from r1lite.plugins import load_module
from r1lite.problems import load_problems
from r1lite.prompts import encode, render
from r1lite.records import read_rows
from r1lite.stages import evaluate
from r1lite.stages.evaluate import Config
from r1lite.worker import Stage

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


class Scripted:
    """An engine that answers by a function of the problem's number and the sample's, a problem at a time."""

    def __init__(self, model, problems, answer, prompt="plain"):
        self.tokenizer, self.problems, self.answer, self.asked = load_tokenizer(model), problems, answer, []
        self.prompts = [encode(self.tokenizer, render(prompt, problem.problem)) for problem in problems]
        self.dies_after = None

    def stream(self, requests, sampling):
        for index, request in enumerate(requests):
            if index == self.dies_after:
                raise RuntimeError("the engine has died")
            number = self.prompts.index(request.prompt)
            self.asked += [number] * request.n
            texts = [self.answer(number, sample) for sample in range(request.n)]
            yield [Finished(index, [Completion(self.tokenizer(text).input_ids, [], False) for text in texts], 7)]

    def close(self):
        pass


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Run the stage with an engine, and return report.json."""

    def run(engine, **values):
        monkeypatch.setattr("r1lite.sampling.open_engine", lambda *arguments: engine)
        config = Config.model_validate({"kind": "eval", "prompt": "plain", "max_tokens": 64, **values})
        spec = Spec("t", "report", "eval", {"a": 1}, {}, {})
        if not (tmp_path / "spec.json").exists():
            Artifact(tmp_path).prepare(spec)
        evaluate.run(config, Stage(tmp_path, spec))
        return json.loads((tmp_path / "report.json").read_text())

    return run


CHAIN = {"problems": ["data/chain.yaml#test"], "limit": 5, "samples": 4}


def chain_engine(model, right):
    """For problem i the first right[i] samples are right; the others say 8, which is never right."""
    problems = load_problems("data/chain.yaml#test", 5)
    return Scripted(
        model,
        problems,
        lambda number, sample: (
            f"<think></think><answer>{problems[number].answer if sample < right[number] else 8}</answer>"
        ),
    )


def test_the_report_has_what_was_measured_and_how(toy_model, evaluated, tmp_path):
    report = evaluated(chain_engine(toy_model, [4, 2, 1, 0, 0]), models=[str(toy_model)], **CHAIN)
    (result,) = report["results"]
    assert (result["n_problems"], result["n_samples"]) == (5, 4)
    assert result["pass@1"] == pytest.approx((4 + 2 + 1) / 20)
    assert result["pass@k"]["4"]["mean"] == pytest.approx(3 / 5)
    assert result["pass@k"]["2"]["mean"] == pytest.approx((1 + (1 - 1 / 6) + (1 - 3 / 6)) / 5)
    assert result["maj@k"]["4"]["mean"] == pytest.approx((1 + 0.5 + 0 + 0 + 0) / 5)
    for name in ("pass@1_ci_samples", "pass@1_ci_problems"):
        low, high = result[name]
        assert 0 <= low < result["pass@1"] < high <= 1
    assert (result["truncated"], result["no_answer"], result["graders"]["disagree"]) == (0, 0, 0)
    protocol = report["protocol"]
    assert (protocol["temperature"], protocol["top_p"], protocol["max_tokens"], protocol["seed"]) == (0.6, 0.95, 64, 0)
    assert protocol["engine"].startswith("transformers ")
    assert protocol["versions"]["math-verify"]
    assert (tmp_path / "curves.png").exists()


def test_the_samples_are_kept_with_all_that_is_known_of_them(toy_model, evaluated, tmp_path):
    evaluated(chain_engine(toy_model, [4, 2, 1, 0, 0]), models=[str(toy_model)], **CHAIN)
    (path,) = (tmp_path / "samples").glob("*.parquet")
    rows = list(read_rows(path))
    assert len(rows) == 20
    assert [row["sample"] for row in rows] == [0, 1, 2, 3] * 5
    wanted = {
        "id",
        "sample",
        "seed",
        "completion",
        "tokens",
        "finish_reason",
        "found",
        "reward/accuracy",
        "reward/exact",
    }
    assert wanted <= set(rows[0])
    assert [row["vote"] for row in rows[4:8]] == [0, 0, 1, 1]
    assert not (tmp_path / "parts").exists()


def test_a_crash_of_the_engine_loses_nothing_that_was_finished(toy_model, evaluated, tmp_path):
    whole = evaluated(chain_engine(toy_model, [4, 2, 1, 0, 0]), models=[str(toy_model)], **CHAIN)
    (tmp_path / "report.json").unlink()
    dying = chain_engine(toy_model, [4, 2, 1, 0, 0])
    dying.dies_after = 3
    with pytest.raises(RuntimeError, match="the engine has died"):
        evaluated(dying, models=[str(toy_model)], **CHAIN)
    second = chain_engine(toy_model, [4, 2, 1, 0, 0])
    assert evaluated(second, models=[str(toy_model)], **CHAIN) == whole
    assert second.asked == [3] * 4 + [4] * 4


def test_a_problem_that_is_half_sampled_is_asked_only_for_the_rest(toy_model, evaluated, tmp_path):
    class Streaming(Scripted):
        def stream(self, requests, sampling):
            for finished in super().stream(requests, sampling):
                (each,) = finished
                for completion in each.completions:
                    if self.dies_after == 0:
                        raise RuntimeError("the engine has died")
                    self.dies_after = self.dies_after and self.dies_after - 1
                    yield [Finished(each.index, [completion], each.seed)]

    problems = load_problems("data/chain.yaml#test", 5)

    def engine(dies_after):
        made = Streaming(toy_model, problems, lambda number, _: f"<answer>{problems[number].answer}</answer>")
        made.dies_after = dies_after
        return made

    with pytest.raises(RuntimeError):
        evaluated(engine(6), models=[str(toy_model)], **CHAIN)
    second = engine(None)
    report = evaluated(second, models=[str(toy_model)], **CHAIN)
    assert second.asked == [1, 1] + [2] * 4 + [3] * 4 + [4] * 4
    assert report["results"][0]["pass@1"] == 1
    (path,) = (tmp_path / "samples").glob("*.parquet")
    assert [row["sample"] for row in read_rows(path)] == [0, 1, 2, 3] * 5


def test_a_token_budget_cuts_the_same_samples(toy_model, evaluated):
    problems = load_problems("data/chain.yaml#test", 5)
    padding = ["", " wait" * 10, " wait" * 40, "", ""]
    engine = Scripted(
        toy_model,
        problems,
        lambda number, _: f"<think>{padding[number]}</think><answer>{problems[number].answer}</answer>",
    )
    (result,) = evaluated(engine, models=[str(toy_model)], **CHAIN)["results"]
    lengths = {p: len(engine.tokenizer(engine.answer(i, 0)).input_ids) for i, p in enumerate("abc")}
    assert lengths["a"] <= 8 < lengths["b"] <= 16 < 32 < lengths["c"] <= 64
    assert result["pass@1_by_budget"] == {"2": 0.0, "4": 0.0, "8": 0.6, "16": 0.8, "32": 0.8, "64": 1.0}


def tags(completions, **_):
    """A measure that has nothing to say of what does not think."""
    return [None if "<think></think>" in text else 0.25 for text in completions]


def silent(completions, **_):
    return [None for _ in completions]


MEASURES = [
    {"use": "tests/test_evaluate.py:tags"},
    {"use": "tests/test_evaluate.py:silent"},
    {"use": "rewards.format:think_answer"},
]


def test_measures_are_means_over_samples_and_change_nothing_else(toy_model, evaluated, tmp_path):
    def engine():
        made = chain_engine(toy_model, [4, 2, 1, 0, 0])
        right = made.answer
        made.answer = lambda number, sample: (
            "no tags" if (number, sample) in ((3, 0), (3, 1)) else right(number, sample)
        )
        return made

    (bare,) = evaluated(engine(), models=[str(toy_model)], **CHAIN)["results"]
    (tmp_path / "report.json").unlink()
    report = evaluated(engine(), models=[str(toy_model)], measures=MEASURES, **CHAIN)
    (result,) = report["results"]
    assert bare["measures"] == {}
    assert result["measures"] == {"tags": 0.25, "silent": None, "think_answer": pytest.approx(18 / 20)}
    assert {**result, "measures": {}} == bare, "what is right, the votes, the graders and the fingerprint"
    (path,) = (tmp_path / "samples").glob("*.parquet")
    rows = list(read_rows(path))
    assert [row["reward/tags"] for row in rows[12:16]] == [0.25, 0.25, None, None]
    assert {row["reward/silent"] for row in rows} == {None}


def exact(completions, **_):
    return [None for _ in completions]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"measures": [{"use": "tests/test_evaluate.py:exact"}]}, "exact"),  # the second grader's name
        ({"measures": [{"use": "tests/test_evaluate.py:tags"}], "reward": {"use": "mine.py:tags"}}, "tags"),
        ({"measures": [{"use": "tests/test_evaluate.py:tags"}, {"use": "mine.py:tags"}]}, "tags"),
    ],
)
def test_a_measure_named_as_a_grader_or_another_measure_is_a_fault(changes, name):
    settings = {"kind": "eval", "prompt": "plain", "models": ["data/tiny_base"], "max_tokens": 8, **CHAIN, **changes}
    (fault,) = Config.model_validate(settings).faults()
    assert fault.startswith("measures") and repr(name) in fault


def test_a_set_without_golds_needs_no_second_grader(toy_model, evaluated):
    courtesy = load_module("data/courtesy.py")
    problems = load_problems("data/courtesy.yaml#test", 4)

    def answer(number, sample):
        polite = courtesy.ANSWERS[problems[number].columns["act"]][0].replace("NAME", problems[number].columns["name"])
        return courtesy.write_up(polite if sample < number else "hi")

    report = evaluated(
        Scripted(toy_model, problems, answer),
        models=[str(toy_model)], problems=["data/courtesy.yaml#test"], limit=4, samples=4,
        reward={"use": "data/courtesy.py:courteous"}, measures=[{"use": "rewards.format:think_answer"}],
    )  # fmt: skip
    (result,) = report["results"]
    assert result["pass@1"] == pytest.approx((0 + 1 + 2 + 3) / 16)
    assert result["graders"] == {"courteous": result["pass@1"], "disagree": 0}
    assert result["measures"] == {"think_answer": 1.0}
    assert report["protocol"]["problems"]["data/courtesy.yaml#test"]["graders"].keys() == {"data/courtesy.py:courteous"}


def test_a_reward_and_measures_about_one_of_two_sets_leave_the_other_to_accuracy(toy_model, evaluated):
    courtesy = load_module("data/courtesy.py")
    sums, prompts = load_problems("data/chain.yaml#test", 2), load_problems("data/courtesy.yaml#test", 2)
    texts = [courtesy.write_up(problem.answer) for problem in sums]
    texts += [
        courtesy.write_up(courtesy.ANSWERS[p.columns["act"]][0].replace("NAME", p.columns["name"])) for p in prompts
    ]
    texts[-1] = courtesy.write_up("hi")
    sets = ["data/chain.yaml#test", "data/courtesy.yaml#test"]
    report = evaluated(
        Scripted(toy_model, [*sums, *prompts], lambda number, _: texts[number]),
        models=[str(toy_model)], problems=sets, limit=2, samples=3,
        reward={"use": "data/courtesy.py:courteous", "about": sets[1:]},
        measures=[{"use": "rewards.format:think_answer"}, {"use": "tests/test_evaluate.py:silent", "about": sets[:1]}],
    )  # fmt: skip
    by_rule, by_taste = report["results"]
    assert {"accuracy": 1.0, "exact": 1.0, "disagree": 0}.items() <= by_rule["graders"].items()
    assert by_taste["graders"] == {"courteous": 0.5, "disagree": 0}
    assert by_rule["measures"] == {"think_answer": 1.0, "silent": None}
    assert by_taste["measures"] == {"think_answer": 1.0}


@pytest.fixture(scope="module")
def byte_model(toy_model, tmp_path_factory):
    """The toy model with a tokenizer that can write any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("bytes")
    for file in Path(toy_model).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<eos>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(path)
    return path


PROSE = (
    "<think>Let me see. Some would say 7, but that is wrong.</think>\nAdding all of it up, the answer is "
    "$\\boxed{{{}}}$, as was to be shown."
)


@pytest.mark.parametrize("name", ["aime24", "amc23"])
@pytest.mark.parametrize(("off", "expected"), [(0, 1.0), (1, 0.0)])
def test_an_oracle_scores_1_and_one_that_is_off_by_one_0(byte_model, evaluated, name, off, expected):
    path = SHARED / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    reference = f"data/{name}.yaml#test@{path}"
    problems = load_problems(reference)
    oracle = Scripted(byte_model, problems, lambda number, _: PROSE.format(int(float(problems[number].answer)) + off))
    (result,) = evaluated(oracle, models=[str(byte_model)], problems=[reference], samples=3)["results"]
    assert result["n_problems"] == {"aime24": 30, "amc23": 40}[name]
    assert result["pass@1"] == result["maj@k"]["3"]["mean"] == result["pass@k"]["3"]["mean"] == expected
    assert result["graders"]["exact"] == expected or name == "amc23"  # whose golds read 27.0
    assert result["no_answer"] == 0


def test_a_multiple_choice_is_graded_by_its_letter(byte_model, evaluated, tmp_path):
    rows = [{"question": f"What is {i}+1?", "right": str(i + 1), "b": str(i + 2), "c": str(i + 3)} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "card.yaml").write_text(
        "description: d\nlicense: none\ncolumns: {problem: question, answer: right, wrong: [b, c]}\n"
        f"answers: {{kind: choice}}\nsamples: 2\nsplits: {{test: {{file: {tmp_path}/rows.jsonl, rows: 12}}}}\n"
    )
    reference = f"{tmp_path}/card.yaml#test"
    problems = load_problems(reference)
    assert "\nA) " in problems[0].problem and "\nC) " in problems[0].problem
    engine = Scripted(
        byte_model, problems, lambda number, sample: f"<answer>({problems[number].answer}) it is</answer>"
    )
    report = evaluated(engine, models=[str(byte_model)], problems=[reference])
    (result,) = report["results"]
    assert (result["pass@1"], result["n_samples"]) == (1.0, 2)
    assert list(report["protocol"]["problems"][reference]["graders"]) == ["rewards.choice:choice"]


def test_without_a_usual_number_of_samples_one_has_to_say_it(toy_model):
    done = r1lite("eval", str(toy_model), "--problems", "data/chain.yaml#test", "--limit", "2")
    assert done.returncode == 2
    assert "stages.report.samples: data/chain.yaml#test does not say" in done.stderr
    assert "state `samples`" in done.stderr


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_report(toy_model, tmp_path):
    command = ["eval", str(toy_model), "--problems", "data/chain.yaml#test", "--prompt", "plain", "--samples", "16",
               "--max-tokens", "64", "--limit", "300", "--json"]  # fmt: skip
    whole = r1lite(*command, "--runs", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "r1lite.cli", *command, "--runs", str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("killed/eval/report-*/parts/*/part_*.parquet"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    (worker,) = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "r1lite.worker"], capture_output=True, text=True, check=True
    ).stdout.split()
    subprocess.run(["kill", "-9", worker, str(process.pid)], check=True)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    again = r1lite(*command, "--runs", str(tmp_path / "killed"))
    assert again.returncode == 0, again.stderr
    made, there = map(int, re.search(r"(\d+) samples to make, (\d+) are there", again.stderr).groups())
    assert made + there == 300 * 16
    assert 3 * 512 <= there < 300 * 16
    assert json.loads(again.stdout) == json.loads(whole.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aime24", "amc23"])
def test_the_tiny_model_is_evaluated_on_real_problems(tmp_path, name):
    path = SHARED / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    done = r1lite("eval", "data/tiny_base", "--problems", f"data/{name}.yaml#test@{path}", "--prompt", "plain",
                  "--samples", "2", "--max-tokens", "16", "--json", "--runs", str(tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert (result["n_problems"], result["n_samples"]) == ({"aime24": 30, "amc23": 40}[name], 2)
    assert 0 <= result["pass@1"] <= 1
