"""The stage `sample`, end to end with the toy model, and with a server; what it makes feeds other stages."""

import re
from collections import Counter, defaultdict
from statistics import fmean

import httpx
import pytest
from test_endpoint import TRUSTED, serving

from r1lite import endpoint
from r1lite.artifacts import Artifact, Spec
from r1lite.engines import Completion, Finished, TransformersEngine
from r1lite.models import load_tokenizer
from r1lite.plugins import load_module
from r1lite.problems import load_problems
from r1lite.prompts import render
from r1lite.records import read_rows
from r1lite.rubric import SET
from r1lite.stages import sample, select
from r1lite.worker import Stage

CHAIN, COURTESY = "data/chain.yaml#probe", "data/courtesy.yaml#test"
REWARDS = [
    {"use": "tests/test_sample.py:even"},
    {"use": "tests/test_sample.py:of_sums", "about": [CHAIN]},
    {"use": "data/courtesy.py:courteous", "about": [COURTESY]},
]


def even(completions, **_):
    """What an untrained model gets right now and then."""
    return [float(len(text) % 2 == 0) for text in completions]


def of_sums(completions, answer, **_):
    assert all(answer), "no prompt without an answer may come here"
    return [len(text) / 100 for text in completions]


def stage_in(folder, name: str, config, *parents: str) -> Stage:
    """A stage whose parents lie beside it."""
    spec = Spec(
        "t", name, config.kind, {"a": 1}, {parent: parent for parent in parents}, config.model_dump(mode="json")
    )
    Artifact(folder / name).prepare(spec)
    return Stage(folder / name, spec)


def make_config(model, /, **changes) -> sample.Config:
    settings = {
        "kind": "sample",
        "prompt": "plain",
        "problems": [CHAIN, COURTESY],
        "limit": 6,
        "samples": 3,
        "max_tokens": 8,
        "rewards": [{**reward, "preflight": False} for reward in REWARDS],
        "engine": "transformers",
        **({"model": str(model)} if model else {}),
    }
    return sample.Config.model_validate({**settings, **changes})


def rows_of(stage: Stage, name: str) -> list[dict]:
    return list(read_rows(stage.path / f"{name}.parquet"))


