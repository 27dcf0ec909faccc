import json

import pytest

from r1lite.artifacts import Artifact, Spec
from r1lite.engines import Completion
from r1lite.models import load_tokenizer
from r1lite.problems import load_problems
from r1lite.stages import evaluate
from r1lite.stages.evaluate import Config, summarize
from r1lite.worker import Stage


class Scripted:
    """An engine that answers by a plan: for problem i, the first `right[i]` samples are right."""

    name, batch = "scripted", 6

    def __init__(self, tokenizer, answers, right):
        self.tokenizer, self.answers, self.right, self.calls = tokenizer, answers, right, 0

    def generate(self, prompts, n, sampling):
        groups = []
        for _ in prompts:
            i, self.calls = self.calls, self.calls + 1
            texts = [
                f"<think></think><answer>{self.answers[i] if sample < self.right[i] else 9}</answer>"
                for sample in range(n)
            ]
            groups.append([Completion(self.tokenizer(text).input_ids, [], False) for text in texts])
        return groups

    def close(self):
        pass


@pytest.fixture
def scripted(toy_model, tmp_path, monkeypatch):
    config = Config.model_validate({
        "kind": "eval", "prompt": "plain", "models": [str(toy_model)], "problems": ["data/chain.yaml#test"],
        "limit": 5, "samples": 4, "max_tokens": 9,
    })  # fmt: skip
    answers = [problem.answer for problem in load_problems("data/chain.yaml#test", 5)]
    engine = Scripted(load_tokenizer(toy_model), answers, [4, 2, 1, 0, 0])
    monkeypatch.setattr("r1lite.engines.open_engine", lambda *arguments: engine)
    spec = Spec("t", "report", "eval", {"a": 1}, {}, {})
    Artifact(tmp_path).prepare(spec)
    return config, Stage(tmp_path, spec), engine


def test_pass_at_1_is_the_mean_and_pass_at_k_unbiased(scripted):
    config, stage, _ = scripted
    evaluate.run(config, stage)
    report = json.loads((stage.path / "report.json").read_text())
    (result,) = report["results"]
    assert (result["n_problems"], result["n_samples"]) == (5, 4)
    assert result["pass@1"] == pytest.approx((4 + 2 + 1) / 20)
    assert result["pass@k"]["4"]["mean"] == pytest.approx(3 / 5)
    assert result["pass@k"]["2"]["mean"] == pytest.approx((1 + (1 - 1 / 6) + (1 - 3 / 6)) / 5)
    low, high = result["pass@1_ci_problems"]
    assert 0 <= low < result["pass@1"] < high <= 1
    assert report["protocol"]["temperature"] == 0.6
    assert (stage.path / "curves.png").exists()


def test_an_interrupted_evaluation_asks_only_for_what_is_missing(scripted):
    config, stage, engine = scripted
    evaluate.run(config, stage)
    parts = sorted(stage.path.glob("samples/*/part_*.parquet"))
    assert len(parts) == 5  # a batch of 6 completions holds one problem with its 4 samples
    expected = (stage.path / "report.json").read_text()
    parts[-1].unlink()
    engine.calls = 4
    evaluate.run(config, stage)
    assert engine.calls == 5
    assert (stage.path / "report.json").read_text() == expected


def test_lengths_of_right_and_wrong_are_told_apart():
    rows = [
        {"problem_id": "a", "reward/accuracy": right, "length": length, "truncated": cut, "completion": text}
        for right, length, cut, text in [(1.0, 10, False, "wait"), (0.0, 30, True, "so")]
    ]
    result = summarize(rows, 2, "accuracy")
    assert (result["mean_length"], result["mean_length_right"], result["mean_length_wrong"]) == (20, 10, 30)
    assert (result["truncated"], result["reflective_words"]) == (0.5, 0.5)
