"""What a person looks at: the plan, the table at the end of a run, and what a stage's directory holds."""

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from r1lite.artifacts import Artifact, read_json
from r1lite.bands import held_against
from r1lite.compare import Comparison
from r1lite.hardware import setting_of, shape_of
from r1lite.memory import Setting, Shape, changes, estimate, fits
from r1lite.metrics import mean_or_none
from r1lite.observe import duration, read_metrics
from r1lite.pipeline import Planned
from r1lite.preflight import Proof
from r1lite.prompts import final_answer, texts_of
from r1lite.recipe import Recipe
from r1lite.records import read_rows
from r1lite.scoring import Scores
from r1lite.stages import grpo
from r1lite.stages.select import funnel_lines

MOST_SHOWN = 20
REPORTING = ("eval", "grade")  # the kinds of stages that make a report.json
COLORS = {"done": "green", "resume": "yellow", "run": "cyan"}


def plan_table(planned: list[Planned]) -> Table:
    table = new_table("stage", "kind", "key", "state", "why")
    for item in planned:
        state = f"[{COLORS[item.state]}]{item.state}[/]"
        table.add_row(item.spec.stage, item.spec.kind, item.spec.key, state, escape(item.why))
    return table


def print_memory(console: Console, recipe: Recipe, hardware: str) -> None:
    """What each GRPO stage takes of a GPU, by part, and whether that fits."""
    of_grpo = {name: config for name, config in recipe.stages.items() if isinstance(config, grpo.Config)}
    stages = {name: config for name, config in of_grpo.items() if not config.stock}
    shapes = {name: shape_of(recipe, config.model) for name, config in stages.items()}
    settings = {name: setting_of(config, recipe, hardware) for name, config in stages.items()}
    found = {name: estimate(shapes[name], settings[name]) for name in stages}
    table = new_table("GiB of each GPU", *stages)
    for part in next(iter(found.values())).parts if found else ():
        table.add_row(part, *(f"{each.parts[part]:.1f}" for each in found.values()))
    table.add_row("at its peak", *(f"{each.peak:.1f}" for each in found.values()))
    if stages:
        console.print(table)
    for name, setting in settings.items():
        console.print(fit(name, shapes[name], setting), highlight=False)
    padded = [name for name in of_grpo if name not in stages]
    if padded:
        console.print(f"not estimated, since packed rows are (`stock: false`): {', '.join(padded)}", highlight=False)
    others = [name for name in recipe.stages if name not in of_grpo]
    if others:
        console.print(f"not estimated, since only GRPO stages are: {', '.join(others)}", highlight=False)


