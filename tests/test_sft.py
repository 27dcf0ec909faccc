import json
import random
from pathlib import Path

import pytest
import torch
import trl
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import MambaConfig, MambaForCausalLM

from r1lite import finetune
from r1lite.artifacts import Artifact, Spec, read_json
from r1lite.finetune import PackedCollator, passes, prove_apart, template_end, tokenize, train_sft, unwritten
from r1lite.models import end_tokens, load_generation_config, load_model, load_tokenizer
from r1lite.observe import read_metrics
from r1lite.problems import iterate_examples
from r1lite.prompts import TEMPLATES, chat_template, encode, render
from r1lite.records import Problem, write_parquet
from r1lite.stages.sft import Config
from r1lite.worker import Stage

IM_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
SGD = {"max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}


def make_stage(path, config: Config) -> Stage:
    spec = Spec("t", "cold", "sft", {"a": 1}, {}, config.model_dump(mode="json"))
    Artifact(path).prepare(spec)
    return Stage(path, spec)


def write_examples(path, count: int) -> str:
    """Examples of 14 to 52 tokens in the tiny world's vocabulary, without answers, and several of one problem."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        a, b = rng.randrange(10), rng.randrange(3)
        thought = "-".join(str(rng.randrange(10)) for _ in range(rng.randrange(1, 21)))
        completion = f"<think>{thought}</think><answer>{(a + b) % 10}</answer>"
        rows.append({"problem": f"{a}+{b}=?", "completion": completion})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("corpus") / "examples.jsonl", 60)


def settings(model, corpus, **changes) -> dict:
    """One epoch, packed, unless said otherwise; a stated max_steps takes the epoch's place."""
    given = {
        "kind": "sft",
        "prompt": "plain",
        "model": str(model),
        "examples": [corpus],
        "rows_per_step": 4,
        "max_tokens": 64,
    }
    keys = {"learning_rate": 1e-2, "gradient_checkpointing": False, "num_train_epochs": 1}
    if "max_steps" in changes.get("trainer", {}):
        del keys["num_train_epochs"]
    return {**given, **changes, "trainer": {**keys, **changes.get("trainer", {})}}


def make_config(model, corpus, **changes) -> Config:
    return Config.model_validate(settings(model, corpus, **changes))


def expected_ids(tokenizer, config) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of each example, by the plainest way."""
    return [
        (tokenizer(f"User: {p.problem}\nAssistant:").input_ids, tokenizer(p.columns["completion"] + "<eos>").input_ids)
        for p in iterate_examples(config.examples[0])
    ]


def test_a_prompt_is_not_learned_and_a_completion_is_with_its_end_token(toy_model, corpus):
    config = make_config(toy_model, corpus)
    tokenizer = load_tokenizer(toy_model)
    examples = tokenize(config, tokenizer, list(iterate_examples(corpus)))
    pairs = expected_ids(tokenizer, config)
    for row, (prompt, completion) in zip(examples.dataset, pairs, strict=True):
        assert row["input_ids"] == prompt + completion
        assert row["labels"] == [-100] * len(prompt) + completion
        assert row["labels"][-1] == tokenizer.eos_token_id
    assert examples.learned == sum(len(completion) for _, completion in pairs)
    assert examples.truncated == 0


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_shows_every_example_once_and_nothing_else_is_learned(
    toy_model, corpus, tmp_path, monkeypatch, packing
):
    config = make_config(toy_model, corpus, trainer={"packing": packing}, micro_batch=2)
    seen, step = [], finetune.RowTrainer.compute_loss

    def compute_loss(self, model, inputs, *arguments, **named):
        seen.extend(examples_in(inputs))
        return step(self, model, inputs, *arguments, **named)

    monkeypatch.setattr(finetune.RowTrainer, "compute_loss", compute_loss)
    facts = train_sft(config, make_stage(tmp_path, config))
    pairs = expected_ids(load_tokenizer(toy_model), config)
    expected = [(prompt + completion, [-100] * len(prompt) + completion) for prompt, completion in pairs]
    assert facts["rows"] < 40 if packing else facts["rows"] == 60
    assert facts["tokens"] == sum(len(completion) for _, completion in pairs)
    learned = sum(label != -100 for _, labels in seen for label in labels)
    assert facts["tokens_learned"] == pytest.approx(learned, rel=0.1), "with what fills the last step"
    assert sorted(seen[:60]) == sorted(expected)
    assert all(each in expected for each in seen[60:]), "the last step is filled from the next pass"


def examples_in(inputs) -> list[tuple[list[int], list[int]]]:
    """The examples of a micro-batch, (ids, labels) each; padding must not be learned."""
    found = []
    for row, (ids, labels) in enumerate(zip(inputs["input_ids"].tolist(), inputs["labels"].tolist(), strict=True)):
        if "attention_mask" in inputs:
            starts, end = [0], int(inputs["attention_mask"][row].sum())
        else:
            positions = inputs["position_ids"][row].tolist()
            starts, end = [i for i, position in enumerate(positions) if position == 0], len(ids)
        for start, stop in zip(starts, [*starts[1:], end], strict=True):
            if set(labels[start:stop]) != {-100}:
                found.append((ids[start:stop], labels[start:stop]))
        assert set(labels[end:]) <= {-100}
    return found


def test_loss_and_gradient_depend_on_neither_packing_nor_micro_batch(toy_model, corpus, tmp_path):
    """One step of plain SGD over all examples: what the weights lose is the gradient."""
    before = load_file(toy_model / "model.safetensors")
    few = write_examples(tmp_path / "few.jsonl", 12)
    results = []
    for packing, rows, micro_batch in ((False, 12, 1), (False, 12, 12), (True, 6, 1), (True, 6, 3)):
        path = tmp_path / f"{packing}-{micro_batch}"
        config = make_config(
            toy_model, few, rows_per_step=rows, micro_batch=micro_batch, trainer={**SGD, "packing": packing}
        )
        facts = train_sft(config, make_stage(path, config))
        assert facts["rows"] == rows
        after = load_file(path / "model" / "model.safetensors")
        results.append((facts["loss"], {key: before[key] - after[key] for key in before}))
    (loss, gradient), *others = results
    for other_loss, other in others:
        assert other_loss == pytest.approx(loss, abs=1e-5)
        for key, value in gradient.items():
            assert torch.allclose(other[key], value, atol=1e-5), key


def packed(*lengths: int, seed: int = 0) -> dict:
    ids = torch.randint(3, 20, (sum(lengths),), generator=torch.Generator().manual_seed(seed)).tolist()
    return {"input_ids": ids, "labels": ids, "seq_lengths": list(lengths)}


def test_examples_of_a_row_do_not_see_each_other(toy_model):
    model = load_model(toy_model, "float32")
    first, other = packed(9, 7, 12), packed(9, 7, 12, seed=1)
    other["input_ids"][9:16] = first["input_ids"][9:16]
    batch = PackedCollator(0)([first, other, packed(4)])
    assert "attention_mask" not in batch
    assert batch["position_ids"][0].tolist() == [*range(9), *range(7), *range(12)]
    assert batch["labels"][2].tolist()[4:] == [-100] * 24
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    assert torch.equal(logits[0, 9:16], logits[1, 9:16])
    assert not torch.allclose(logits[0, 16:], logits[1, 16:])
    alone = model(input_ids=torch.tensor([first["input_ids"][16:]])).logits
    assert torch.allclose(logits[0, 16:], alone[0], atol=1e-5)


def test_a_row_whose_examples_would_see_each_other_is_refused(toy_model, corpus):
    class Leaky(PackedCollator):
        def torch_call(self, examples):
            return super().torch_call([{"input_ids": example["input_ids"]} for example in examples])

    config, ids = make_config(toy_model, corpus), packed(16)["input_ids"]
    model = load_model(toy_model, "float32")
    prove_apart(config, model, PackedCollator(0), ids)
    with pytest.raises(ValueError, match="does not keep the examples of a packed row apart.*packing: false}"):
        prove_apart(config, model, Leaky(0), ids)
    stateful = MambaForCausalLM(MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=4))
    with pytest.raises(ValueError, match="MambaForCausalLM.*packing: false}"):
        prove_apart(config, stateful, PackedCollator(0), ids)


def test_what_is_longer_than_max_tokens_loses_its_end_and_is_counted(toy_model, corpus, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(finetune, "say", said.append)
    config = make_config(toy_model, corpus, max_tokens=30, trainer={"max_steps": 1})
    tokenizer = load_tokenizer(toy_model)
    lengths = [len(prompt + completion) for prompt, completion in expected_ids(tokenizer, config)]
    cut = sum(length > 30 for length in lengths)
    examples = tokenize(config, tokenizer, list(iterate_examples(corpus)))
    assert 0 < cut < 60
    assert examples.truncated == cut
    assert [len(row) for row in examples.dataset["input_ids"]] == [min(length, 30) for length in lengths]
    assert sum(row[-1] == tokenizer.eos_token_id for row in examples.dataset["input_ids"]) == 60 - cut
    assert said == [f"  {cut} of 60 examples are cut off at max_tokens = 30"]
    facts = train_sft(config, make_stage(tmp_path, config))
    assert facts["truncated"] == cut
    assert facts["tokens"] == sum(label != -100 for row in examples.dataset["labels"] for label in row)
    long = sum(len(prompt) >= 7 for prompt, _ in expected_ids(tokenizer, config))
    with pytest.raises(ValueError, match=f"prompts of {long} of 60 examples fill max_tokens = 7 .* raise max_tokens"):
        tokenize(make_config(toy_model, corpus, max_tokens=7), tokenizer, list(iterate_examples(corpus)))


@pytest.mark.parametrize(
    ("prompt", "completion", "expected", "why"),
    [
        ("Assistant:", "<think>a", "<think>a", "the prompt has written nothing"),
        ("Assistant:", " <think>a", " <think>a", "white space is the completion's own"),
        ("Assistant:<think>", "<think>a", "a", "not twice"),
        ("Assistant:<think>\n", "<think>\na", "a", "nor the line break"),
        ("Assistant:<think>\n", "<think>\n\na", "\na", "only the prompt's"),
        ("Assistant:<think>\n", "<think>a", "a", "the prompt's line break stays"),
        ("Assistant:<think>", "<think>\na", "\na", "the completion's line break stays"),
        ("Assistant:<think>\n", "\n<think>\na", "a", "before it there was none"),
        ("Assistant:<think>\n", "a</think>", "a</think>", "a completion that goes on where the prompt ends"),
    ],
)
def test_reasoning_that_the_prompt_has_opened_is_not_opened_again(prompt, completion, expected, why):
    assert unwritten(prompt, completion) == expected, why


def chat_model(path, toy_model, template=IM_TEMPLATE, eos="<eos>", stops=("<eos>",)):
    """The toy with two more tokens and a chat template."""
    tokenizer, model = load_tokenizer(toy_model), load_model(toy_model, "float32")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template, tokenizer.eos_token = template, eos
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(stops))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        ({}, {"prompt": "chat"}, r"with '<eos>', its tokenizer's end token, but its chat template ends .* '<\|im_end\|>'; set trainer: {eos_token: \"<\|im_end\|>\"}"),
        ({"eos": "<|im_end|>"}, {"prompt": "chat"}, r"with '<\|im_end\|>', but its generation config stops at '<eos>' alone; set trainer: {eos_token: \"<\|im_end\|>\"}"),
        ({"eos": "<|im_end|>"}, {}, r"generation config stops at '<eos>' alone"),
        ({}, {"prompt": "chat", "trainer": {"eos_token": "<eos>"}}, r"set trainer: {eos_token: \"<\|im_end\|>\"}"),
        ({"template": "{% for m in messages %}{{ m.content }}{% endfor %}"}, {"prompt": "chat"}, "no special token after what an assistant says.*chat_template_path: FILE.jinja}"),
        ({"template": None}, {"prompt": "chat"}, "has no chat template, which prompt: chat needs; set trainer: {chat_template_path: FILE.jinja}"),
        ({}, {"trainer": {"eos_token": "</s>"}}, "trainer.eos_token: '</s>' is no token of"),
    ],
)  # fmt: skip
def test_ends_that_disagree_are_refused_with_the_remedy(toy_model, corpus, tmp_path, made, changes, message):
    config = make_config(chat_model(tmp_path / "m", toy_model, **made), corpus, **changes)
    with pytest.raises(ValueError, match=message):
        train_sft(config, make_stage(tmp_path / "stage", config))


@pytest.mark.parametrize(
    ("file", "end"),
    [
        ("qwen2_5.jinja", "<|im_end|>"),
        ("qwen3.jinja", "<|im_end|>"),
        ("llama3.jinja", "<|eot_id|>"),
        ("deepseek_r1_distill.jinja", "<｜end▁of▁sentence｜>"),
    ],
)
def test_the_end_that_a_chat_template_in_use_writes(toy_model, file, end):
    tokenizer = load_tokenizer(toy_model)
    tokenizer.add_tokens([end], special_tokens=True)
    tokenizer.bos_token = "<pad>"
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / file).read_text()
    assert template_end(tokenizer) == end


@pytest.mark.parametrize("from_file", [False, True])
def test_a_stated_end_token_ends_training_generation_and_the_chat(toy_model, corpus, tmp_path, from_file):
    source = chat_model(tmp_path / "m", toy_model, **({"template": None} if from_file else {}))
    keys = {"max_steps": 1, "eos_token": "<|im_end|>"}
    if from_file:
        (tmp_path / "im.jinja").write_text(IM_TEMPLATE)
        keys["chat_template_path"] = str(tmp_path / "im.jinja")
    config = make_config(source, corpus, prompt="chat", trainer=keys)
    assert not list(config.faults())
    train_sft(config, make_stage(tmp_path / "stage", config))
    saved = tmp_path / "stage" / "model"
    tokenizer = load_tokenizer(saved)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == IM_TEMPLATE
    assert end in end_tokens(load_generation_config(saved), tokenizer)
    assert end in read_json(saved / "generation_config.json")["eos_token_id"]
    assert read_json(saved / "config.json")["eos_token_id"] == end
    examples = tokenize(config, tokenizer, list(iterate_examples(corpus)))
    for row, problem in zip(examples.dataset, iterate_examples(corpus), strict=True):
        assert tokenizer.decode(row["input_ids"]) == (
            f"<|im_start|>{problem.problem}<|im_end|><|im_start|>{problem.columns['completion']}<|im_end|>"
        )
    again = make_config(saved, corpus, prompt="chat", trainer={"max_steps": 1})
    train_sft(again, make_stage(tmp_path / "again", again))  # now all ends agree


def test_a_chat_prompt_that_opens_the_reasoning_does_so_once(toy_model, corpus, tmp_path):
    opened = IM_TEMPLATE.replace("'<|im_start|>' }}{% endif", "'<|im_start|><think>' }}{% endif")
    source = chat_model(tmp_path / "m", toy_model, opened, "<|im_end|>", ["<|im_end|>"])
    config = make_config(source, corpus, prompt="chat")
    tokenizer = load_tokenizer(source)
    example = Problem("8*?-9*3=5", "", {"completion": "<think>1</think><answer>3</answer>"})
    (row,) = tokenize(config, tokenizer, [example]).dataset
    assert tokenizer.decode(row["input_ids"]) == (
        "<|im_start|>8*?-9*3=5<|im_end|><|im_start|><think>1</think><answer>3</answer><|im_end|>"
    )
    learned = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(learned) == "1</think><answer>3</answer><|im_end|>"


def test_a_text_prompt_is_saved_as_a_chat_template_of_the_same_tokens(toy_model, corpus, tmp_path):
    config = make_config(toy_model, corpus, trainer={"max_steps": 1})
    train_sft(config, make_stage(tmp_path, config))
    tokenizer = load_tokenizer(tmp_path / "model")
    for problem in iterate_examples(corpus):
        chat = [{"role": "user", "content": problem.problem}]
        assert encode(tokenizer, chat) == encode(tokenizer, render("plain", problem.problem))
        told = [*chat, {"role": "assistant", "content": problem.columns["completion"]}]
        whole = render("plain", problem.problem) + problem.columns["completion"] + tokenizer.eos_token
        assert tokenizer.apply_chat_template(told, tokenize=False) == whole
    with pytest.raises(Exception, match="only messages of user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "1"}], tokenize=False)


@pytest.mark.parametrize(
    "template", [name for name, text in TEMPLATES.items() if render(name, "") == text.replace("{problem}", "")]
)
@pytest.mark.parametrize("problem", ["1+1?", 'a "b" \\frac{1}{2} {{ c }} {% d %}', "x\n\ny's é {problem}"])
def test_the_chat_template_of_a_text_template_writes_its_text(toy_model, template, problem):
    tokenizer = load_tokenizer(toy_model)
    tokenizer.chat_template = chat_template(template)
    chat = [{"role": "user", "content": problem}]
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) == render(template, problem)


def test_what_a_tokenizer_writes_before_every_text_is_in_the_chat_template_too(toy_model, corpus, tmp_path):
    tokenizer = load_tokenizer(toy_model)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(tmp_path)
    ready = finetune.prepare_tokenizer(make_config(toy_model, corpus), tmp_path)
    ids = encode(ready, render("plain", "8*?-9*3=5"))
    assert ids[0] == tokenizer.bos_token_id
    assert encode(ready, [{"role": "user", "content": "8*?-9*3=5"}]) == ids


class Crash(Exception):
    pass


@pytest.mark.parametrize("packing", [True, False])
def test_an_interrupted_run_resumed_is_the_uninterrupted_run(toy_model, corpus, tmp_path, monkeypatch, packing):
    config = make_config(toy_model, corpus, trainer={"packing": packing, "max_steps": 7, "save_steps": 2})
    whole, torn = make_stage(tmp_path / "whole", config), make_stage(tmp_path / "torn", config)
    train_sft(config, whole)
    step = finetune.RowTrainer.training_step

    def crash_in_step_6(self, *arguments, **named):
        if self.state.global_step == 5:
            raise Crash
        return step(self, *arguments, **named)

    monkeypatch.setattr(finetune.RowTrainer, "training_step", crash_in_step_6)
    with pytest.raises(Crash):
        train_sft(config, torn)
    monkeypatch.setattr(finetune.RowTrainer, "training_step", step)
    train_sft(config, torn)
    expected, got = (load_file(stage.path / "model" / "model.safetensors") for stage in (whole, torn))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    rows = [[{**row, "time": 0} for row in read_metrics(stage.path / "metrics.jsonl")] for stage in (whole, torn)]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [1, 2, 3, 4, 5, 6, 7]


def test_it_learns_and_writes_what_people_look_at(toy_model, corpus, tmp_path):
    config = make_config(toy_model, corpus, trainer={"num_train_epochs": 3})
    facts = train_sft(config, make_stage(tmp_path, config))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert facts["steps"] == len(rows) == -(-3 * facts["rows"] // 4)
    assert facts["examples"] == 60
    assert facts["loss"] == rows[-1]["loss"] < rows[0]["loss"] - 1
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    assert not list((tmp_path / "model").glob("*.bin"))


def test_a_pass_is_a_permutation_and_a_longer_run_begins_as_the_shorter_one():
    order = passes(7, 17, 0)
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert order[:7] != order[7:14]
    assert len(order) == 17
    assert passes(7, 30, 0)[:17] == order != passes(7, 17, 1)


def test_examples_come_from_an_earlier_stage_a_file_or_a_card(toy_model, corpus, tmp_path):
    rows = [{"id": "e-1", "problem": "1+1=?", "answer": "", "completion": f"<think>{n}</think>"} for n in (1, 2)]
    write_parquet(tmp_path / "select-1" / "examples.parquet", rows)
    (tmp_path / "card.yaml").write_text(
        f"description: d\nlicense: l\ncolumns: {{answer: null}}\nsplits: {{all: {{file: {corpus}, limit: 3}}}}\n"
    )
    config = make_config(toy_model, corpus, examples=["$select", corpus, f"{tmp_path}/card.yaml#all"])
    spec = Spec("t", "cold", "sft", {"a": 1}, {"select": "select-1"}, config.model_dump(mode="json"))
    Artifact(tmp_path / "sft-1").prepare(spec)
    examples = finetune.read_examples(config, Stage(tmp_path / "sft-1", spec))
    assert len(examples) == 2 + 60 + 3
    assert [example.columns["completion"] for example in examples[:2]] == ["<think>1</think>", "<think>2</think>"]


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"problem": "1+1=?"}, {}, "example 1 has no completion to learn; give every row .* `completion`"),
        ({"problem": "1+1=?", "completion": " "}, {}, "example 1 has no completion to learn"),
        ({"problem": "1+1=?", "completion": 7}, {}, "the completion must be a text or messages"),
        ({"problem": "1+1=?", "completion": "seven"}, {}, "no tokens for the completion 'seven'; use another prompt .*'plain'"),
        ({"problem": "one?", "completion": "7"}, {}, "no tokens for the prompt 'User: one"),
        ({"problem": "1+1=?", "completion": "7"}, {"prompt": "r1_zero"}, "use another prompt template than 'r1_zero'"),
        ({"problem": "1+1=?", "completion": "7"}, {}, "rows_per_step = 4 rows of max_tokens = 64, but the examples fill only 1; lower"),
    ],
)  # fmt: skip
def test_examples_that_cannot_be_learned_are_errors(toy_model, tmp_path, row, changes, message):
    path = tmp_path / "examples.jsonl"
    path.write_text(json.dumps(row) + "\n")
    config = make_config(toy_model, str(path), **changes)
    with pytest.raises(ValueError, match=message):
        train_sft(config, make_stage(tmp_path / "stage", config))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"trainer": {"max_length": 100}}, "trainer.max_length: set by r1lite; use max_tokens instead"),
        ({"trainer": {"completion_only_loss": False}}, "trainer.completion_only_loss: set by r1lite; use nothing: completions are learned, prompts never instead"),
        ({"trainer": {"packing_strategy": "wrapped"}}, "trainer.packing_strategy: set by r1lite; use packing: on or off; an example never sees another instead"),
        ({"trainer": {"learning_rte": 1}}, "trainer.learning_rte: not a field of SFTConfig, did you mean 'learning_rate'?"),
        ({"trainer": {"packing": 1}}, "trainer.packing: must be bool; got 1"),
        ({"trainer": {"max_steps": 0}}, "trainer.max_steps: must be a whole number of at least 1; got 0"),
        ({"trainer": {"save_steps": 0.5}}, "trainer.save_steps: must be a whole number of at least 1; got 0.5"),
        ({"trainer": {"num_train_epochs": 0}}, "trainer.num_train_epochs: must be more than 0; got 0"),
        ({"trainer": {"max_steps": 3, "num_train_epochs": 1}}, "trainer: state one of max_steps and num_train_epochs"),
        ({"micro_batch": 3}, "micro_batch: 3 does not divide rows_per_step = 4"),
        ({"trainer": {"chat_template_path": "README.md"}, "prompt": "chat"}, "trainer.chat_template_path: must be a .jinja file; there is none at README.md"),
        ({"trainer": {"chat_template_path": "no.jinja"}, "prompt": "chat"}, "trainer.chat_template_path: must be a .jinja file; there is none at no.jinja"),
        ({"trainer": {"chat_template_path": "no.jinja"}}, "trainer.chat_template_path: no.jinja would not be used, since prompt: plain is a text template"),
    ],
)  # fmt: skip
def test_faults_of_a_config(toy_model, corpus, changes, fault):
    (found,) = make_config(toy_model, corpus, **changes).faults()
    assert found.startswith(fault)


def test_what_a_config_must_state(toy_model, corpus):
    bare = Config.model_validate({**settings(toy_model, corpus), "trainer": {}})
    assert [fault.partition(":")[0] for fault in bare.faults()] == ["trainer.learning_rate", "trainer"]
