import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1lite import cli
from r1lite.recipe import RecipeError, load_recipe
from r1lite.trainer_keys import fields

RECIPES = sorted(Path("recipes").rglob("*.yaml"))

GRPO = """
    kind: grpo
    model: data/tiny_base
    problems: data/chain.yaml#train
    rewards: [{use: "rewards.math:accuracy"}]
    prompts_per_step: 8
    generations: 4
    max_tokens: 32
    temperature: 1.0
    trainer: {max_steps: 2, learning_rate: 3e-4, loss_type: dr_grpo, scale_rewards: none, beta: 0.0}
"""
EVAL = """
    kind: eval
    models: [$zero]
    problems: ["data/chain.yaml#test"]
    samples: 2
    max_tokens: 32
"""
RECIPE = f"name: t\nprompt: plain\nstages:\n  zero:{GRPO}  report:{EVAL}"


def check(tmp_path, capsys, monkeypatch, text: str, *options: str) -> tuple[int, str]:
    """Exit code and stderr of `r1lite check` on a recipe."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["r1lite", "check", str(path), *options])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().err


def test_the_recipe_that_the_others_break_is_right(tmp_path, capsys, monkeypatch):
    assert check(tmp_path, capsys, monkeypatch, RECIPE) == (0, "")


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_every_shipped_recipe_loads(path):
    try:
        load_recipe(path)
    except RecipeError as error:  # weights and data of a hub are not here; all else must be right
        assert all("the hub cannot be reached" in fault for fault in error.faults), error


# What is replaced by what, where the error must point, and a remedy that it must hold.
MALFORMED = [
    ("name: t", "name: [", "line", "malformed YAML"),
    ("name: t\n", "name: t\nname: u\n", "line 2", "stands twice"),
    ("name: t", "name: a/b", "name:", "names a directory"),
    ("name: t", "title: t", "title: unknown key", "valid here: name, seed, prompt, stages"),
    ("prompt: plain", "prompt: r1-zero", "prompt:", "must be one of r1_zero, plain, chat"),
    ("name: t", "name: t\nseed: three", "seed:", "must be an integer"),
    ("kind: grpo", "kind: grop", "stages.zero.kind:", "did you mean 'grpo'?"),
    ("kind: grpo\n    ", "", "stages.zero.kind:", "must be one of base, grpo, eval"),
    ("prompts_per_step: 8", "prompt_per_step: 8", "stages.zero.prompt_per_step: unknown key", "mean 'prompts_per_step'?"),
    ("prompts_per_step: 8\n    ", "", "stages.zero.prompts_per_step: missing", "how many different problems"),
    ("generations: 4", "generations: four", "stages.zero.generations:", "valid integer"),
    ("generations: 4", "generations: 1", "stages.zero.generations:", "greater than 1"),
    ("temperature: 1.0", "temperature: 0", "stages.zero.temperature:", "greater than 0"),
    ("models: [$zero]", "models: [$zer]", "stages.report.models.0: $zer is no stage", "before it: $zero"),
    ("model: data/tiny_base", "model: $report", "stages.zero.model: $report comes later", "none, it is the first"),
    ("model: data/tiny_base", "model: data/chain.yaml#train", "stages.zero.model:", "a model belongs here"),
    ("model: data/tiny_base", "model: recipes", "stages.zero.model: recipes is a directory but not a model", "config.json"),
    ("model: data/tiny_base", "model: ./nowhere", "stages.zero.model:", "neither a directory"),
    ("model: data/tiny_base", "model: Qwen/Qwen2.5-1.5B", "stages.zero.model: Qwen/Qwen2.5-1.5B", "name its directory"),
    ("problems: data/chain.yaml#train", "problems: Qwen/Qwen2.5", "stages.zero.problems:", "problems belong here"),
    ("problems: data/chain.yaml#train", "problems: data/chain.yaml", "stages.zero.problems:", "train, test, probe"),
    ("problems: data/chain.yaml#train", "problems: $zero", "stages.zero.problems: $zero comes later", "refer to"),
    ("problems: data/chain.yaml#train", "problems: no.jsonl", "stages.zero.problems:", "there is no file no.jsonl"),
    ("rewards.math:accuracy", "rewards.math:acuracy", "stages.zero.rewards.0.use:", "it has: accuracy"),
    ("rewards.math:accuracy", "rewards.maths:accuracy", "stages.zero.rewards.0.use:", "no module 'rewards.maths'"),
    ("rewards.math:accuracy", "accuracy", "stages.zero.rewards.0.use:", "write module:function"),
    ("max_steps: 2", "max_step: 2", "stages.zero.trainer.max_step: not a field of GRPOConfig", "mean 'max_steps'?"),
    ("max_steps: 2", "max_steps: 0", "stages.zero.trainer.max_steps:", "whole number of at least 1"),
    ("beta: 0.0", "beta: 0.0, num_iterations: 0", "stages.zero.trainer.num_iterations:", "whole number of at least 1"),
    ("max_steps: 2", "max_steps: many", "stages.zero.trainer.max_steps: must be int", "'many'"),
    ("max_steps: 2, ", "", "stages.zero.trainer:", "one of max_steps and num_train_epochs"),
    ("beta: 0.0", "num_generations: 4", "stages.zero.trainer.num_generations:", "use generations instead"),
    ("loss_type: dr_grpo, ", "", "stages.zero.trainer.loss_type: missing", "state it"),
    ("generations: 4", "generations: 4\n    micro_batch: 5", "stages.zero.micro_batch: 5 does not divide", "= 32; the nearest that does is 4"),
    ("generations: 4", "generations: 4\n    updates_per_rollout: 4", "stages.zero.trainer.save_steps", "multiple of"),
    ("samples: 2", "samples: 2\n    top_p: 1.5", "stages.report.top_p:", "less than or equal to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "where", "remedy"), MALFORMED, ids=[row[1].strip()[:40] for row in MALFORMED])
def test_malformed_recipes(tmp_path, capsys, monkeypatch, old, new, where, remedy):
    assert old in RECIPE
    code, err = check(tmp_path, capsys, monkeypatch, RECIPE.replace("max_steps: 2,", "max_steps: 2, save_steps: 2,")
                      .replace(old, new, 1))  # fmt: skip
    assert code == 2
    assert where in err
    assert remedy in err
    assert "Traceback" not in err


def test_all_errors_come_at_once(tmp_path, capsys, monkeypatch):
    broken = (
        RECIPE.replace("generations: 4", "generations: x")
        .replace("samples: 2", "samples: y")
        .replace("name: t", "nam: t")
    )
    _, err = check(tmp_path, capsys, monkeypatch, broken)
    assert all(path in err for path in ("nam:", "stages.zero.generations", "stages.report.samples"))
    assert len(err.splitlines()) >= 3


def test_overrides_are_typed_as_in_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(path, ["stages.zero.trainer.learning_rate=1e-5", "stages.zero.rewards.0.weight=2", "seed=7"])
    zero = recipe.stages["zero"]
    assert zero.trainer["learning_rate"] == 1e-5
    assert zero.rewards[0].weight == 2
    assert zero.seed == recipe.stages["report"].seed == 7


@pytest.mark.parametrize(
    "override", ["stages.zero", "stages.nil.seed=1", "stages.zero.rewards.9.weight=1", "=1", "seed=["]
)
def test_an_override_that_hits_nothing_is_an_error(tmp_path, capsys, monkeypatch, override):
    code, err = check(tmp_path, capsys, monkeypatch, RECIPE, "--set", override)
    assert (code, err.startswith(f"error: --set {override}")) == (2, True)


def test_a_missing_recipe_is_an_error(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["r1lite", "check", "recipes/nil.yaml"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "there is no recipe recipes/nil.yaml" in capsys.readouterr().err


def test_the_keys_read_from_source_are_those_of_the_classes():
    from transformers import TrainingArguments
    from trl import GRPOConfig

    for cls in (GRPOConfig, TrainingArguments):
        real = {name for name, field in cls.__dataclass_fields__.items() if field.init}
        assert real <= set(fields(cls.__name__))


def test_check_and_plan_answer_within_two_seconds_and_without_torch():
    for command in ("check", "plan"):
        code = (
            f"import sys; sys.argv = ['r1lite', '{command}', 'recipes/tiny/zero.yaml']\n"
            "from r1lite import cli\n"
            "cli.main()\n"
            "heavy = {'torch', 'transformers', 'trl', 'vllm', 'datasets'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - start < 10, "far above the 2 seconds that it takes on an idle machine"
