"""Prompt templates, and the one parser of completions that rewards and evaluation share."""

import json
import re
from dataclasses import dataclass
from typing import Any

# DeepSeek-R1 (arXiv 2501.12948) Table 1, word for word: structure only, no hint at how to solve anything.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think> <answer> answer here </answer>. User: {problem}\nAssistant:"
)

TEMPLATES = {
    "r1_zero": R1_ZERO,
    # The same conversation without the instructions, for a base model that knows nothing but this format.
    "plain": "User: {problem}\nAssistant:",
    # These go through the chat template that comes with the model: as it is, and as DeepSeek-R1's README says for math.
    "chat": "{problem}",
    "r1_chat": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.",
}
CHAT = ("chat", "r1_chat")

COMPLETION = re.compile(r"\s*<think>(?P<think>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
TAG = re.compile(r"</?(?:think|answer)>")
BRACE = re.compile(r"\\\\|\\[{}]|[{}]")  # an escaped brace is text
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a well-formed completion says: reasoning and answer, without the tags and surrounding space."""

    think: str
    answer: str


def render(template: str, problem: str) -> Any:
    """A prompt as TRL takes it: a string, or for those of `CHAT` a list of messages."""
    text = TEMPLATES[template].replace("{problem}", problem)
    return [{"role": "user", "content": text}] if template in CHAT else text


def encode(tokenizer: Any, prompt: Any) -> list[int]:
    """Token ids of a rendered prompt, as GRPOTrainer would tokenize it."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt).input_ids)
    return list(
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True).input_ids
    )


def prompt_text(tokenizer: Any, prompt: Any) -> str:
    """A rendered prompt as the model reads it."""
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))


def chat_template(template: str, first: str = "") -> str:
    """A chat template (Jinja) under which a user's message is the prompt that a text template makes of it.

    An assistant's message is closed by the end token. `first` is what the tokenizer writes before a text of its own
    accord, such as a `bos_token`; before a chat it does not.
    """
    first, before, after = (json.dumps(part) for part in (first, *TEMPLATES[template].split("{problem}")))
    return (
        "{{ " + first + " }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ " + before + " + message['content'] + " + after + " }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('this model knows only messages of user and assistant') }}{% endif %}{% endfor %}"
    )


def parse(completion: str) -> Parsed | None:
    """The parts of `<think>...</think><answer>...</answer>`; None when the completion is anything else.

    Strict, since what is not checked is what a policy learns to exploit: each tag exactly once and in this order, and
    nothing but white space before, between and after. Where the prompt has opened the thinking, put that in front.
    """
    if TAG.findall(completion) != TAGS:
        return None
    match = COMPLETION.fullmatch(completion)
    return Parsed(match["think"].strip(), match["answer"].strip()) if match else None


def reasoning(completion: str) -> str:
    """What stands between `<think>` and the last `</think>`, or the end where it is not closed; "" without tags."""
    thought, closed, _ = completion.rpartition("</think>")
    _, opened, inside = (thought if closed else completion).partition("<think>")
    return inside if opened else thought


def after_reasoning(completion: str) -> str:
    """What follows the last `</think>`; all where nothing was thought, and "" where the last thought has no end."""
    rest = completion.rpartition("</think>")[2]
    return "" if "<think>" in rest else rest


def final_answer(completion: str) -> str | None:
    r"""The answer as it is written: in the last `<answer>...</answer>` after the reasoning, else the last `\boxed{}`.

    A box inside `<answer>` is opened. None where there is neither, or where the last one is not closed: what was only
    thought, or cut off, was not answered.
    """
    rest = after_reasoning(completion)
    _, opened, answer = rest.rpartition("<answer>")
    if not opened:
        return boxed(rest)
    answer, closed, _ = answer.partition("</answer>")
    if not closed:
        return None
    inner = boxed(answer)
    return answer.strip() if inner is None else inner


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, its braces balanced; None where there is none or it is not closed."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    start = text.index("{", start)
    depth = 0
    for brace in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start + 1 : brace.start()].strip()
    return None


def opening(prompt: str) -> str:
    """What a prompt has already written of the completion: "<think>" where it ends so, else ""."""
    return "<think>" if prompt.rstrip().endswith("<think>") else ""


def text_of(completion: Any) -> str:
    """The text of a completion as TRL hands it to rewards: a string, or the messages of a chat."""
    return completion if isinstance(completion, str) else completion[-1]["content"] or ""


def messages_of(completion: Any) -> list[dict[str, str]]:
    """A completion as the messages of a chat, whichever of the two it is."""
    return [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion


def texts_of(completions: list, prefill: list[str] | None = None) -> list[str]:
    """The texts of completions with what the prompt had already written of each; the column `prefill` holds that."""
    return [
        before + text_of(each) for before, each in zip(prefill or [""] * len(completions), completions, strict=True)
    ]
