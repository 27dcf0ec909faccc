"""On-policy distillation by TRL's DistillationTrainer: the seams that it leaves open, filled.

As in r1lite/rollouts.py the rollouts come from an `Engine`, the prompts in an order that follows from the seed alone,
and every rollout is kept. The loss is TRL's own: over the tokens of the completions, the mean divergence of the
student's next-token distribution from the teacher's.
"""

import itertools
import math
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import AutoConfig
from trl import DistillationConfig, DistillationTrainer

from r1lite.metrics import reflective_words
from r1lite.models import load_model, load_tokenizer
from r1lite.preflight import prove_golds
from r1lite.prompts import render
from r1lite.records import Problem, Rollout
from r1lite.rollouts import EngineRollouts, Sampled, check_prompts, rollout_engine, train_from_engine
from r1lite.schedule import schedule
from r1lite.sharding import total_size, zero_stage
from r1lite.training import training_arguments

if TYPE_CHECKING:
    from r1lite.stages.distill import Config
    from r1lite.worker import Stage

BY_TEXT = "use a teacher with the student's tokenizer, or distill by text: `sample` with the teacher, then `sft`"


def train_distill(config: "Config", stage: "Stage") -> dict[str, Any]:
    """Train `config.model` and write model/, rollouts/ and metrics.jsonl. Returns facts for the manifest."""
    if zero_stage() == 3:
        raise ValueError(
            "launch.accelerate: TRL's loss of distillation does not gather what ZeRO-3 shares; take "
            "recipes/accelerate/fsdp2.yaml, or zero2.yaml"
        )
    path, teacher_path = stage.resolve(config.model), stage.resolve(config.teacher)
    tokenizer = load_tokenizer(path)
    same_vocabulary(tokenizer, load_tokenizer(teacher_path))
    width = shared_width(path, teacher_path)
    problems = stage.problems(config.problems)
    probed = load_probed(config, stage, tokenizer)
    longest = check_prompts(config, tokenizer, problems)
    arguments = distillation_arguments(config, stage, longest, len(problems))
    order = schedule(len(problems), config.prompts_per_step, arguments.max_steps, config.seed)
    model = load_model(path, "float32")
    trainer = StudentTrainer(
        config,
        stage,
        probed,
        model=model,
        teacher_model=load_teacher(teacher_path, width, "bfloat16" if arguments.bf16 else "float32"),
        args=arguments,
        train_dataset=to_dataset(config, problems).select([i for i in order for _ in range(config.generations)]),
        processing_class=tokenizer,
    )
    trainer.engine = rollout_engine(config, arguments, path, model, tokenizer, longest)
    facts = train_from_engine(trainer, stage, "on-policy distillation")
    sizes = {"teacher": trainer.teacher_model, "student": model}
    return facts | {f"{name}_parameters": total_size(sized) for name, sized in sizes.items()}


class StudentTrainer(EngineRollouts, DistillationTrainer):  # type: ignore[misc]
    """DistillationTrainer whose rollouts come from `engine` and are kept as rows."""

    def __init__(self, config: "Config", stage: "Stage", probed: list[Problem], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.prepare(config, stage, probed, config.probe.reward if config.probe else None)

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        finished = itertools.chain(*self.sample(prompt_ids[:: self.config.generations]))
        self.rollout = sorted(finished, key=lambda group: group.index)
        return [completion.token_ids for completion in self.sampled]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self.keep(inputs, [])
        return batch

    def rows_of(self, sampled: list[Sampled]) -> list[Rollout]:
        """The rollout as rows, which have no rewards; what TRL does not measure is added to the step's metrics."""
        texts = self.processing_class.batch_decode([ids for _, ids, *_ in sampled], skip_special_tokens=True)
        self._metrics["train"]["reflective_words"].append(fmean(map(reflective_words, texts)))
        return [
            Rollout(problem_id, index % self.config.generations, text, len(ids), truncated, {}, seed)
            for index, ((problem_id, ids, truncated, seed), text) in enumerate(zip(sampled, texts, strict=True))
        ]

    def save_reference(self, checkpoint: Path) -> None:
        """Nothing: the teacher stays as it is."""


def same_vocabulary(student: Any, teacher: Any) -> None:
    """Raise ValueError where two tokenizers do not give the same ids to the same texts, or end them differently."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    unlike = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if unlike:
        example = f"{unlike[0]!r} ({ours.get(unlike[0], 'none')} and {theirs.get(unlike[0], 'none')})"
        raise ValueError(
            f"the tokenizers of the student {student.name_or_path} and the teacher {teacher.name_or_path} differ: "
            f"{len(unlike):,} of {len(ours | theirs):,} tokens have another id or none in the other, such as "
            f"{example}; {BY_TEXT}"
        )
    if student.eos_token != teacher.eos_token:
        raise ValueError(
            f"the student ends its completions with {student.eos_token!r} and the teacher with {teacher.eos_token!r}, "
            "so the student would learn not to end; set one eos_token in both tokenizer_config.json, or " + BY_TEXT
        )
    added = [tokenizer("").input_ids for tokenizer in (student, teacher)]
    if added[0] != added[1]:
        raise ValueError(
            f"the student's tokenizer adds the ids {added[0]} to a text and the teacher's {added[1]}, so the teacher "
            f"would read prompts that are not as it knows them; set one add_bos_token in both, or {BY_TEXT}"
        )


def shared_width(student: Path, teacher: Path) -> int:
    """How many logits both models are to have: the student's.

    Embeddings are often padded beyond the tokenizer, and to different sizes in one family (Qwen2.5: 151,936 up to 3B,
    152,064 from 7B). What a teacher has more stands for no token and is dropped.
    """
    ours, theirs = (AutoConfig.from_pretrained(path).get_text_config().vocab_size for path in (student, teacher))
    if theirs < ours:
        raise ValueError(
            f"the student has {ours:,} logits and the teacher only {theirs:,}, so some of the student's have no "
            f"counterpart; {BY_TEXT}"
        )
    return int(ours)


def load_teacher(path: Path, width: int, dtype: str) -> Any:
    """A model that is never trained, with its first `width` logits."""
    teacher = load_model(path, dtype)
    teacher.resize_token_embeddings(width)
    return teacher.eval().requires_grad_(False)


def load_probed(config: "Config", stage: "Stage", tokenizer: Any) -> list[Problem]:
    """The problems of the probe, if there is one, once its reward is proven on their golds."""
    if config.probe is None:
        return []
    problems = stage.problems(config.probe.problems, config.probe.limit)
    prove_golds(config.probe.reward, stage.resolve, config.prompt, tokenizer, problems, config.probe.problems)
    return problems


def distillation_arguments(
    config: "Config", stage: "Stage", longest_prompt: int, n_problems: int
) -> DistillationConfig:
    epochs = config.trainer.get("num_train_epochs")
    return training_arguments(
        stage,
        config,
        asked="prompts_per_step",
        rows_each=config.generations,
        row_tokens=longest_prompt + config.max_tokens,
        max_steps=(
            config.trainer["max_steps"] if epochs is None else math.ceil(epochs * n_problems / config.prompts_per_step)
        ),
        arguments=DistillationConfig,
        max_completion_length=config.max_tokens,
        temperature=config.temperature,
        shuffle_dataset=False,
        remove_unused_columns=False,
    )


def to_dataset(config: "Config", problems: list[Problem]) -> Dataset:
    prompts = [render(config.prompt, problem.problem) for problem in problems]
    return Dataset.from_dict({"prompt": prompts, "problem_id": [problem.id for problem in problems]})
