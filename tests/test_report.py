"""What a person reads at the end of a run, and where an example to train on came from."""

import io
import json

import pytest
from rich.console import Console

from r1lite.artifacts import Artifact, Spec
from r1lite.pipeline import Planned
from r1lite.records import write_parquet
from r1lite.report import cost_of, models_table, print_example, print_run, print_stage

SAMPLE = {"model": "$zero", "endpoint": None, "temperature": 0.7, "top_p": 1.0, "prompt": "plain"}


def made(
    runs, recipe: str, stage: str, kind: str, parents=(), seconds=1.0, config=None, files=None, **result
) -> Planned:
    """A stage that is done; `parents` are planned stages."""
    names = {each.spec.stage: f"../{each.spec.recipe}/{each.artifact.path.name}" for each in parents}
    inputs = {"config": {"of": f"{recipe}/{stage}"}, "file": files or {}}
    spec = Spec(recipe, stage, kind, inputs, names, config or {})
    artifact = Artifact(runs / recipe / f"{stage}-{spec.key}")
    artifact.prepare(spec)
    facts = {"seconds": seconds, "result": result, "finished": "2026-01-01T00:00:00Z", "device": "cpu"}
    artifact.finish(facts)
    return Planned(spec, artifact, "done", "all of its inputs are as they were")


def result(model: str, problems: str, right: float, tokens: float | None, **measures) -> dict:
    return {"model": model, "problems": problems, "pass@1": right, "mean_tokens": tokens, "measures": measures}


@pytest.fixture
def r1(tmp_path):
    """zero, of its own recipe; traces, chosen and tuned of the next; beside them a reward model that nothing needs."""
    zero = made(tmp_path, "zero", "zero", "grpo", seconds=1000, tokens_sampled=9_000_000,
                files={"data/tiny_base/model.safetensors": "0123456789abcdef"})  # fmt: skip
    traces = made(tmp_path, "r1", "traces", "sample", [zero], 30, SAMPLE, tokens_sampled=120_000)
    chosen = made(tmp_path, "r1", "chosen", "select", [traces], 2)
    tuned = made(tmp_path, "r1", "tuned", "sft", [chosen], 50, tokens_learned=45_000)
    polished = made(tmp_path, "r1", "polished", "grpo", [tuned, chosen], 400, tokens_sampled=1_000_000)
    aside = made(tmp_path, "r1", "aside", "reward_model", [], 7)
    return {item.spec.stage: item for item in (zero, traces, chosen, tuned, polished, aside)}


def test_a_stage_costs_what_it_and_its_own_recipes_stages_before_it_took(r1):
    planned = list(r1.values())
    assert cost_of(r1["polished"], planned) == {
        "seconds": "482", "k sampled": "1,120", "k learned": "45"
    }  # fmt: skip
    assert cost_of(r1["tuned"], planned) == {"seconds": "82", "k sampled": "120", "k learned": "45"}
    assert cost_of(r1["zero"], planned) == {"seconds": "1,000", "k sampled": "9,000", "k learned": "0"}
    assert cost_of(r1["aside"], planned) == {"seconds": "7", "k sampled": "0", "k learned": "0"}


REPORTS = [
    {
        "results": [
            result("data/tiny_base", "data/chain.yaml#test", 0.2284, 20.22, language_consistency=0.55, judged=None),
            result("$zero", "data/chain.yaml#test", 0.91, 60.5, language_consistency=0.5, judged=None),
            result("$polished", "data/chain.yaml#test", 0.93, None, language_consistency=0.99, judged=1.0),
        ]
    },
    {
        "results": [
            result("data/tiny_base", "data/courtesy.yaml#test", 0.25, 9.0, helpfulness=-1.5),
            result("$polished", "data/courtesy.yaml#test", 0.75, 8.0, helpfulness=2.25),
        ]
    },
]


def test_a_line_a_model_with_all_that_was_measured_of_it_and_its_cost(r1):
    table = models_table(list(r1.values()), REPORTS)
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns == {
        "model": ["data/tiny_base", "zero", "polished"],
        "chain pass@1": ["0.228", "0.910", "0.930"],
        "language consistency": ["0.55", "0.50", "0.99"],
        "judged": ["", "", "1.00"],
        "tokens": ["20.2", "60.5", ""],
        "courtesy pass@1": ["0.250", "", "0.750"],
        "helpfulness": ["-1.50", "", "2.25"],
        "seconds": ["", "1,000", "482"],
        "k sampled": ["", "9,000", "1,120"],
        "k learned": ["", "0", "45"],
    }


def test_what_was_measured_on_two_sets_is_shown_of_both(r1):
    """Two splits of a card, and a measure that is about both."""
    given = (("test", 0.5, 0.75), ("probe", 0.25, 0.125))
    results = [result("$zero", f"data/chain.yaml#{split}", right, 9.0, think=mean) for split, right, mean in given]
    table = models_table([r1["zero"]], [{"results": results}])
    cells = [list(column.cells) for column in table.columns]
    for expected in ("0.500", "0.250", "0.75", "0.12"):
        assert [expected] in cells


def printed(show, *arguments) -> str:
    console = Console(file=io.StringIO(), width=240, color_system=None)
    show(console, *arguments)
    return console.file.getvalue()


