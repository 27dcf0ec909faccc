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
        "corpus": "data/chain.py:documents",
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


def test_the_shipped_base_is_what_its_recipe_would_make(tmp_path):
    (planned, _) = plan(load_recipe(Path("recipes/tiny/base.yaml")), tmp_path)
    remedy = "make base && python scripts/ship_base.py"
    assert planned.spec.key == load_front_matter("data/tiny_base/README.md")["key"], remedy


@pytest.mark.slow
def test_the_shipped_base_still_measures_as_its_card_says(tmp_path):
    card = load_front_matter("data/tiny_base/README.md")
    settings = {"kind": "eval", "prompt": "plain", "models": ["data/tiny_base"], "problems": ["data/chain.yaml#test"],
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
