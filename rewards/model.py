"""What a reward model thinks of the completion."""

import math
from functools import cache
from typing import Any

from r1lite.prompts import after_reasoning, final_answer, texts_of

BATCH = 16


def helpfulness(
    completions: list, prompts: list, model: str, prefill: list[str] | None = None, **_: Any
) -> list[float | None]:
    """The model's score of the final answer alone, so that it does not meddle with the reasoning (R1 v2 §3.1).

    The final answer is what stands in `<answer>` or a box, else all that follows the reasoning. See `score`.
    """
    return score(model, prompts, [shown(text) for text in texts_of(completions, prefill)], prefill)


def harmlessness(
    completions: list, prompts: list, model: str, prefill: list[str] | None = None, **_: Any
) -> list[float | None]:
    """The model's score of the whole response, since harm may be anywhere in it (R1 v2 §3.1). See `score`."""
    return score(model, prompts, texts_of(completions, prefill), prefill)


def shown(text: str) -> str:
    """What a user gets to read."""
    answer = final_answer(text)
    return after_reasoning(text) if answer is None else answer


def score(name: str, prompts: list, responses: list[str], prefill: list[str] | None) -> list[float | None]:
    """One raw logit a response, any real number; None, "no score", where the model's number is not finite.

    `name` is the directory or hub id of a sequence classification model of transformers with one label. Prompts of
    messages go through its chat template where it has one; what is too long for it loses its beginning. Raises
    ValueError when there is no such model.
    """
    import torch

    tokenizer, model = load(name)
    prompts = [
        without_prefill(prompt, before) for prompt, before in zip(prompts, prefill or [""] * len(prompts), strict=True)
    ]
    templated = tokenizer.chat_template is not None and isinstance(prompts[0], list)
    texts = [
        dialogue(tokenizer, prompt, response) if templated else plain(prompt, response)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    scores: list[float] = []
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(
            texts[start : start + BATCH],
            add_special_tokens=not templated,  # a template writes them itself
            padding=True,
            truncation=True,
            max_length=longest_input(tokenizer, model),
            return_tensors="pt",
        )
        with torch.inference_mode():
            scores += model(**batch.to(model.device)).logits[:, 0].float().tolist()
    return [number if math.isfinite(number) else None for number in scores]


@cache
def load(name: str) -> tuple[Any, Any]:
    """Tokenizer and model, once a process, on the GPU where there is one; only safetensors, and no code of theirs."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False, padding_side="right", truncation_side="left"
        )
        model = AutoModelForSequenceClassification.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
    except Exception as error:  # nothing there, a damaged file, an architecture without a classifier
        raise ValueError(f"{name} cannot be loaded as a reward model: {str(error)[:300]}") from error
    if model.config.num_labels != 1:
        raise ValueError(
            f"{name} has {model.config.num_labels} labels, and a reward model has one score; "
            "name a sequence classification model that was trained with num_labels=1"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def longest_input(tokenizer: Any, model: Any) -> int:
    """In tokens. A tokenizer that knows no limit says 1e30, and some models have none."""
    return int(min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**6))


def without_prefill(prompt: Any, before: str) -> Any:
    """The prompt without what it has written of the completion, as the response brings that along."""
    return prompt.rstrip().removesuffix(before) if before and isinstance(prompt, str) else prompt


def dialogue(tokenizer: Any, messages: list[dict[str, str]], response: str) -> str:
    messages = [*messages, {"role": "assistant", "content": response}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def plain(prompt: Any, response: str) -> str:
    if isinstance(prompt, str):
        return prompt + response
    return "\n".join([*(message["content"] for message in prompt), response])
