"""Evaluation: k samples a problem, pass@1 as their mean (DeepSeek-R1, arXiv 2501.12948v2, D.1)."""

from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from r1lite.metrics import estimate, mean_or_none, pass_at_k, reflective_words
from r1lite.observe import Progress, say
from r1lite.preflight import prove_golds
from r1lite.problems import load_problems
from r1lite.prompts import encode, render
from r1lite.records import Problem, Rollout, digest, read_rows, seed_from, write_json, write_parquet
from r1lite.rubric import RewardFunction, grade, load_reward
from r1lite.stages.config import EngineName, ModelReference, ProblemsReference, Reward, StageConfig

if TYPE_CHECKING:
    from r1lite.engines import Completion, Engine
    from r1lite.worker import Stage


class Config(StageConfig):
    """The decoding defaults are the paper's: temperature 0.6, top-p 0.95."""

    PRODUCES: ClassVar[str] = "report"

    kind: Literal["eval"]
    models: list[ModelReference] = Field(min_length=1, description="what to evaluate: $stage, a directory or a hub id")
    problems: list[ProblemsReference] = Field(min_length=1, description="on what: card.yaml#split, .jsonl or .parquet")
    limit: int | None = Field(None, gt=0)
    samples: int = Field(gt=0, description="completions per problem; R1 took 64 for AIME, 16 for MATH")
    max_tokens: int = Field(gt=0, description="the longest completion, in tokens")
    temperature: float = Field(0.6, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    reward: Reward = Reward(use="rewards.math:accuracy")
    engine: EngineName = "auto"


def run(config: Config, stage: "Stage") -> dict[str, Any]:
    """report.json: {"protocol": {...}, "results": [one object for each model and set of problems]}."""
    from r1lite.curves import draw_pass_at_k

    problem_sets = {name: load_problems(name, config.limit) for name in config.problems}
    results = []
    for model in config.models:
        samples = sample_model(config, stage, model, problem_sets)
        results += [
            {"model": model, "problems": name, **summarize(rows, config.samples, config.reward.name)}
            for name, rows in samples.items()
        ]
    write_json(stage.path / "report.json", {"protocol": protocol(config), "results": results})
    draw_pass_at_k(stage.path, results)
    return {"results": results}


def protocol(config: Config) -> dict[str, Any]:
    keys = {"prompt", "samples", "max_tokens", "temperature", "top_p", "seed", "reward"}
    return config.model_dump(include=keys)


def sample_model(
    config: Config, stage: "Stage", model: str, problem_sets: dict[str, list[Problem]]
) -> dict[str, list[dict[str, Any]]]:
    """A model's graded samples by set of problems: those that an interrupted run has left, and the missing ones."""
    from r1lite.engines import open_engine
    from r1lite.models import load_tokenizer

    folders = {name: stage.path / "samples" / f"{digest(model)[:8]}-{digest(name)[:8]}" for name in problem_sets}
    samples = {name: read_parts(folder) for name, folder in folders.items()}
    missing = {}
    for name, problems in problem_sets.items():
        there = {row["problem_id"] for row in samples[name]}
        missing[name] = [problem for problem in problems if problem.id not in there]
    if not any(missing.values()):
        return samples

    path = stage.resolve(model)
    tokenizer = load_tokenizer(path)
    reward = load_reward(config.reward, stage.resolve)
    longest = max(
        len(encode(tokenizer, render(config.prompt, problem.problem)))
        for problems in problem_sets.values()
        for problem in problems
    )
    for name, problems in problem_sets.items():
        prove_golds(config.reward, stage.resolve, config.prompt, tokenizer, problems, name)
    engine = open_engine(config.engine, path, tokenizer, longest + config.max_tokens, config.seed)
    for name, problems in missing.items():
        say(f"  {model} on {name}: {len(problems)} problems to sample, {len(problem_sets[name]) - len(problems)} done")
        samples[name] += sample_missing(config, reward, engine, tokenizer, problems, folders[name])
    engine.close()
    return samples


def read_parts(folder: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(folder.glob("part_*.parquet")) for row in read_rows(part)]


def sample_missing(
    config: Config, reward: RewardFunction, engine: "Engine", tokenizer: Any, problems: list[Problem], folder: Path
) -> list[dict[str, Any]]:
    """Sample and grade problems, a part file a batch, so that a crash costs a batch at most."""
    from r1lite.engines import Sampling, chunks

    rows: list[dict[str, Any]] = []
    progress = Progress(len(problems))
    for batch in chunks(problems, max(1, engine.batch // config.samples)):
        seed = seed_from(f"{config.seed}/{batch[0].id}")
        sampling = Sampling(config.max_tokens, config.temperature, config.top_p, seed=seed)
        prompts = [encode(tokenizer, render(config.prompt, problem.problem)) for problem in batch]
        graded = to_rows(config, reward, tokenizer, batch, engine.generate(prompts, config.samples, sampling), seed)
        write_parquet(folder / f"part_{len(list(folder.glob('part_*'))):05d}.parquet", graded)
        rows += graded
        progress.advance(len(batch))
        right = fmean(row[f"reward/{config.reward.name}"] for row in rows)
        say(f"  {progress.done}/{progress.total} problems, pass@1 {right:.3f}, ETA {progress.eta()}")
    return rows


def to_rows(
    config: Config,
    reward: RewardFunction,
    tokenizer: Any,
    problems: list[Problem],
    groups: list[list["Completion"]],
    seed: int,
) -> list[dict[str, Any]]:
    texts, scores, metrics = grade(reward, tokenizer, config.prompt, problems, groups)
    for name, value in metrics.items():
        if value:
            say(f"  {name}: {value:g}")
    owners = [problem for problem in problems for _ in range(config.samples)]
    sampled = [completion for group in groups for completion in group]
    return [
        Rollout(
            problem_id=owner.id,
            sample=index % config.samples,
            completion=text,
            length=len(completion.token_ids),
            truncated=completion.truncated,
            rewards={config.reward.name: score or 0.0},
            seed=seed,
        ).row()
        for index, (owner, completion, text, score) in enumerate(zip(owners, sampled, texts, scores, strict=True))
    ]


def summarize(rows: list[dict[str, Any]], samples: int, right_by: str) -> dict[str, Any]:
    """Metrics of graded samples; `right_by` names the reward, 0 or 1, that says which are right."""
    score = f"reward/{right_by}"
    by_problem: dict[str, list[float]] = {}
    for row in rows:
        by_problem.setdefault(row["problem_id"], []).append(row[score])
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= samples]
    pass_at = {k: estimate([pass_at_k(samples, round(sum(right)), k) for right in by_problem.values()]) for k in ks}
    return {
        "n_problems": len(by_problem),
        "n_samples": samples,
        "pass@1": pass_at[1].mean,
        "pass@1_ci_problems": [pass_at[1].low, pass_at[1].high],
        "pass@k": {str(k): asdict(value) for k, value in pass_at.items()},
        "mean_length": mean_or_none([row["length"] for row in rows]),
        "mean_length_right": mean_or_none([row["length"] for row in rows if row[score]]),
        "mean_length_wrong": mean_or_none([row["length"] for row in rows if not row[score]]),
        "truncated": mean_or_none([float(row["truncated"]) for row in rows]),
        "reflective_words": mean_or_none([float(reflective_words(row["completion"])) for row in rows]),
    }
