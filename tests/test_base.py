from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from r1lite.artifacts import Artifact, Spec, read_json
from r1lite.models import load_tokenizer
from r1lite.observe import read_metrics
from r1lite.pipeline import plan
from r1lite.recipe import load_recipe
from r1lite.stages import base, evaluate
from r1lite.worker import Stage


def make_stage(path, kind: str, config) -> Stage:
    spec = Spec("t", kind, kind, {"a": 1}, {}, config.model_dump(mode="json"))
    Artifact(path).prepare(spec)
    return Stage(path, spec)


def small_base(**changes) -> base.Config:
    settings = {
        "kind": "base",
        "prompt": "plain",
        "corpus": [{"use": "data/chain.py:documents"}],
        "documents": 400,
        "documents_per_step": 40,
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                  "head_dim": 16, "intermediate_size": 64, "tie_word_embeddings": True},
        "trainer": {"learning_rate": 1e-2, "save_steps": 4},
    }  # fmt: skip
    return base.Config.model_validate(settings | changes)


def test_pre_training_learns_and_ends_with_a_model_that_can_be_loaded(tmp_path):
    config = small_base()
    facts = base.run(config, make_stage(tmp_path, "base", config))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert facts["steps"] == len(rows) == 10
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer.decode(tokenizer("8*?-9*3=5").input_ids) == "8*?-9*3=5"
    generation = read_json(tmp_path / "model" / "generation_config.json")
    assert generation["eos_token_id"] in (tokenizer.eos_token_id, [tokenizer.eos_token_id])


def test_the_micro_batch_changes_nothing_but_rounding(tmp_path):
    losses = []
    for size in (8, 40):
        config = small_base(micro_batch=size)
        base.run(config, make_stage(tmp_path / str(size), "base", config))
        losses.append([row["loss"] for row in read_metrics(tmp_path / str(size) / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_pre_training_resumes_exactly(tmp_path):
    config = small_base()
    whole, torn = (make_stage(tmp_path / name, "base", config) for name in ("whole", "torn"))
    base.run(config, whole)
    base.run(config, torn)
    for checkpoint in (torn.path / "checkpoints").glob("checkpoint-*"):  # as if it had been killed after step 4
        if checkpoint.name != "checkpoint-8":
            continue
        (checkpoint / "complete.json").unlink()
    base.run(config, torn)
    expected, got = (load_file(stage.path / "model" / "model.safetensors") for stage in (whole, torn))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


SHIPPED = {"base": "data/tiny_base", "student": "data/tiny_student"}  # by the stage that makes it


@pytest.mark.parametrize(("stage", "model"), SHIPPED.items())
def test_the_shipped_models_are_what_their_recipe_would_make(tmp_path, stage, model):
    keys = {item.spec.stage: item.spec.key for item in plan(load_recipe(Path("recipes/tiny/base.yaml")), tmp_path)}
    assert keys[stage] == load_front_matter(f"{model}/README.md")["key"], "make base && python scripts/ship_base.py"


@pytest.mark.slow
@pytest.mark.parametrize("model", SHIPPED.values())
def test_the_shipped_models_still_measure_as_their_cards_say(tmp_path, model):
    card = load_front_matter(f"{model}/README.md")
    settings = {"kind": "eval", "prompt": "plain", "models": [model], "problems": ["data/chain.yaml#test"],
                "samples": 16, "max_tokens": 160, "temperature": 1.0, "top_p": 1.0, "seed": 1}  # fmt: skip
    config = evaluate.Config.model_validate(settings)
    stage = make_stage(tmp_path, "eval", config)
    evaluate.run(config, stage)
    (result,) = read_json(stage.path / "report.json")["results"]
    # 500 problems x 16 samples: standard errors of about 0.005, 0.007 and 0.3
    assert result["pass@1"] == pytest.approx(card["pass@1"], abs=0.025)
    assert result["pass@k"]["16"]["mean"] == pytest.approx(card["pass@16"], abs=0.035)
    assert result["mean_tokens"] == pytest.approx(card["mean_length"], abs=1.5)


def load_front_matter(path: str) -> dict:
    return yaml.safe_load(Path(path).read_text().split("---")[1])


def test_a_corpus_of_several_hands_has_their_shares_shuffled_under_one_tokenizer(tmp_path, monkeypatch):
    corpus = [{"use": "data/chain.py:documents", "share": 3}, {"use": "data/courtesy.py:documents", "share": 1}]
    config, seen = small_base(corpus=corpus), []
    build = base.build_dataset
    monkeypatch.setattr(
        base, "build_dataset", lambda *arguments: seen.append((arguments[1], build(*arguments))) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        base.run(config, make_stage(tmp_path, "base", config))
    ((tokenizer, dataset),) = seen
    texts = tokenizer.batch_decode(list(dataset["input_ids"]))
    courteous = [text.startswith(("User: greet", "User: thank", "User: praise", "User: comfort")) for text in texts]
    assert (len(texts), sum(courteous)) == (400, 100)
    assert not any("<unk>" in text for text in texts)
    assert all(2 < sum(courteous[start : start + 40]) < 20 for start in range(0, 400, 40)), "every step has of both"