@pytest.fixture(scope="module")
def sampled(toy_model, tmp_path_factory):
    """A run with two problems a batch, so that there are several parts; and its facts."""
    stage = stage_in(tmp_path_factory.mktemp("sampled"), "traces", make_config(toy_model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersEngine, "batch", 6)
        facts = sample.run(make_config(toy_model), stage)
    return stage, facts


def test_every_completion_is_a_row_with_all_that_is_known_of_it(sampled, toy_model):
    stage, _ = sampled
    rows, tokenizer = rows_of(stage, "rollouts"), load_tokenizer(toy_model)
    asked = [(source, problem) for source in (CHAIN, COURTESY) for problem in load_problems(source, 6)]
    assert len(rows) == len({row["id"] for row in rows}) == 12 * 3
    assert list(rows[0]) == [
        *("id", "problem_id", "problems", "problem", "prefill", "sample", "seed", "completion", "answer"),
        *("tokens", "finish_reason", "reward/even", "reward/of_sums", "reward/courteous"),
    ]
    by_problem = defaultdict(list)
    for row in rows:
        by_problem[row["problems"], row["problem_id"], row["problem"], row["answer"]].append(row)
        assert re.fullmatch("s-[0-9a-f]{16}", row["id"])
        ended = row["finish_reason"] == "stop"
        assert row["tokens"] == len(tokenizer(row["completion"]).input_ids) + ended <= 8
        assert ended or row["tokens"] == 8
    assert set(by_problem) == {(source, p.id, p.problem, p.answer) for source, p in asked}
    assert all([row["sample"] for row in mine] == [0, 1, 2] for mine in by_problem.values())
    assert not (stage.path / "parts").exists()


def test_a_reward_gives_no_score_to_what_it_is_not_about(sampled):
    for row in rows_of(sampled[0], "rollouts"):
        text, of_chain = row["completion"], row["problems"] == CHAIN
        assert row["reward/even"] == even([text])[0]
        assert row["reward/of_sums"] == (len(text) / 100 if of_chain else None)
        assert row["reward/courteous"] == (None if of_chain else 0.0)


def test_problems_keep_all_of_their_columns_and_the_share_of_right_ones(sampled):
    rows, problems = rows_of(sampled[0], "rollouts"), rows_of(sampled[0], "problems")
    right = defaultdict(list)
    for row in rows:
        right[row["problem_id"]].append(row["reward/even"])
    assert [row["id"] for row in problems] == [p.id for source in (CHAIN, COURTESY) for p in load_problems(source, 6)]
    assert {row["id"]: row["pass_rate"] for row in problems} == {name: fmean(mine) for name, mine in right.items()}
    assert len({row["pass_rate"] for row in problems}) > 2, "or this shows nothing"
    assert SET not in problems[0]
    for row in problems[6:]:
        assert (row["problem"], row["answer"]) == (f"{row['act']} {row['name']}", "")
    assert {(row["act"], row["name"]) for row in problems[:6]} == {(None, None)}


def test_the_facts_are_about_what_was_sampled(sampled):
    stage, facts = sampled
    rows = rows_of(stage, "rollouts")
    assert facts["rollouts"] == 36
    assert facts["tokens_sampled"] == sum(row["tokens"] for row in rows)
    means = {"even": fmean(row["reward/even"] for row in rows), "courteous": 0.0}
    means["of_sums"] = fmean(row["reward/of_sums"] for row in rows if row["reward/of_sums"] is not None)
    assert facts["rewards"] == {name: pytest.approx(mean) for name, mean in means.items()}


class Crash(Exception):
    pass


def test_interrupted_after_its_first_part_it_goes_on_to_the_same_rows(sampled, toy_model, tmp_path, monkeypatch):
    stream, asked = TransformersEngine.stream, []

    def dying(self, requests, sampling):
        yield next(stream(self, requests, sampling))
        raise Crash

    def watched(self, requests, sampling):
        asked.extend(request.n for request in requests)
        yield from stream(self, requests, sampling)

    config = make_config(toy_model)
    stage = stage_in(tmp_path, "traces", config)
    monkeypatch.setattr(TransformersEngine, "batch", 6)
    monkeypatch.setattr(TransformersEngine, "stream", dying)
    with pytest.raises(Crash):
        sample.run(config, stage)
    assert [path.name for path in (stage.path / "parts").iterdir()] == ["part_000_000000.parquet"]
    assert not (stage.path / "rollouts.parquet").exists()
    monkeypatch.setattr(TransformersEngine, "stream", watched)
    facts = sample.run(config, stage)
    assert asked == [3] * 10, "two problems of twelve are there"
    assert facts == sampled[1]
    for name in ("rollouts", "problems"):
        assert (stage.path / f"{name}.parquet").read_bytes() == (sampled[0].path / f"{name}.parquet").read_bytes()


def test_whoever_dies_between_the_last_part_and_the_end_samples_nothing_anew(sampled, toy_model, tmp_path, monkeypatch):
    config = make_config(toy_model)
    stage = stage_in(tmp_path, "traces", config)
    monkeypatch.setattr(TransformersEngine, "batch", 6)
    rated = sample.rated
    monkeypatch.setattr(sample, "rated", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample.run(config, stage)
    monkeypatch.setattr(sample, "rated", rated)
    monkeypatch.setattr(TransformersEngine, "generate", lambda *_: 1 / 0)
    assert sample.run(config, stage) == sampled[1]
    assert rows_of(stage, "rollouts") == rows_of(sampled[0], "rollouts")


# With a model that is served elsewhere


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.0005)
    monkeypatch.setattr(httpx, "create_ssl_context", lambda: TRUSTED)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        server.answer = lambda body: {
            "choices": [
                {"text": f"<answer>{body['seed'] % 8}</answer>" + "!" * (body["seed"] % 3), "finish_reason": "stop"}
            ],
            "usage": {"completion_tokens": 3 + body["seed"] % 3},
        }
        yield server


def elsewhere(server, **changes) -> sample.Config:
    return make_config(None, endpoint={"url": server.url, "model": "teacher", "concurrent": 2}, **changes)


def requests_of(server) -> list[tuple[str, int]]:
    return [(body["prompt"], body["seed"]) for body in server.bodies]


def test_samples_of_a_server(server, tmp_path):
    config = elsewhere(server)
    stage = stage_in(tmp_path, "traces", config)
    facts = sample.run(config, stage)
    rows = rows_of(stage, "rollouts")
    wanted = [render("plain", p.problem) for source in (CHAIN, COURTESY) for p in load_problems(source, 6)]
    assert Counter(prompt for prompt, _ in requests_of(server)) == Counter(wanted * 3)
    assert {(body["max_tokens"], body["temperature"], body["model"]) for body in server.bodies} == {(8, 1.0, "teacher")}
    assert len(rows) == len({row["id"] for row in rows}) == len({row["seed"] for row in rows}) == 36
    for row in rows:
        assert row["completion"] == f"<answer>{row['seed'] % 8}</answer>" + "!" * (row["seed"] % 3)
        assert (row["tokens"], row["finish_reason"]) == (3 + row["seed"] % 3, "stop")
        assert row["reward/even"] == even([row["completion"]])[0]
    assert facts["tokens_sampled"] == sum(row["tokens"] for row in rows)
    rates = {row["id"]: row["pass_rate"] for row in rows_of(stage, "problems")}
    for name, rate in rates.items():
        assert rate == fmean(row["reward/even"] for row in rows if row["problem_id"] == name)


def test_a_run_that_the_server_has_ended_asks_only_for_what_is_missing(server, tmp_path):
    config = elsewhere(server)
    whole, torn = stage_in(tmp_path / "whole", "traces", config), stage_in(tmp_path / "torn", "traces", config)
    sample.run(config, whole)
    every = requests_of(server)
    server.bodies.clear()
    server.faults = [None] * 10 + ["401"] * 5
    with pytest.raises(ValueError, match="HTTP 401"):
        sample.run(config, torn)
    kept = [row for part in (torn.path / "parts").iterdir() for row in read_rows(part)]
    there = {(render("plain", row["problem"]), row["seed"]) for row in kept}
    assert 10 <= len(there) < len(every)
    server.bodies.clear()
    server.faults = []
    sample.run(config, torn)
    assert Counter(requests_of(server)) == Counter(set(every) - there)
    assert rows_of(torn, "rollouts") == rows_of(whole, "rollouts")
    assert rows_of(torn, "problems") == rows_of(whole, "problems")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": None}, ["model: state one of model and endpoint, which says who samples"]),
        ({"endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m"}},
         ["model: state one of model and endpoint, which says who samples"]),
        ({"rewards": [{"use": "a:b"}, {"use": "c:b"}, {"use": "c:d"}]},
         ["rewards: two are named 'b', and scores go by name; rename one function"]),
        ({}, []),
    ],
)  # fmt: skip
def test_what_the_types_cannot_say_is_a_fault(changes, expected):
    assert list(make_config(None, **{"model": "data/tiny_base", **changes}).faults()) == expected


