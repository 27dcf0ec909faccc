"""The command line: `r1lite check | plan | run | launch | eval | compare | score | show`.

Exit code 0: done, or stopped as it was asked to; 1: the run failed; 2: the request was wrong.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from r1lite import observe, report
from r1lite.artifacts import Artifact, Stopped, read_json
from r1lite.bands import held_against
from r1lite.cluster import by_hand, submit
from r1lite.compare import compare
from r1lite.pipeline import StageFailed, plan, run, would_start
from r1lite.preflight import prove
from r1lite.prompts import TEMPLATES
from r1lite.recipe import build_recipe, load_launch, load_recipe, refuse_unproven
from r1lite.scoring import score_file, to_reward

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
console = Console() if sys.stdout.isatty() else Console(width=160)  # a log has no width of its own

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe, such as recipes/tiny/zero.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="override a value, as stages.zero.trainer.max_steps=10"),
]
Runs = Annotated[Path, typer.Option(help="where runs are kept")]


@app.command()
def check(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Is everything about a recipe right? Tells all errors at once, tries its rewards, and trains nothing.

    [dim]r1lite check recipes/tiny/zero.yaml[/dim]
    """
    loaded = load_recipe(recipe, overrides)
    proofs = list(prove(loaded.stages, list(loaded.stages)))
    if proofs:
        console.print(report.proofs_table(proofs))
    refuse_unproven(loaded, proofs)
    kinds = ", ".join(f"{name} ({config.kind})" for name, config in loaded.stages.items())
    console.print(f"{recipe} is right: {kinds}")


@app.command(name="plan")
def show_plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    hardware: Annotated[
        str | None, typer.Option(metavar="8xH100", help="say whether GRPO stages fit on such GPUs of a machine")
    ] = None,
) -> None:
    """Which stages are done, which would run, and why; with --hardware also what they take of each GPU.

    [dim]r1lite plan recipes/tiny/zero.yaml[/dim]
    """
    loaded = load_recipe(recipe, overrides)
    console.print(report.plan_table(plan(loaded, runs)))
    if hardware:
        report.print_memory(console, loaded, hardware)


@app.command(name="run")
def run_recipe(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    machine_rank: Annotated[
        int, typer.Option(help="which of all machines this is", envvar=["SLURM_NODEID", "GROUP_RANK"], min=0)
    ] = 0,
    dry: Annotated[bool, typer.Option("--dry", help="print what this machine would start, and start nothing")] = False,
) -> None:
    """Run what is not done yet. The same command resumes what was interrupted.

    [dim]r1lite run recipes/tiny/zero.yaml --set stages.zero.trainer.max_steps=10[/dim]
    """
    start = time.monotonic()
    loaded = load_recipe(recipe, overrides)
    if dry:
        for line in would_start(loaded, runs, machine_rank):
            print(line)
        return
    planned = run(loaded, runs, machine_rank)
    if machine_rank == 0:
        report.print_run(console, planned, time.monotonic() - start)


@app.command(name="launch")
def launch_recipe(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    as_commands: Annotated[
        bool, typer.Option("--print", help="instead: the command for each machine, to be started there by hand")
    ] = False,
) -> None:
    """Have Slurm run a recipe on all machines that it is for, by recipes/slurm/train.sbatch.

    [dim]r1lite launch recipes/r1.yaml --print --set 'launch={num_machines: 2, main_process_ip: 10.0.0.1}'[/dim]
    """
    launch = load_launch(recipe, overrides)
    words = [str(recipe), *(word for override in overrides or [] for word in ("--set", override))]
    if as_commands:
        print("\n".join(by_hand(launch, [*words, "--runs", str(runs)])))
    else:
        submit(launch, words, runs)


