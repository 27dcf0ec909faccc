import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1lite import cli
from r1lite.recipe import RecipeError, load_recipe
from r1lite.trainer_keys import fields

RECIPES = sorted(path for path in Path("recipes").rglob("*.yaml") if path.parent.name != "accelerate")

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
def test_every_shipped_recipe_loads(path, monkeypatch):
    """Weights and data of a hub are not here; all else must be right."""
    monkeypatch.setattr("r1lite.models.hub_reachable", lambda: True)
    monkeypatch.setattr("r1lite.problems.hub_reachable", lambda: True)
    load_recipe(path)


@pytest.mark.parametrize("name", ["zero", "r1", "distill"])
def test_a_gpu_nodes_recipe_has_the_stages_of_the_tiny_one(name, monkeypatch):
    monkeypatch.setattr("r1lite.models.hub_reachable", lambda: True)
    monkeypatch.setattr("r1lite.problems.hub_reachable", lambda: True)
    tiny, full = (
        [(stage, config.kind) for stage, config in load_recipe(Path(path)).stages.items()]
        for path in (f"recipes/tiny/{name}.yaml", f"recipes/{name}.yaml")
    )
    assert tiny == full


# What is replaced by what, where the error must point, and a remedy that it must hold.
MALFORMED = [
    ("name: t", "name: [", "line", "malformed YAML"),
    ("name: t\n", "name: t\nname: u\n", "line 2", "stands twice"),
    ("name: t", "name: t\nafter: [a.yaml]", "after:", "must be the path of a recipe; got ['a.yaml']"),
    ("name: t", "name: a/b", "name:", "names a directory"),
    ("name: t", "title: t", "title: unknown key", "valid here: name, after, seed, prompt, launch, stages"),
    ("prompt: plain", "prompt: r1-zero", "prompt:", "must be one of r1_zero, plain, chat"),
    ("name: t", "name: t\nseed: three", "seed:", "must be an integer"),
    ("kind: grpo", "kind: grop", "stages.zero.kind:", "did you mean 'grpo'?"),
    ("kind: grpo\n    ", "", "stages.zero.kind:", "must be one of base, sft, grpo, sample, select, reward_model, distill, eval, grade"),
    ("prompts_per_step: 8", "prompt_per_step: 8", "stages.zero.prompt_per_step: unknown key", "mean 'prompts_per_step'?"),
    ("prompts_per_step: 8\n    ", "", "stages.zero.prompts_per_step: missing", "how many different problems"),
    ("generations: 4", "generations: four", "stages.zero.generations:", "valid integer"),
    ('accuracy"}', 'accuracy", about: ["data/chain.yaml#test"]}', "stages.zero.rewards.0.about: data/chain.yaml#test is none of", "problems: data/chain.yaml#train"),
    ("problems: data/chain.yaml#train", 'problems: [{use: "data/chain.yaml#train", share: 0}]', "stages.zero.problems.0.share:", "greater than 0"),
    ("problems: data/chain.yaml#train", 'problems: [{use: "data/chain.yaml#dev"}]', "stages.zero.problems.0.use:", "train, test, probe"),
    ("problems: data/chain.yaml#train", 'problems: [{use: "data/chain.yaml#train", weight: 2}]', "stages.zero.problems.0.weight: unknown key", "valid here: use, share"),
    ("problems: data/chain.yaml#train", "problems: []", "stages.zero.problems:", "at least 1 item"),
    ("samples: 2", 'samples: 2\n    measures: [{use: "rewards.math:accuracy", about: ["data/chain.yaml#train"]}]', "stages.report.measures.0.about: data/chain.yaml#train is none of", "problems: data/chain.yaml#test"),
    ("samples: 2", 'samples: 2\n    reward: {use: "rewards.math:accuracy", about: [x]}', "stages.report.reward.about: x is none of", "problems: data/chain.yaml#test"),
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
    ("generations: 4", "generations: 4\n    stock: true\n    micro_batch: 5", "stages.zero.micro_batch: 5 does not divide", "= 32; the nearest that does is 4"),
    ("generations: 4", "generations: 4\n    micro_batch: 4", "stages.zero.micro_batch: goes with `stock: true`", "tokens_per_micro_batch"),
    ("generations: 4", "generations: 4\n    stock: true\n    tokens_per_micro_batch: 4096", "stages.zero.tokens_per_micro_batch: goes with packed rows", "`stock: true` has micro_batch"),
    ("generations: 4", "generations: 4\n    tokens_per_micro_batch: 0", "stages.zero.tokens_per_micro_batch:", "greater than 0"),
    ("generations: 4", "generations: 4\n    dynamic_sampling: -1", "stages.zero.dynamic_sampling:", "greater than or equal to 0"),
    ("scale_rewards: none, beta: 0.0}", "scale_rewards: group, beta: 0.0}\n    maxrl: true", "stages.zero.maxrl:", "set trainer.scale_rewards: none, not 'group'"),
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


# A recipe that comes after another

THIRD = """
name: third
after: {second}
prompt: plain
stages:
  tutor: {{kind: sample, model: $tuned, problems: ["data/chain.yaml#probe"], samples: 2, max_tokens: 8, rewards: [{{use: "rewards.math:accuracy"}}]}}
  lessons: {{kind: select, rollouts: $tutor}}
"""
SECOND = """
name: second
after: {first}
seed: 0
prompt: plain
stages:
  traces: {{kind: sample, model: $zero, problems: ["data/chain.yaml#probe"], samples: 2, max_tokens: 8, rewards: [{{use: "rewards.math:accuracy"}}]}}
  chosen: {{kind: select, rollouts: $traces}}
  tuned: {{kind: sft, model: data/tiny_base, examples: [$chosen], rows_per_step: 2, max_tokens: 64, trainer: {{max_steps: 2, learning_rate: 1e-3}}}}
  aside: {{kind: select, rollouts: $traces}}
  report: {{kind: eval, models: [$tuned, $zero], problems: ["data/chain.yaml#test"], samples: 2, max_tokens: 32}}
"""


@pytest.fixture
def three(tmp_path):
    """The paths of three recipes, each after the one before it."""
    paths = [tmp_path / f"{name}.yaml" for name in ("first", "second", "third")]
    paths[0].write_text(RECIPE.replace("name: t", "name: first"))
    paths[1].write_text(SECOND.format(first=paths[0]))
    paths[2].write_text(THIRD.format(second=paths[1]))
    return paths


def test_of_the_recipe_before_only_those_stages_come_along_that_are_needed(three):
    second, third = load_recipe(three[1]), load_recipe(three[2])
    assert list(second.stages) == ["zero", "traces", "chosen", "tuned", "aside", "report"], "not the first report"
    assert second.homes == {"zero": "first"} | dict.fromkeys(["traces", "chosen", "tuned", "aside", "report"], "second")
    assert second.stages["report"].models == ["$tuned", "$zero"]
    assert list(third.stages) == ["zero", "traces", "chosen", "tuned", "tutor", "lessons"], "what these need in turn"
    assert third.homes["zero"] == "first" and third.homes["tuned"] == "second" and third.homes["tutor"] == "third"
    assert third.parents("tutor") == ["tuned"]
    for name in ("zero", "traces", "tuned"):
        assert third.stages[name] == second.stages[name]


def test_an_override_of_the_seed_or_prompt_reaches_all_recipes_and_one_of_a_stage_its_own(three):
    third = load_recipe(three[2], ["seed=1", "stages.zero.generations=2", "stages.tuned.max_tokens=48",
                                   "stages.tutor.samples=3"])  # fmt: skip
    assert {stage.seed for stage in third.stages.values()} == {1}
    assert third.stages["zero"].generations == 2
    assert third.stages["tuned"].max_tokens == 48
    assert (third.stages["tutor"].samples, third.stages["traces"].samples) == (3, 2)
    plain = load_recipe(three[2])
    assert plain.stages["chosen"] == third.stages["chosen"].model_copy(update={"seed": 0})
    assert {stage.prompt for stage in load_recipe(three[2], ["prompt=chat"]).stages.values()} == {"chat"}
    assert load_recipe(three[2], ["name=other"]).homes["zero"] == "first"


def test_a_stage_of_the_same_name_is_each_recipes_own(three):
    second = load_recipe(three[1], ["stages.report.samples=5"])
    assert second.stages["report"].samples == 5
    assert load_recipe(three[0]).stages["report"].samples == 2


@pytest.mark.parametrize(
    ("number", "old", "new", "told"),
    [
        (1, "  traces:", "  zero: {kind: select, rollouts: $traces}\n  traces:",
         "stages.zero: FIRST has a stage of that name which is needed here; rename this one"),
        (2, "  tutor:", "  chosen: {kind: select, rollouts: $aside}\n  tutor:",
         "stages.chosen: SECOND has a stage of that name which is needed here; rename this one"),
        (1, "model: $zero", "model: $zeroes", "stages.traces.model: $zeroes is no stage of this recipe; a stage may refer to those before it: $zero"),
        (2, "model: $tuned", "model: $chosen", "stages.tutor.model: $chosen is of kind select and makes examples and problems, but model is meant here"),
        (2, "model: $tuned", "model: $lessons", "stages.tutor.model: $lessons comes later"),
        (2, "model: $tuned", "model: $report", "stages.tutor.model: $report is of kind eval and makes report, but model"),
        (1, "generations", "generations", None),
    ],
)  # fmt: skip
def test_what_can_be_wrong_between_recipes(three, number, old, new, told):
    three[number].write_text(three[number].read_text().replace(old, new, 1))
    if told is None:
        load_recipe(three[2])
        return
    with pytest.raises(RecipeError) as error:
        load_recipe(three[number])
    told = told.replace("FIRST", str(three[0])).replace("SECOND", str(three[1]))
    assert any(fault.startswith(told) for fault in error.value.faults), error.value.faults


def test_a_fault_of_the_recipe_before_is_told_with_its_own_path(three):
    three[0].write_text(three[0].read_text().replace("generations: 4", "generations: 1"))
    with pytest.raises(RecipeError, match=rf"{three[0]}: stages.zero.generations: .*greater than 1"):
        load_recipe(three[2])


def test_loops_and_recipes_that_are_not_there_are_refused(three):
    three[1].write_text(SECOND.format(first="nowhere.yaml"))
    with pytest.raises(ValueError, match=r"there is no recipe nowhere.yaml"):
        load_recipe(three[2])
    three[0].write_text(f"after: {three[2]}\n" + three[0].read_text())
    three[1].write_text(SECOND.format(first=three[0]))
    for path in three:
        with pytest.raises(ValueError, match=f"{path} comes after itself, by way of .*; take out one `after`"):
            load_recipe(path)
    three[0].write_text(f"after: {three[0]}\n" + RECIPE)
    with pytest.raises(ValueError, match=f"{three[0]} comes after itself"):
        load_recipe(three[0])


def test_an_override_of_a_stage_that_no_recipe_has_is_an_error(three):
    with pytest.raises(ValueError, match=r"--set stages.nil.seed=1: there is no 'nil'"):
        load_recipe(three[2], ["stages.nil.seed=1"])


def test_the_tiny_recipes_come_after_one_another():
    distill = load_recipe(Path("recipes/tiny/distill.yaml"))
    assert set(distill.homes.values()) == {"zero", "r1", "distill"}
    assert "general" not in distill.stages and distill.homes["report"] == "distill"


def test_an_override_changes_one_of_what_an_alias_repeats(tmp_path):
    text = Path("recipes/tiny/r1.yaml").read_text()
    (tmp_path / "r1.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "r1.yaml", ["stages.dev2.trainer.max_steps=3"])
    assert [recipe.stages[name].trainer["max_steps"] for name in ("dev2", "r1")] == [3, 20]