def fit(name: str, shape: Shape, setting: Setting) -> str:
    found = estimate(shape, setting)
    gpus = f"{setting.gpus} GPU{'s' if setting.gpus > 1 else ''} of {setting.card:g} GiB"
    each = -(-setting.completions // (setting.servers or setting.gpus))
    who = "a server" if setting.servers else "vLLM"
    room = f"{who} has room for {min(found.room, each)} of {each} completions of {setting.longest} tokens at once"
    if fits(shape, setting):
        return f"{name}: [green]fits[/] on {gpus}; {room}"
    helps = changes(shape, setting)
    what = f"it does with {', '.join(helps)}" if helps else "no setting helps; take larger GPUs or a smaller model"
    return f"{name}: [red]does not fit[/] on {gpus}; {what}"


def proofs_table(proofs: list[Proof]) -> Table:
    """What each reward says of gold answers, of other problems' gold answers and of hacks, and how long it takes."""
    table = new_table("stage", "reward", "golds", "shuffled", "hacks paid", "ms each: p50", "p99", "verdict")
    for proof in proofs:
        hacked = str(proof.hacked) if proof.judged and proof.hacked is not None else ""
        cells = [number(proof.golds), number(proof.shuffled), hacked, number(proof.p50), number(proof.p99)]
        table.add_row(proof.path.split(".")[1], proof.reward, *cells, verdict(proof))
    return table


def verdict(proof: Proof) -> str:
    if proof.faults:
        return "[red]fails[/]"
    return proof.skipped or ("[green]proven[/]" if proof.judged else "runs; it asks for no answer")


def print_scores(console: Console, scores: Scores) -> None:
    """A summary of `r1lite score`, and the first rows on which the graders disagree."""
    table = new_table("reward", "rows", "mean", "no score")
    for name in scores.rows[0]:
        values = [row[name] for row in scores.rows]
        given = [value for value in values if value is not None]
        table.add_row(name, str(len(values)), number(mean_or_none(given)), str(len(values) - len(given)))
    console.print(table)
    for name, value in scores.logged.items():
        if value:
            console.print(f"{name}: {value:g}")
    if all("answer" in row for row in scores.completions):
        console.print(f"accuracy and exact disagree on {len(scores.disagreements)} of {len(scores.rows)} rows")
    for row in scores.disagreements[:MOST_SHOWN]:
        completion = scores.completions[row]
        found = final_answer(*texts_of([completion["completion"]]))
        console.print(f"  row {row}: answer {found!r}, gold {completion['answer']!r}", markup=False, highlight=False)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def print_run(console: Console, planned: list[Planned], seconds: float) -> None:
    """The end of a run: what was measured, how long each stage took, and where everything is."""
    reports = [read_json(item.artifact.path / "report.json") for item in planned if item.spec.kind in REPORTING]
    for report in reports:
        print_results(console, report)
    table = new_table("stage", "seconds", "curves (the rest lies beside them)")
    for item in planned:
        took = item.artifact.manifest()["seconds"]
        curves = item.artifact.path / "curves.png"
        table.add_row(item.spec.stage, f"{took:.0f}", str(curves if curves.exists() else item.artifact.path))
    console.print(table)
    if any(result["measures"] for report in reports for result in report["results"]):
        console.print(models_table(planned, reports))
    console.print(f"All stages are done; this run took {duration(seconds)}.")


def models_table(planned: list[Planned], reports: list[dict[str, Any]]) -> Table:
    """A line a model, as in Table 3 of the R1 paper: all that was measured of it, and what making it has cost.

    Seconds and thousands of tokens, sampled and learned by SFT, are of the stage and of those before it that the same
    recipe has.
    """
    results = [result for report in reports for result in report["results"]]
    sets = list(dict.fromkeys(result["problems"] for result in results))
    heads = heads_of(sets)
    measured = {(result["problems"], measure) for result in results for measure in result["measures"]}
    several = Counter(measure for _, measure in measured)
    cells: dict[str, dict[str, str]] = {name: {} for name in dict.fromkeys(result["model"] for result in results)}
    for place, name in enumerate(sets):
        for result in (each for each in results if each["problems"] == name):
            row = cells[result["model"]]
            row[f"{heads[name]} pass@1"] = f"{result['pass@1']:.3f}"
            for measure, mean in result["measures"].items():
                head = f"{heads[name]} " if several[measure] > 1 else ""
                row[head + measure.replace("_", " ")] = number(mean)
            if not place:
                row["tokens"] = "" if result["mean_tokens"] is None else f"{result['mean_tokens']:.1f}"
    for item in planned:
        if (made := f"${item.spec.stage}") in cells:
            cells[made] |= cost_of(item, planned)
    columns = list(dict.fromkeys(name for row in cells.values() for name in row))
    table = new_table("model", *columns)
    for model, row in cells.items():
        table.add_row(escape(model.removeprefix("$")), *(row.get(name, "") for name in columns))
    return table


def heads_of(sets: list[str]) -> dict[str, str]:
    """Sets of problems by their card's name, and with the split where several are of one card."""
    cards = Counter(name.partition("#")[0] for name in sets)
    heads = {}
    for name in sets:
        card, _, split = name.partition("#")
        heads[name] = f"{Path(card).stem}#{split}" if cards[card] > 1 else Path(card).stem
    return heads


def cost_of(item: Planned, planned: list[Planned]) -> dict[str, str]:
    """What it took to make a stage from what its recipe was given: wall time, tokens sampled, tokens learned by SFT."""
    by_name = {each.spec.stage: each for each in planned if each.spec.recipe == item.spec.recipe}
    chain, waiting = dict[str, Planned](), [item.spec.stage]
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in chain:
            chain[name] = by_name[name]
            waiting += by_name[name].spec.parents
    manifests = [each.artifact.manifest() for each in chain.values()]
    sampled, learned = (
        sum(manifest["result"].get(name, 0) for manifest in manifests) for name in ("tokens_sampled", "tokens_learned")
    )
    return {
        "seconds": f"{sum(manifest['seconds'] for manifest in manifests):,.0f}",
        "k sampled": f"{sampled / 1000:,.0f}",
        "k learned": f"{learned / 1000:,.0f}",
    }


def print_results(console: Console, report: dict[str, Any]) -> None:
    """An evaluation's table, and below it what else one should know before one believes it."""
    console.print(results_table(report))
    for result in report["results"]:
        names = [name for name in result["graders"] if name != "disagree" and "/" not in name]
        counted = [f"{name} {value:g}" for name, value in result["graders"].items() if "/" in name and value]
        several = f"{' and '.join(names)} disagree on {result['graders']['disagree']} samples"
        line = several if len(names) > 1 else f"graded by {names[0]} alone"
        where = escape(f"{result['model']} on {result['problems']}")
        console.print(f"{where}: {', '.join([line, *counted])}; protocol {result['fingerprint']}", highlight=False)
    for held in held_against(report):
        figures = ", ".join(f"{name} {value:.3f}" for name, value in held.published.items())
        low, high = held.band
        color = "green" if held.verdict == "inside" else "red"
        found = f"{escape(held.model)} on {escape(held.problems)}: {held.metric} {held.value:.3f}"
        band = f"the band {low:.3f} to {high:.3f} of what was published ({figures})"
        console.print(f"{found} is [{color}]{held.verdict}[/] {band}", highlight=False)


def results_table(report: dict[str, Any]) -> Table:
    protocol = report["protocol"]
    title = "95 % intervals"
    if "temperature" in protocol:
        title = (
            f"temperature {protocol['temperature']}, top-p {protocol['top_p']}, {protocol['max_tokens']} tokens, "
            f"prompt {protocol['prompt']}, {protocol['engine']}; {title}"
        )
    largest = max((int(k) for result in report["results"] for k in result["pass@k"]), default=1)
    columns = ["model", "problems", "pass@1", "over samples", "over problems", f"pass@{largest}", f"maj@{largest}"]
    table = new_table(*columns, "tokens", "truncated", "no answer", title=title)
    for result in report["results"]:
        best = str(result["n_samples"])
        other = "" if best == str(largest) else f" (@{best})"  # a set that was sampled less often
        table.add_row(
            escape(result["model"]),
            escape(f"{result['problems']} ({result['n_problems']} x {result['n_samples']})"),
            f"{result['pass@1']:.3f}",
            interval(result["pass@1_ci_samples"]),
            interval(result["pass@1_ci_problems"]),
            f"{result['pass@k'][best]['mean']:.3f}{other}",
            f"{result['maj@k'][best]['mean']:.3f}{other}",
            "" if result["mean_tokens"] is None else f"{result['mean_tokens']:,.1f}",
            share(result["truncated"]),
            share(result["no_answer"]),
        )
    return table


def print_comparison(console: Console, comparison: Comparison) -> None:
    before, after = comparison.pass_at_1
    models = f"{comparison.a} {before:.3f}, {comparison.b} {after:.3f}"
    line = f"{comparison.problems}, {comparison.n_problems} problems: {models}"
    console.print(line, markup=False, highlight=False)
    table = new_table("difference", "over samples", "over problems, paired", "p", "won", "lost")
    table.add_row(
        f"{comparison.difference:+.3f}",
        interval(comparison.ci_samples, "+.3f"),
        interval(comparison.ci_problems, "+.3f"),
        f"{comparison.p:.4f}",
        str(len(comparison.won)),
        str(len(comparison.lost)),
    )
    console.print(table)
    for name, flipped in (("won", comparison.won), ("lost", comparison.lost)):
        if flipped:
            more = f" and {len(flipped) - MOST_SHOWN} more" if len(flipped) > MOST_SHOWN else ""
            console.print(f"{name}: {', '.join(flipped[:MOST_SHOWN])}{more}", markup=False, highlight=False)


def interval(bounds: list[float] | tuple[float, float] | None, form: str = ".3f") -> str:
    return "needs 2 samples" if bounds is None else escape(f"[{bounds[0]:{form}}, {bounds[1]:{form}}]")


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def new_table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="dim", show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_stage(console: Console, artifact: Artifact, step: int | None, rows: int) -> None:
    """A stage's inputs, state and results; and of a training stage, the rollouts of a step."""
    spec = artifact.spec
    console.print(f"[bold]{spec.recipe}/{spec.stage}[/] ({spec.kind}), key {spec.key}", highlight=False)
    for line in lineage(artifact):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    if artifact.done:
        manifest = artifact.manifest()
        console.print(f"done on {manifest['finished']} in {duration(manifest['seconds'])} on {manifest['device']}")
    else:
        console.print("not done; the same `r1lite run` goes on from its last checkpoint")
    if spec.kind in REPORTING and artifact.done:
        print_results(console, read_json(artifact.path / "report.json"))
    if spec.kind == "select" and artifact.done:
        for line in funnel_lines(read_json(artifact.path / "report.json")):
            console.print(line, highlight=False)
    metrics = read_metrics(artifact.path / "metrics.jsonl")
    if metrics:
        console.print(metrics_table(metrics))
    if (artifact.path / "rollouts").is_dir():
        print_rollouts(console, artifact.path / "rollouts", step, rows)
    if (artifact.path / "curves.png").exists():
        console.print(f"curves: {artifact.path / 'curves.png'}")


def lineage(artifact: Artifact, depth: int = 0) -> list[str]:
    """Where an artifact came from, stage by stage, down to the models and data that were there before."""
    spec, indent = artifact.spec, "  " * depth
    lines = [f"{indent}from {name} {value[:12]}" for name, value in sorted(spec.inputs["file"].items())]
    for name in spec.parents:
        parent = artifact.parent(name)
        lines.append(f"{indent}from ${name} ({parent.path.name})")
        lines += lineage(parent, depth + 1)
    return lines


def print_example(console: Console, artifacts: list[Artifact], name: str) -> None:
    """An example to train on, and the chain that made it: rollout, model, and what that was made from."""
    artifact, example = find_example(artifacts, name)
    console.print(f"[bold]example {name}[/] of {artifact.path.resolve().name}", highlight=False)
    for field in ("problem", "completion", "answer"):
        console.print(f"  {field}: {example[field]}", markup=False, highlight=False, soft_wrap=True)
    source = example["rollouts"]
    if not source.startswith("$"):
        console.print(f"  from the rollout {example['rollout']} in {source}", highlight=False)
        return
    sampled = artifact.parent(source[1:])
    rollout = next(row for row in read_rows(sampled.path / "rollouts.parquet") if row["id"] == example["rollout"])
    scores = ", ".join(f"{key[7:]} {value}" for key, value in rollout.items() if key.startswith("reward/"))
    drawn = f"sample {rollout['sample']} of problem {rollout['problem_id']} with seed {rollout['seed']}"
    console.print(f"  from the rollout {rollout['id']} in {sampled.path.name}: {drawn}, {scores}", highlight=False)
    config = sampled.spec.config
    how = f"temperature {config['temperature']}, top-p {config['top_p']}, prompt {config['prompt']}"
    model = config["model"] or f"{config['endpoint']['model']} at {config['endpoint']['url']}"
    console.print(f"  by the model {escape(model)} at {how}", highlight=False)
    for line in lineage(sampled, 2):
        console.print(escape(line), highlight=False, soft_wrap=True)


def find_example(artifacts: list[Artifact], name: str) -> tuple[Artifact, dict[str, Any]]:
    chosen = [artifact for artifact in artifacts if artifact.spec.kind == "select" and artifact.done]
    if not chosen:
        kinds = ", ".join(sorted({artifact.spec.kind for artifact in artifacts}))
        raise ValueError(f"{artifacts[0].path} is of kind {kinds}; examples are made by stages of kind select")
    rows = [(artifact, row) for artifact in chosen for row in read_rows(artifact.path / "examples.parquet")]
    for artifact, row in rows:
        if row["id"] == name:
            return artifact, row
    where = ", ".join(str(artifact.path) for artifact in chosen)
    raise ValueError(f"{where} has no example {name!r}; it has {len(rows)}, such as {rows[0][1]['id']}")


def metrics_table(metrics: list[dict[str, Any]]) -> Table:
    """First, middle and last steps; the rest is in metrics.jsonl."""
    wanted = ["reward", "pass_rate", "probe/pass@1", "completions/mean_length", "reflective_words", "loss", "grad_norm"]
    columns = [name for name in wanted if any(name in row for row in metrics)]
    table = new_table("step", *columns)
    for index in sorted({round(i * (len(metrics) - 1) / 7) for i in range(8)}):
        row = metrics[index]
        table.add_row(str(row["step"]), *(f"{row[name]:.3f}" if row.get(name) is not None else "" for name in columns))
    return table


def print_rollouts(console: Console, folder: Path, step: int | None, count: int) -> None:
    """The best and worst rollouts of a step, the newest step where none is named."""
    files = sorted(folder.glob("step_*.parquet"))
    path = folder / f"step_{step:06d}.parquet" if step is not None else files[-1]
    if not path.exists():
        raise ValueError(f"{folder} has no step {step}; it has {files[0].stem[5:]} to {files[-1].stem[5:]}")
    rows = sorted(read_rows(path), key=lambda row: -(row["advantage"] or 0.0))
    table = new_table("advantage", "rewards", "length", "completion", title=f"rollouts of {path.stem}")
    for row in rows[: -(-count // 2)] + rows[len(rows) - count // 2 :]:
        rewards = ", ".join(f"{key[7:]} {value}" for key, value in row.items() if key.startswith("reward/"))
        cut = " (cut)" if row["truncated"] else ""
        advantage = "" if row["advantage"] is None else f"{row['advantage']:+.2f}"
        table.add_row(advantage, rewards, f"{row['length']}{cut}", escape(row["completion"]))
    console.print(table)