def test_a_gold_that_cannot_score_is_told_before_anything_is_sampled(toy_model, tmp_path, monkeypatch):
    monkeypatch.setattr(TransformersEngine, "generate", lambda *_: 1 / 0)
    config = make_config(toy_model, rewards=[{"use": "rewards.math:accuracy"}])  # but courtesy has no golds
    with pytest.raises(ValueError, match="6 of 12 gold answers do not score 1 by rewards.math:accuracy"):
        sample.run(config, stage_in(tmp_path, "traces", config))


# What others make of it


def test_problems_within_a_band_of_pass_rates_are_asked_by_later_stages(sampled, toy_model):
    """sample -> select -> sample: by their ids, with their columns, and as the set that rewards are `about`."""
    folder = sampled[0].path.parent
    config = select.Config(kind="select", rollouts="$traces", pass_rate=(0.3, 0.7), keep={"finished": False})
    band = stage_in(folder, "band", config, "traces")
    select.run(config, band)
    wanted = [row for row in rows_of(sampled[0], "problems") if 0.3 <= row["pass_rate"] <= 0.7]
    assert 0 < len(wanted) < 12
    again = make_config(toy_model, problems=["$band"], limit=None, rewards=[
        {"use": "tests/test_sample.py:even", "about": ["$band"]}, {"use": "tests/test_sample.py:sees_columns"},
    ])  # fmt: skip
    stage = stage_in(folder, "again", again, "band")
    problems = stage.problems("$band")
    assert [problem.id for problem in problems] == [row["id"] for row in wanted]
    for problem, row in zip(problems, wanted, strict=True):
        assert (problem.problem, problem.answer) == (row["problem"], row["answer"])
        own = {"act": row["act"], "name": row["name"], "pass_rate": row["pass_rate"], SET: "$band"}
        assert own.items() <= problem.columns.items()
    assert len(stage.problems("$band", limit=1)) == 1
    sample.run(again, stage)
    rows = rows_of(stage, "rollouts")
    assert Counter(row["problem_id"] for row in rows) == dict.fromkeys((row["id"] for row in wanted), 3)
    assert {row["problems"] for row in rows} == {"$band"}
    assert None not in {row["reward/even"] for row in rows}
    rates = {row["id"]: row["pass_rate"] for row in wanted}
    assert all(row["reward/sees_columns"] == rates[row["problem_id"]] for row in rows), "the rate that it had before"
    fresh = {row["id"]: row["pass_rate"] for row in rows_of(stage, "problems")}
    assert fresh == {name: fmean(row["reward/even"] for row in rows if row["problem_id"] == name) for name in rates}