def report_of(r1, tmp_path, **measures) -> Planned:
    whole = {
        **result("$zero", "data/chain.yaml#test", 0.5, 12.0, **measures), "n_problems": 4, "n_samples": 2,
        "pass@1_ci_samples": [0.4, 0.6], "pass@1_ci_problems": [0.3, 0.7], "truncated": 0.0, "no_answer": 0.0,
        "pass@k": {"1": {"mean": 0.5}, "2": {"mean": 0.75}}, "maj@k": {"1": {"mean": 0.5}, "2": {"mean": 0.5}},
        "graders": {"accuracy": 0.5, "disagree": 0}, "fingerprint": "abc",
    }  # fmt: skip
    item = made(tmp_path, "r1", "report", "eval", [r1["zero"]])
    (item.artifact.path / "report.json").write_text(json.dumps({"protocol": {}, "results": [whole]}))
    item.artifact.finish({"seconds": 3, "result": {}})
    return item


def test_a_run_ends_with_the_models_where_something_was_measured_besides(r1, tmp_path):
    planned = [*r1.values(), report_of(r1, tmp_path, think_answer=0.5)]
    assert "think answer" in printed(print_run, planned, 75.0)
    assert "this run took 1m15s" in printed(print_run, planned, 75.0)
    planned[-1] = report_of(r1, tmp_path)
    shown = printed(print_run, planned, 75.0)
    assert "chain pass@1" not in shown and "0.500" in shown


def test_only_curves_that_are_there_are_named(r1):
    (r1["tuned"].artifact.path / "curves.png").write_text("png")
    shown = printed(print_run, [r1["traces"], r1["tuned"]], 1.0)
    assert str(r1["tuned"].artifact.path / "curves.png") in shown
    assert str(r1["traces"].artifact.path / "curves.png") not in shown


@pytest.fixture
def custody(r1):
    """An example of two, with the rollout that it was."""
    rollout = {"id": "s-2", "problem_id": "p-1", "problem": "1*?=2", "answer": "2", "sample": 3, "seed": 77,
               "completion": "[bold]2", "reward/accuracy": 1.0, "reward/other": None}  # fmt: skip
    write_parquet(r1["traces"].artifact.path / "rollouts.parquet", [{**rollout, "id": "s-1", "seed": 76}, rollout])
    example = {"id": "e-2", "problem": "1*?=2", "completion": "[bold]2", "answer": "2", "rollout": "s-2",
               "rollouts": "$traces"}  # fmt: skip
    write_parquet(
        r1["chosen"].artifact.path / "examples.parquet", [{**example, "id": "e-1", "rollout": "s-1"}, example]
    )
    return r1


def test_an_example_walks_back_to_its_rollout_the_model_and_what_that_was_made_from(custody):
    shown = printed(print_example, [custody["chosen"].artifact], "e-2").splitlines()
    assert [line.strip() for line in shown] == [
        f"example e-2 of {custody['chosen'].artifact.path.name}",
        "problem: 1*?=2",
        "completion: [bold]2",
        "answer: 2",
        f"from the rollout s-2 in {custody['traces'].artifact.path.name}: "
        "sample 3 of problem p-1 with seed 77, accuracy 1.0, other None",
        "by the model $zero at temperature 0.7, top-p 1.0, prompt plain",
        f"from $zero ({custody['zero'].artifact.path.name})",
        "from data/tiny_base/model.safetensors 0123456789ab",
    ]
    indents = [len(line) - len(line.lstrip()) for line in shown]
    assert indents == sorted(indents), "what lies further back stands further in"


def test_an_example_by_a_served_model_names_the_server(custody, tmp_path):
    served = made(tmp_path, "r1", "taught", "sample", [], config={
        **SAMPLE, "model": None, "endpoint": {"model": "teacher", "url": "http://127.0.0.1:8000/v1"},
    })  # fmt: skip
    lessons = made(tmp_path, "r1", "lessons", "select", [served])
    for name, folder, row in (
        ("rollouts", served, {"id": "s-9", "problem_id": "p", "sample": 0, "seed": 1, "reward/a": 1.0}),
        ("examples", lessons, {"id": "e-9", "problem": "x", "completion": "y", "answer": "z", "rollout": "s-9",
                               "rollouts": "$taught"}),
    ):  # fmt: skip
        write_parquet(folder.artifact.path / f"{name}.parquet", [row])
    assert "by the model teacher at http://127.0.0.1:8000/v1 at temp" in printed(
        print_example, [lessons.artifact], "e-9"
    )


def test_an_example_of_rollouts_that_lie_in_a_file_names_the_file(tmp_path):
    lone = made(tmp_path, "r1", "lone", "select")
    row = {"id": "e-1", "problem": "x", "completion": "y", "answer": "z", "rollout": "s-1", "rollouts": "mine.jsonl"}
    write_parquet(lone.artifact.path / "examples.parquet", [row])
    assert printed(print_example, [lone.artifact], "e-1").endswith("from the rollout s-1 in mine.jsonl\n")


@pytest.mark.parametrize(
    ("stage", "name", "told"),
    [
        ("chosen", "e-3", "has no example 'e-3'; it has 2, such as e-1"),
        ("traces", "e-1", "is of kind sample; examples are made by stages of kind select"),
        ("zero", "e-1", "is of kind grpo"),
    ],
)
def test_an_example_that_is_not_there_is_an_error(custody, stage, name, told):
    with pytest.raises(ValueError, match=told):
        printed(print_example, [custody[stage].artifact], name)


def test_show_walks_back_through_both_recipes(r1):
    shown = printed(print_stage, r1["polished"].artifact, None, 6)
    lines = [line.strip() for line in shown.splitlines()]
    assert lines[0].startswith("r1/polished (grpo), key ")
    back = [line.split(" (")[0].removeprefix("from ") for line in lines if line.startswith("from $")]
    assert back[:4] == ["$tuned", "$chosen", "$traces", "$zero"]
    assert any(line.startswith("from data/tiny_base/model.safetensors") for line in lines)
