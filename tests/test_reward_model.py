import json
import random
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing

from r1lite import preference
from r1lite.artifacts import Artifact, Spec, read_json
from r1lite.engines import chunks
from r1lite.observe import read_metrics
from r1lite.preference import Pair, hold_out, schedule, train_reward_model
from r1lite.prompts import render
from r1lite.records import write_parquet
from r1lite.stages.reward_model import Config, run
from r1lite.worker import Stage
from rewards.model import helpfulness, load, score

TEMPLATE = (
    "{% for m in messages %}{{ 'User: ' if m.role == 'user' else '\nAssistant:' }}{{ m.content }}{% endfor %}<eos>"
)
CARD = "{description: d, license: l, columns: {answer: null}, splits: {pairs: {file: FILE}}}"


def sums(count: int, seed: int = 0) -> list[dict]:
    """Sums whose preferred answer ends in ` ok`; the answers are of different lengths."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        text = "*".join(rng.choices("123456789", k=rng.randint(1, 6)))
        rows.append({"problem": f"{number}+7=?", "chosen": f"{text} ok", "rejected": f"{text} wait"})
    return rows


def write_card(folder: Path, rows: list[dict]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(folder / "pairs.parquet", rows)
    (folder / "pairs.yaml").write_text(CARD.replace("FILE", str(folder / "pairs.parquet")))
    return f"{folder}/pairs.yaml#pairs"


def make_config(toy_model, pairs: str, **changes) -> Config:
    settings = {
        "kind": "reward_model",
        "prompt": "plain",
        "model": str(toy_model),
        "pairs": pairs,
        "pairs_per_step": 8,
        "max_tokens": 40,
    }
    keys = {"learning_rate": 1e-2, "max_steps": 6, "save_steps": 2, "gradient_checkpointing": False}
    return Config.model_validate({**settings, **changes, "trainer": {**keys, **changes.get("trainer", {})}})


def make_stage(path, config: Config) -> Stage:
    Artifact(path).prepare(Spec("t", "helpful", "reward_model", {"a": 1}, {}, config.model_dump(mode="json")))
    return Stage(path, Artifact(path).spec)


@pytest.fixture(scope="module")
def trained(toy_model, tmp_path_factory):
    """A run, its facts, and the batches that the model was given."""
    path = tmp_path_factory.mktemp("trained")
    config = make_config(toy_model, write_card(path / "data", sums(100)), held_out=20, max_tokens=12)
    batches = []
    step = preference.PairTrainer.compute_loss

    def watched(self, model, inputs, *arguments, **named):
        batches.append({name: tensor.clone() for name, tensor in inputs.items()})
        return step(self, model, inputs, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preference.PairTrainer, "compute_loss", watched)
        facts = run(config, make_stage(path, config))
    return path, config, facts, batches


def test_a_trivial_preference_is_learned(trained):
    path, _, facts, _ = trained
    assert facts["held_out_accuracy"] > 0.9
    assert (facts["pairs"], facts["held_out"], facts["steps"]) == (80, 20, 6)
    rows = read_metrics(path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 6]
    assert rows[-2]["loss"] == facts["loss"] < rows[0]["loss"] / 2
    assert {"accuracy", "margin", "grad_norm", "learning_rate"} <= set(rows[0])
    assert rows[-1]["held_out/accuracy"] == facts["held_out_accuracy"]
    assert (path / "curves.png").stat().st_size > 10_000


def test_the_model_is_one_that_rewards_can_load(trained):
    path, config, *_ = trained
    tokenizer, model = load(str(path / "model"))
    assert model.config.num_labels == 1
    assert read_json(path / "model" / "config.json")["pad_token_id"] == tokenizer.pad_token_id == 0
    assert tokenizer.model_max_length == config.max_tokens
    assert read_json(path / "model" / "tokenizer.json")["truncation"] is None
    assert not list((path / "model").glob("*.bin"))
    prompt = render("plain", "5+7=?")
    good, bad = helpfulness(
        ["<think>8</think><answer> 3*3 ok </answer>", "<think>8</think><answer>3*3 wait</answer>"],
        prompts=[prompt, prompt],
        model=str(path / "model"),
    )
    assert good > bad


def test_the_model_learns_from_the_pairs_of_the_schedule_and_no_held_out_one(trained, toy_model):
    _, config, _, batches = trained
    pairs = preference.load_pairs(config.pairs)
    rows = preference.encode(config, preference.load_untrained(config, toy_model)[0], pairs)
    apart = hold_out(pairs, 20, seed=0)
    order = schedule([i for i, pair in enumerate(pairs) if pair.problem not in apart], 48, seed=0)
    got = [
        [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        for batch in batches
    ]
    assert [batch[:8] for batch in got] == [[rows[i]["chosen_ids"] for i in some] for some in chunks(order, 8)]
    assert [batch[8:] for batch in got] == [[rows[i]["rejected_ids"] for i in some] for some in chunks(order, 8)]


def logits(name: str, rows: list[list[int]]) -> list[float]:
    _, model = load(name)
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([ids], device=model.device)).logits.item() for ids in rows]


@pytest.mark.parametrize(
    ("prompt", "template", "max_tokens"),
    [("plain", None, 40), ("plain", None, 12), ("plain", TEMPLATE, 40), ("chat", TEMPLATE, 40), ("chat", TEMPLATE, 12)],
)
def test_what_is_scored_is_what_was_trained_on(prompt, template, max_tokens, toy_model, tmp_path):
    """The reward's score of a response is the model's logit on the ids of training, cut where they are too long."""
    config = make_config(toy_model, "x", prompt=prompt, max_tokens=max_tokens)
    tokenizer, model = preference.load_untrained(config, toy_model)
    tokenizer.chat_template = template
    opened = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = opened  # a token that opens plain texts, as many models have one
    pairs = [Pair(row["problem"], row["chosen"], row["rejected"]) for row in sums(30)]
    rows = preference.encode(config, tokenizer, pairs)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    prompts = [render(prompt, pair.problem) for pair in pairs]
    longest = 0
    for side in ("chosen", "rejected"):
        ids = [row[f"{side}_ids"] for row in rows]
        scores = score(str(tmp_path), prompts, [getattr(pair, side) for pair in pairs], None)
        assert logits(str(tmp_path), ids) == pytest.approx(scores, abs=1e-5)
        assert all((each[0] == tokenizer.eos_token_id) == (prompt == "plain") for each in ids)
        assert len({round(number, 3) for number in scores}) > 20, "the scores tell responses apart"
        longest = max(longest, *map(len, ids))
    assert (longest == max_tokens) == (max_tokens == 12)


def test_texts_that_are_cut_are_counted(toy_model, monkeypatch):
    config = make_config(toy_model, "x", max_tokens=8)
    tokenizer, _ = preference.load_untrained(config, toy_model)
    lines = []
    monkeypatch.setattr(preference, "say", lines.append)
    pairs = [Pair("1+1=?", "2", "3"), Pair("1+1=?", "2*2", "3")]  # 8, 8, 10 and 8 tokens
    rows = preference.encode(config, tokenizer, pairs)
    assert [len(row["chosen_ids"]) for row in rows] == [8, 8]
    assert tokenizer.decode(rows[1]["chosen_ids"]) == "+1=?\nAssistant:2*2"
    assert lines == ["  1 of 4 texts have more than max_tokens = 8: cut at the start"]


class Crash(Exception):
    pass


@pytest.mark.slow
def test_an_interrupted_run_resumed_is_the_uninterrupted_run(toy_model, tmp_path, monkeypatch):
    """Weights, optimizer state and metrics, to the last bit."""
    config = make_config(toy_model, write_card(tmp_path / "data", sums(60)), held_out=10, micro_batch=4)
    whole, torn = make_stage(tmp_path / "whole", config), make_stage(tmp_path / "torn", config)
    train_reward_model(config, whole)
    step = preference.PairTrainer.training_step

    def crash_in_step_6(self, *arguments, **named):
        if self.state.global_step == 5:
            raise Crash
        return step(self, *arguments, **named)

    monkeypatch.setattr(preference.PairTrainer, "training_step", crash_in_step_6)
    with pytest.raises(Crash):
        train_reward_model(config, torn)
    assert not (torn.path / "model").exists()
    monkeypatch.setattr(preference.PairTrainer, "training_step", step)
    train_reward_model(config, torn)
    for name in ("model/model.safetensors", "checkpoints/checkpoint-6/model.safetensors"):
        expected, got = load_file(whole.path / name), load_file(torn.path / name)
        assert all(torch.equal(expected[key], got[key]) for key in expected), name
    expected, got = (torch.load(s.path / "checkpoints/checkpoint-6/optimizer.pt")["state"] for s in (whole, torn))
    assert all(torch.equal(expected[i][key], got[i][key]) for i in expected for key in expected[i])
    timeless = [[{**row, "time": 0} for row in read_metrics(s.path / "metrics.jsonl")] for s in (whole, torn)]
    assert timeless[0] == timeless[1]


@pytest.mark.slow
def test_the_micro_batch_changes_nothing_but_rounding(toy_model, tmp_path):
    losses = []
    for size in (2, 8):
        config = make_config(toy_model, write_card(tmp_path / "data", sums(40)), micro_batch=size)
        train_reward_model(config, make_stage(tmp_path / str(size), config))
        losses.append([row["loss"] for row in read_metrics(tmp_path / str(size) / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-4)


def test_epochs_become_steps(toy_model, tmp_path):
    pairs = write_card(tmp_path / "data", sums(20))
    config = make_config(toy_model, pairs).model_copy(
        update={"trainer": {"learning_rate": 1e-3, "num_train_epochs": 2}}
    )
    facts = train_reward_model(config, make_stage(tmp_path / "stage", config))
    assert facts["steps"] == 5 and facts["pairs"] == 20 and facts["held_out_accuracy"] is None


def test_the_schedule_is_permutations_end_to_end():
    indices = [3, 5, 8, 9, 11]
    order = schedule(indices, 17, seed=0)
    assert len(order) == 17
    assert all(sorted(order[start : start + 5]) == indices for start in (0, 5, 10))
    assert order[:5] != order[5:10]
    assert order == schedule(indices, 17, seed=0) and order[:8] == schedule(indices, 8, seed=0)
    assert order != schedule(indices, 17, seed=1)


def test_whole_problems_are_held_out():
    pairs = [Pair(f"p{number % 10}", f"a{number}", "b") for number in range(40)]
    apart = hold_out(pairs, 10, seed=0)
    assert len(apart) == 3, "4 pairs a problem: two problems have 8, three 12"
    assert apart == hold_out(pairs, 10, seed=0) != hold_out(pairs, 10, seed=1)
    assert hold_out(pairs, 0, seed=0) == set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"learning_rat": 1}}, "trainer.learning_rat: not a field of RewardConfig"),
        ({"trainer": {"max_length": 8}}, "trainer.max_length: set by r1lite; use max_tokens instead"),
        ({"trainer": {"gradient_accumulation_steps": 2}}, "use pairs_per_step and micro_batch instead"),
        ({"trainer": {"eval_strategy": "steps"}}, "trainer.eval_strategy: set by r1lite; use held_out instead"),
        ({"trainer": {"trust_remote_code": True}}, "trainer.trust_remote_code: set by r1lite"),
        ({"trainer": {"eos_token": "x"}}, "trainer.eos_token: set by r1lite"),
        ({"trainer": {"learning_rate": "high"}}, "trainer.learning_rate: must be float; got 'high'"),
        ({"trainer": {"num_train_epochs": 1}}, "trainer: state one of max_steps and num_train_epochs"),
        ({"trainer": {"max_steps": 0}}, "trainer.max_steps: must be a whole number of at least 1; got 0"),
        ({"trainer": {"save_steps": 0.5}}, "trainer.save_steps: must be a whole number of at least 1; got 0.5"),
        ({"trainer": {"num_train_epochs": 0}}, "trainer.num_train_epochs: must be more than 0; got 0"),
        ({"micro_batch": 3}, "micro_batch: 3 does not divide pairs_per_step = 8"),
    ],
)
def test_faults_say_where_what_and_what_else(changes, message):
    assert any(message in fault for fault in make_config("m", "p", **changes).faults())


def test_what_has_to_be_stated():
    bare = make_config("m", "p").model_copy(update={"trainer": {}})
    assert [fault.partition(":")[0] for fault in bare.faults()] == ["trainer.learning_rate", "trainer"]
    assert not list(make_config("m", "p", micro_batch=4).faults())


@pytest.mark.parametrize("changes", [{"held_out": -1}, {"pairs_per_step": 0}, {"max_tokens": 0}, {"rewards": []}])
def test_what_the_types_refuse(changes):
    with pytest.raises(ValidationError):
        make_config("m", "p", **changes)


GOOD = {"problem": "1+1=?", "chosen": "2 ok", "rejected": "3"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"problem": "1+1=?", "chosen": "2"},
            r"pairs.yaml#pairs, pair 2 has no rejected; it needs problem, chosen and",
        ),
        ({"problem": "1+1=?"}, r"pair 2 has no chosen and no rejected"),
        ({**GOOD, "rejected": 3}, r"pair 2, rejected: the completion must be a text or messages"),
        ({**GOOD, "chosen": "zebra"}, r"has no tokens for 'User: 1\+1=\?.*zebra'; use another prompt"),
    ],
)
def test_a_row_that_is_no_pair_is_named(row, message, toy_model, tmp_path):
    jsonl = tmp_path / "pairs.jsonl"
    jsonl.write_text("\n".join(json.dumps(each) for each in (GOOD, row)))
    (tmp_path / "pairs.yaml").write_text(CARD.replace("FILE", str(jsonl)))
    config = make_config(toy_model, f"{tmp_path}/pairs.yaml#pairs", pairs_per_step=1)
    with pytest.raises(ValueError, match=message):
        train_reward_model(config, make_stage(tmp_path / "stage", config))


def test_pairs_that_are_the_same_to_the_model_are_left_out(toy_model, tmp_path, capfd):
    same = [
        {**GOOD, "rejected": "2 ok"},
        {**GOOD, "rejected": " 2 ok\n"},
        {**GOOD, "chosen": "1" * 60 + "2", "rejected": "3" + "1" * 60 + "2"},  # up to what max_tokens has left of it
    ]
    card = write_card(tmp_path / "data", [*same, *sums(8)])
    config = make_config(toy_model, card, trainer={"max_steps": 1})
    assert train_reward_model(config, make_stage(tmp_path / "stage", config))["pairs"] == 8
    assert "3 of 11 pairs are the same text twice to the model: left out" in capfd.readouterr().out
    config = make_config(toy_model, write_card(tmp_path / "none", same))
    with pytest.raises(ValueError, match="has only 0 besides the 0 held out"):
        train_reward_model(config, make_stage(tmp_path / "other", config))


def test_of_messages_the_last_is_the_answer(tmp_path):
    def said(text):
        return [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": text}]

    card = write_card(tmp_path, [{**GOOD, "chosen": said(" 2 ok"), "rejected": said("3")}])
    assert preference.load_pairs(card) == [Pair("1+1=?", "2 ok", "3")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 200}, r"max_tokens is 200, but .* reads at most 128; lower it"),
        ({"held_out": 5}, r"pairs_per_step = 8 different pairs, but .* has only 5 besides the 5 held out"),
        ({"prompt": "r1_zero"}, r"has no tokens for .*; use another prompt template than 'r1_zero'"),
        ({"model": "data"}, r"data is a directory but not a model"),
    ],
)
def test_what_cannot_be_trained_says_why(changes, message, toy_model, tmp_path):
    config = make_config(toy_model, write_card(tmp_path / "data", sums(10)), **changes)
    with pytest.raises(ValueError, match=message):
        train_reward_model(config, make_stage(tmp_path / "stage", config))


def test_the_cards_pairs_of_the_tiny_world_can_be_read():
    pairs = preference.load_pairs("data/courtesy.yaml#pairs")
    assert len(pairs) == 3000 and all(pair.chosen != pair.rejected for pair in pairs)