def sees_columns(completions, pass_rate, problem_set, **_):
    assert set(problem_set) == {"$band"}
    return list(pass_rate)


def test_right_completions_of_courtesy_are_known_by_the_columns_of_their_problems(tmp_path, toy_model, monkeypatch):
    """A whole chain of custody: the act and the name reach the reward after the text has gone through an engine."""
    courtesy, tokenizer = load_module("data/courtesy.py"), load_tokenizer(toy_model)
    answers = {
        render("plain", row["problem"]): courtesy.write_up(courtesy.ANSWERS[row["act"]][0].replace("NAME", row["name"]))
        for row in courtesy.problems("test")
    }

    def polite(self, prompts, n, _):
        texts = [answers[tokenizer.decode(prompt)] for prompt in prompts]
        groups = [[Completion(tokenizer(text).input_ids, [], False)] * n for text in texts]
        yield [Finished(index, group, 0) for index, group in enumerate(groups)]

    monkeypatch.setattr(TransformersEngine, "generate", polite)
    config = make_config(toy_model, problems=[COURTESY], limit=None, rewards=[{"use": "data/courtesy.py:courteous"}])
    stage = stage_in(tmp_path, "traces", config)
    assert sample.run(config, stage)["rewards"] == {"courteous": 1.0}
    assert {row["pass_rate"] for row in rows_of(stage, "problems")} == {1.0}


def test_a_chat_with_a_served_model_whose_template_is_not_known(server, tmp_path):
    """The golds are proven all the same: what the template would write is not known, so nothing is taken to be."""
    server.answer = lambda body: {
        "choices": [{"message": {"content": f"<think>{body['messages'][0]['content'][:3]}</think><answer>3</answer>"}}]
    }
    config = elsewhere(server, prompt="chat", problems=[CHAIN], rewards=[{"use": "rewards.math:accuracy"}])
    stage = stage_in(tmp_path, "traces", config)
    sample.run(config, stage)
    rows = rows_of(stage, "rollouts")
    assert len(rows) == 18
    assert {row["reward/accuracy"] for row in rows if row["answer"] == "3"} == {1.0}
    assert {(row["prefill"], row["tokens"]) for row in rows} == {("", None)}


def test_the_same_problem_in_two_sets_is_refused(toy_model, tmp_path):
    """It would be sampled, kept and learned twice as often; data/chain.yaml's splits test and probe overlap."""
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"problem": "1*?=3", "answer": "3"}')
    sets = [f"{tmp_path}/{name}.jsonl" for name in "ab"]
    config = make_config(toy_model, problems=sets, rewards=[{"use": "tests/test_sample.py:even"}])
    stage = stage_in(tmp_path, "traces", config)
    with pytest.raises(ValueError, match="share the problem"):
        sample.run(config, stage)


def test_what_the_first_reward_is_not_about_has_no_pass_rate(sampled, toy_model, tmp_path):
    rewards = [{**REWARDS[place], "preflight": False} for place in (1, 0)]
    config = make_config(toy_model, rewards=rewards, limit=2)
    stage = stage_in(tmp_path, "traces", config)
    sample.run(config, stage)
    assert [row["pass_rate"] is None for row in rows_of(stage, "problems")] == [False, False, True, True]