@app.command(name="eval")
def evaluate(
    context: typer.Context,
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="a stage's directory, a model's, or a hub id")
    ] = None,
    problems: Annotated[
        list[str] | None, typer.Option(metavar="CARD", help="card.yaml#split, a .jsonl or a .parquet file")
    ] = None,
    rollouts: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="instead of both: completions that are there already")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="completions per problem; by default what the card says")] = None,
    max_tokens: Annotated[int, typer.Option(help="the longest completion; R1 took 32768")] = 1024,
    temperature: float = 0.6,
    top_p: float = 0.95,
    prompt: Annotated[str, typer.Option(help=f"prompt template: {', '.join(TEMPLATES)}")] = "r1_zero",
    reward: Annotated[
        str | None, typer.Option(help="what says that a completion is right; by default choice or accuracy")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="only the first problems")] = None,
    engine: Annotated[str, typer.Option(help="auto, vllm or transformers")] = "auto",
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print report.json instead of the table")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """pass@1, pass@k and maj@k of models on problems. A repeated call generates nothing anew.

    [dim]r1lite eval data/tiny_base --problems data/chain.yaml#test --prompt plain --max-tokens 128 --samples 8[/dim]
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    named = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    unused = named - {"rollouts", "reward", "as_json", "runs"} if rollouts else set()
    if unused or not (rollouts or models or problems):
        besides = f"; with it there is no use for: {', '.join(sorted(unused))}" if unused else ""
        raise ValueError(
            f"name models and --problems, or --rollouts alone, with completions that are there already{besides}"
        )
    stage: dict[str, Any] = {"kind": "grade", "rollouts": rollouts}
    if not rollouts:
        stage = {
            "kind": "eval", "models": models or [], "problems": problems or [], "samples": samples,
            "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "prompt": prompt, "seed": seed,
            "limit": limit, "engine": engine,
        }  # fmt: skip
    if reward:
        stage["reward"] = to_reward(reward).model_dump()
    if as_json:
        observe.stream = sys.stderr
    recipe = build_recipe({"name": "eval", "stages": {"report": stage}}, "r1lite eval")
    (planned,) = run(recipe, runs)
    results = read_json(planned.artifact.path / "report.json")
    if as_json:
        print(json.dumps({**results, "references": [held.model_dump() for held in held_against(results)]}, indent=2))
    else:
        report.print_results(console, results)
        console.print(f"report.json, the samples and curves.png are in {planned.artifact.path}", highlight=False)


@app.command(name="compare")
def compare_reports(
    one: Annotated[
        str, typer.Argument(metavar="A", help="a report: its directory or report.json, with #MODEL if several")
    ],
    other: Annotated[str, typer.Argument(metavar="B", help="another, or the same one with another #MODEL")],
    anyway: Annotated[bool, typer.Option("--anyway", help="compare even what was not measured alike")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the comparison as JSON")] = False,
) -> None:
    """B minus A, problem by problem, with its paired interval. Refuses reports of unlike protocols.

    [dim]r1lite compare runs/zero/latest/report#data/tiny_base runs/zero/latest/report#\\$zero[/dim]
    """
    comparisons = compare(one, other, anyway)
    if as_json:
        print(json.dumps([asdict(comparison) for comparison in comparisons], indent=2))
    else:
        for comparison in comparisons:
            report.print_comparison(console, comparison)


@app.command()
def score(
    path: Annotated[Path, typer.Argument(metavar="FILE", help=".jsonl or .parquet with `completion` and more columns")],
    reward: Annotated[list[str], typer.Option(metavar="REF", help="module:function, path.py:function, or {use: ...}")],
    as_json: Annotated[
        bool, typer.Option("--json", help="a JSON line for each row, and nothing else on stdout")
    ] = False,
) -> None:
    """Scores of completions that are there already, and where the two graders of the answer disagree.

    [dim]r1lite score completions.jsonl --reward rewards.math:accuracy --reward rewards.format:think_answer[/dim]
    """
    scores = score_file(path, [to_reward(reference) for reference in reward])
    for number, row in enumerate(scores.rows):
        if as_json:
            print(json.dumps({"row": number, "scores": row}))
        else:
            print(f"row {number}  " + "  ".join(f"{name} {report.number(value)}" for name, value in row.items()))
    report.print_scores(Console(stderr=True) if as_json else console, scores)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="a stage's directory, such as runs/zero/latest/zero, or a recipe's")],
    step: Annotated[int | None, typer.Option(help="show rollouts of this step instead of the newest")] = None,
    rows: Annotated[int, typer.Option(help="how many rollouts")] = 6,
    example: Annotated[str | None, typer.Option(help="an example's id: show where it came from")] = None,
) -> None:
    """What a stage was made from, how it went, and some of its rollouts.

    [dim]r1lite show runs/zero/latest/zero --step 0[/dim]
    """
    stages = [path] if (path / "spec.json").exists() else sorted((path / "latest").glob("*"))
    if not stages:
        raise ValueError(f"{path} is neither a stage's directory nor a recipe's with finished stages; see `ls runs`")
    if example is not None:
        report.print_example(console, [Artifact(stage) for stage in stages], example)
        return
    for stage in stages:
        report.print_stage(console, Artifact(stage), step, rows)


def main() -> None:
    """Run the command line; a user's mistake is a line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except Stopped as stopped:
        print(stopped)
    except StageFailed as failed:
        sys.exit(fail(str(failed), 1))
    except ValueError as error:
        sys.exit(fail(str(error), 2))
    except OSError as error:
        sys.exit(fail(f"{error.strerror}: {error.filename}", 1))


def fail(message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
