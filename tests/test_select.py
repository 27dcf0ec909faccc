"""Rollouts become examples: from a file to the outputs of a stage `select`."""

import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_base import make_stage

from r1lite.artifacts import Artifact, Spec, read_json
from r1lite.records import content_id, read_rows, write_parquet
from r1lite.stages import select
from r1lite.worker import Stage


def thinking(text: str, answer: str = "2") -> str:
    return f"{text}</think> <answer>{answer}</answer>"


def rollout(problem: str, sample: int, completion: str, **changes) -> dict:
    return {
        "id": content_id("s", problem, str(sample)), "problem_id": content_id("p", problem, "2"), "problem": problem,
        "answer": "2", "prefill": "<think>", "sample": sample, "seed": 7, "completion": completion,
        "tokens": len(completion.split()), "finish_reason": "stop", "reward/accuracy": 1.0, "reward/think_answer": 1.0,
        **changes,
    }  # fmt: skip


def config_of(path, keep: dict | None = None, **changes) -> select.Config:
    return select.Config.model_validate({"kind": "select", "rollouts": str(path), "keep": keep or {}, **changes})


def selected(folder, rows: list[dict], keep: dict | None = None, **changes):
    """Facts, and the stage's directory."""
    path = folder / "rollouts.parquet"
    write_parquet(path, rows)
    config = config_of(path, keep, **changes)
    stage = make_stage(folder / "select", "select", config)
    return select.run(config, stage), stage.path


def reasons(rows: list[dict], keep: dict | None = None, **changes) -> list[str | None]:
    """Why each row is dropped; None where it is kept."""
    config = config_of("rollouts.parquet", keep, **changes)
    rates = select.pass_rates(config, rows, "rollouts.parquet")
    _, found, _ = select.sift(rows, select.filters(config, rates))
    return [found.get(row["id"]) for row in rows]


ENGLISH = "so the sum of both is two"
CHINESE = "所以两个数的和是二"


@pytest.mark.parametrize(
    ("keep", "changes", "reason"),
    [
        ({}, {}, None),
        ({}, {"finish_reason": "length"}, "finished"),
        ({}, {"finish_reason": None}, None),
        ({"finished": False}, {"finish_reason": "length"}, None),
        ({}, {"reward/accuracy": 0.0}, None),
        ({"least": {"accuracy": 1}}, {}, None),
        ({"least": {"accuracy": 1}}, {"reward/accuracy": 0.99}, "least.accuracy"),
        ({"least": {"accuracy": 1}}, {"reward/accuracy": None}, "least.accuracy"),
        ({"least": {"accuracy": 1}}, {"reward/accuracy": float("nan")}, "least.accuracy"),
        ({"least": {"accuracy": 1}}, {"reward/think_answer": 0.0}, None),
        ({"least": {"accuracy": 1, "think_answer": 0.5}}, {"reward/think_answer": 0.4}, "least.think_answer"),
        ({"tokens": [3, 5]}, {"tokens": 2}, "tokens"),
        ({"tokens": [3, 5]}, {"tokens": 3}, None),
        ({"tokens": [3, 5]}, {"tokens": 5}, None),
        ({"tokens": [3, 5]}, {"tokens": 6}, "tokens"),
        ({}, {"completion": thinking("```python\n1 + 1\n```")}, None),
        ({"code": False}, {"completion": thinking("```python\n1 + 1\n```")}, "code"),
        ({"code": False}, {"completion": thinking("算一下：\n```\n1 + 1\n```")}, "code"),
        ({"code": False}, {"completion": thinking("`x` is two")}, None),
        ({"code": False}, {"completion": thinking(ENGLISH, "```python\nprint(2)\n```")}, None),  # an answer may be code
        ({"code": False}, {"completion": "```\n2\n```", "prefill": ""}, "code"),
        ({"longest_paragraph": 25}, {"completion": thinking(ENGLISH)}, None),
        ({"longest_paragraph": 24}, {"completion": thinking(ENGLISH)}, "longest_paragraph"),
        ({"longest_paragraph": 9}, {"completion": thinking(f"{CHINESE}\n\n{CHINESE}")}, None),
        ({"longest_paragraph": 9}, {"completion": thinking(f"{CHINESE}\n{CHINESE}")}, "longest_paragraph"),
        ({"longest_paragraph": 2}, {"completion": thinking("2", "a long answer")}, None),
        ({"loops": 4}, {"completion": thinking("so wait wait wait wait now")}, "loops"),
        ({"loops": 5}, {"completion": thinking("so wait wait wait wait now")}, None),
        ({"loops": 4}, {"completion": thinking("等一下等一下等一下等一下")}, "loops"),
        ({"loops": 4}, {"completion": thinking("so", "wait wait wait wait")}, None),
        ({"language": "en"}, {"completion": thinking(ENGLISH)}, None),
        ({"language": "en"}, {"completion": thinking(f"{ENGLISH}, {CHINESE}")}, "language"),
        ({"language": "zh"}, {"completion": thinking(CHINESE)}, None),
        ({"language": "zh"}, {"completion": thinking(ENGLISH)}, "language"),
        ({"language": "zh"}, {"completion": thinking("1+1=2", "two")}, None),
        ({"language": "en"}, {"completion": f"{ENGLISH}，{CHINESE}", "prefill": ""}, "language"),
        # The first in the stated order is the reason.
        ({"language": "en", "least": {"accuracy": 1}, "tokens": [1, 2]},
         {"completion": thinking(CHINESE), "tokens": 9, "finish_reason": "length", "reward/accuracy": 0.0}, "finished"),
        ({"language": "en", "least": {"accuracy": 1}, "tokens": [1, 2]},
         {"completion": thinking(CHINESE), "tokens": 9, "reward/accuracy": 0.0}, "least.accuracy"),
        ({"language": "en", "tokens": [1, 2]}, {"completion": thinking(CHINESE), "tokens": 9}, "tokens"),
    ],
)  # fmt: skip
def test_each_filter(keep, changes, reason):
    assert reasons([{**rollout("1+1", 0, thinking("so it is two")), **changes}], keep) == [reason]


def test_the_stated_order():
    keep = {"finished": True, "least": {"accuracy": 1, "think_answer": 1}, "tokens": [1, 9], "code": False,
            "longest_paragraph": 9, "loops": 9, "language": "en", "near_duplicates": 0.9, "per_problem": 1}  # fmt: skip
    config = config_of("rollouts.parquet", keep, pass_rate=[0, 1])
    assert list(select.filters(config, {})) == [
        "pass_rate", "finished", "least.accuracy", "least.think_answer", "tokens", "code", "longest_paragraph",
        "loops", "language", "duplicates", "near_duplicates", "per_problem",
    ]  # fmt: skip
    bare = config_of("rollouts.parquet", {"finished": False})
    assert list(select.filters(bare, {})) == ["duplicates"], "equal texts are always dropped"


LONG = "we add the two numbers and then we take three from what we have so that it is done"


def test_duplicates_and_the_cap_by_preference():
    rows = [
        rollout("1+1", 3, thinking(LONG)),
        rollout("1+1", 1, thinking(LONG + " and it is right")),
        rollout("1+1", 2, thinking(LONG)),
        rollout("1+1", 0, thinking("all else is new")),
        rollout("1-1", 0, thinking(LONG)),
    ]
    assert reasons(rows) == ["duplicates", None, None, None, None]
    near = {"near_duplicates": 0.6}
    assert reasons(rows, near) == ["duplicates", None, "near_duplicates", None, None]
    cap = {"per_problem": 1}
    assert reasons(rows, cap) == ["duplicates", "per_problem", "per_problem", None, None]
    shorter = {"per_problem": 2, "prefer": "shorter"}
    assert reasons(rows, shorter) == ["duplicates", "per_problem", None, None, None]
    assert reasons(rows, {**near, **shorter}) == ["duplicates", "near_duplicates", None, None, None]
    rows[3] |= {"completion": thinking("we add " + LONG), "tokens": 99}
    diverse = {"per_problem": 2, "prefer": "diverse"}
    assert reasons(rows, diverse) == ["duplicates", None, None, "per_problem", None]


@pytest.mark.parametrize(
    ("band", "kept"),
    [([0, 1], "abc"), ([0.5, 0.5], "b"), ([0, 0.5], "ab"), ([0.25, 0.75], "b"), ([1, 1], "c"), ([0, 0], "a")],
)
def test_the_band_of_pass_rates(band, kept):
    scores = {"a": [0.0, None], "b": [0.5, 1.0], "c": [1.0, 2.0]}
    rows = [
        rollout(problem, sample, thinking(f"{sample}"), **{"reward/accuracy": score, "reward/think_answer": 0.0})
        for problem, mine in scores.items()
        for sample, score in enumerate(mine)
    ]
    found = dict.fromkeys("abc", "")
    for row, reason in zip(rows, reasons(rows, pass_rate=band), strict=True):
        found[row["problem"]] += str(reason)
    assert found == {name: "NoneNone" if name in kept else "pass_ratepass_rate" for name in "abc"}
    assert reasons(rows, pass_rate=[0.5, 1], right_by="think_answer") == ["pass_rate"] * 6


def test_from_a_file_to_examples(tmp_path, capfd):
    rows = [
        rollout("1+1", 0, thinking("so it is two"), extra="x"),
        rollout("1+1", 1, thinking("so it is 3", "3"), extra="y", **{"reward/accuracy": 0.0}),
        rollout("2+0", 0, thinking("so it is two"), extra="z", finish_reason=None, **{"reward/think_answer": None}),
        rollout("2+0", 1, thinking("so it is two"), extra="z"),
        rollout("0+2", 0, "so it is", extra="z", finish_reason="length", **{"reward/accuracy": 0.0}),
    ]
    facts, path = selected(tmp_path, rows, {"least": {"accuracy": 1}})
    assert facts == {"rows": 5, "kept": 2, "problems_kept": 2, "tokens": 10}
    (first, second) = read_rows(path / "examples.parquet")
    text = "<think>so it is two</think> <answer>2</answer>"
    assert first == {
        "id": content_id("e", "1+1", text), "problem_id": rows[0]["problem_id"], "problem": "1+1", "answer": "2",
        "completion": text, "tokens": 5, "sample": 0, "seed": 7, "rollout": rows[0]["id"],
        "rollouts": str(tmp_path / "rollouts.parquet"), "reward/accuracy": 1.0, "reward/think_answer": 1.0,
    }  # fmt: skip
    assert (second["rollout"], second["reward/think_answer"]) == (rows[2]["id"], None)
    dropped = list(read_rows(path / "dropped.parquet"))
    assert dropped == [
        {**rows[1], "reason": "least.accuracy"},
        {**rows[3], "reason": "duplicates"},
        {**rows[4], "reason": "finished"},
    ]
    assert list(read_rows(path / "problems.parquet")) == [
        {"id": content_id("p", "1+1", "2"), "problem": "1+1", "answer": "2", "pass_rate": 0.5},
        {"id": content_id("p", "2+0", "2"), "problem": "2+0", "answer": "2", "pass_rate": 1.0},
        {"id": content_id("p", "0+2", "2"), "problem": "0+2", "answer": "2", "pass_rate": 0.0},
    ]
    assert read_json(path / "report.json") == {
        "rows": 5,
        "problems": 3,
        "funnel": [
            {"reason": "finished", "dropped": 1, "left": 4},
            {"reason": "least.accuracy", "dropped": 1, "left": 3},
            {"reason": "duplicates", "dropped": 1, "left": 2},
        ],
        "kept": 2,
        "problems_kept": 2,
        "tokens": 10,
        "pass_rates": {f"{n / 10:.1f}": int(n in (0, 5, 10)) for n in range(11)},
    }
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert capfd.readouterr().out.splitlines() == [
        "5 rollouts of 3 problems",
        "  finished: 1 dropped, 4 left",
        "  least.accuracy: 1 dropped, 3 left",
        "  duplicates: 1 dropped, 2 left",
        "2 examples of 2 problems, 10 tokens",
    ]


def test_the_problems_of_a_stage_keep_their_columns(tmp_path):
    """As an earlier stage has left them: beside the rollouts, with columns of their own."""
    rows = [
        rollout(problem, sample, thinking(f"{sample} is it"), **{"reward/accuracy": float(sample < right)})
        for problem, right in (("1+1", 4), ("2+0", 2), ("0+2", 0))
        for sample in range(4)
    ]
    problems = [
        {"id": content_id("p", problem, "2"), "problem": problem, "answer": "2", "level": level, "tags": [problem]}
        for level, problem in enumerate(("1+1", "2+0", "0+2", "never sampled"))
    ]
    write_parquet(tmp_path / "sample-0" / "rollouts.parquet", rows)
    write_parquet(tmp_path / "sample-0" / "problems.parquet", problems)
    config = config_of("$sample", pass_rate=[0, 0.75])
    spec = Spec("t", "select", "select", {}, {"sample": "sample-0"}, config.model_dump(mode="json"))
    assert select.Config.model_validate(spec.config) == config
    Artifact(tmp_path / "select-0").prepare(spec)
    facts = select.run(config, Stage(tmp_path / "select-0", spec))
    assert facts == {"rows": 12, "kept": 8, "problems_kept": 2, "tokens": 32}
    found = list(read_rows(tmp_path / "select-0" / "problems.parquet"))
    assert found == [{**problems[1], "pass_rate": 0.5}, {**problems[2], "pass_rate": 0.0}]
    examples = list(read_rows(tmp_path / "select-0" / "examples.parquet"))
    assert {row["rollouts"] for row in examples} == {"$sample"}
    assert {row["reason"] for row in read_rows(tmp_path / "select-0" / "dropped.parquet")} == {"pass_rate"}


def test_problems_that_are_of_something_else_are_refused(tmp_path):
    write_parquet(tmp_path / "problems.parquet", [{"problem": "3+3", "answer": "6"}])
    with pytest.raises(ValueError, match=r"problems.parquet has no problem with the id 'p-.*', of which .*rollouts"):
        selected(tmp_path, [rollout("1+1", 0, thinking("2"))])


def test_a_table_without_dropped_rows_has_its_columns(tmp_path):
    _, path = selected(tmp_path, [rollout("1+1", 0, thinking("2"))])
    kept, dropped = (pq.read_table(path / f"{name}.parquet") for name in ("examples", "dropped"))
    assert (kept.num_rows, dropped.num_rows) == (1, 0)
    schema = pq.read_table(tmp_path / "rollouts.parquet").schema
    assert dropped.schema.equals(schema.append(pa.field("reason", pa.string())))


def test_what_was_dropped_can_be_selected_from_again(tmp_path):
    rows = [rollout("1+1", sample, thinking(f"{sample} is it"), tokens=sample) for sample in range(4)]
    _, path = selected(tmp_path, rows, {"tokens": [0, 0]})
    config = config_of(path / "dropped.parquet", {"tokens": [2, 3]})
    again = make_stage(tmp_path / "again", "select", config)
    (path / "problems.parquet").unlink()
    assert select.run(config, again)["kept"] == 2
    assert [(row["sample"], row["reason"]) for row in read_rows(again.path / "dropped.parquet")] == [(1, "tokens")]


def test_a_file_of_ones_own_may_lack_what_is_not_known(tmp_path):
    """A jsonl without prefill, seed, tokens, finish_reason and rewards, its rows unlike one another."""
    rows = [{name: rollout("1+1", sample, f"<think>{sample}</think> 2")[name] for name in select.NEEDED}
            for sample in range(2)]  # fmt: skip
    rows[1]["note"] = "only here"
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(path, {"per_problem": 1})
    stage = make_stage(tmp_path / "select", "select", config)
    assert select.run(config, stage) == {"rows": 2, "kept": 1, "problems_kept": 1, "tokens": None}
    assert read_json(stage.path / "report.json")["pass_rates"] == {}
    (example,) = read_rows(stage.path / "examples.parquet")
    assert (example["completion"], example["tokens"], example["seed"]) == ("<think>0</think> 2", None, None)
    (dropped,) = read_rows(stage.path / "dropped.parquet")
    assert (dropped["note"], dropped["reason"]) == ("only here", "per_problem")
    (problem,) = read_rows(stage.path / "problems.parquet")
    assert problem["pass_rate"] is None


def test_where_nothing_passes_the_funnel_is_shown_and_what_to_loosen(tmp_path):
    rows = [rollout("1+1", sample, thinking(f"{sample}"), finish_reason="stop" if sample else "length",
                    **{"reward/accuracy": 0.0}) for sample in range(3)]  # fmt: skip
    with pytest.raises(ValueError, match="passes all filters; loosen keep.least.accuracy, which dropped most") as error:
        selected(tmp_path, rows, {"least": {"accuracy": 1}})
    assert "\n3 rollouts of 1 problems\n  finished: 1 dropped, 2 left\n" in str(error.value)
    assert len(list(read_rows(tmp_path / "select" / "dropped.parquet"))) == 3
    with pytest.raises(ValueError, match="loosen pass_rate, which"):
        selected(tmp_path, rows, pass_rate=[0.5, 1])


ROW = rollout("1+1", 0, thinking("2"))
WITHOUT = {name: {key: value for key, value in ROW.items() if key != name} for name in ROW}


@pytest.mark.parametrize(
    ("rows", "keep", "changes", "message"),
    [
        ([], {}, {}, "rollouts.parquet has no rows"),
        *[([WITHOUT[name]], {}, {}, f"rollouts.parquet has no column '{name}', which rollouts need; it has: ")
          for name in select.NEEDED],
        ([ROW, {**ROW, "id": None}], {}, {}, "rollouts.parquet, row 2: `id` must be a text; got None"),
        ([{**ROW, "answer": 2}], {}, {}, "rollouts.parquet, row 1: `answer` must be a text; got 2"),
        ([{**ROW, "sample": "0"}], {}, {}, "rollouts.parquet, row 1: `sample` must be a whole number; got '0'"),
        ([ROW, ROW], {}, {}, f"rollouts.parquet: two rollouts have the id '{ROW['id']}'"),
        ([ROW], {"least": {"acuracy": 1}}, {}, "rollouts.parquet has no reward 'acuracy'; it has: accuracy, think_answer"),
        ([ROW], {}, {"right_by": "math"}, "right_by: "),
        ([{key: ROW[key] for key in select.NEEDED}], {"least": {"accuracy": 1}}, {}, "no reward 'accuracy'; it has: none"),
        ([{key: ROW[key] for key in select.NEEDED}], {}, {"pass_rate": [0, 1]}, "has no reward/NAME column that says what is right"),
        ([{**ROW, "tokens": None}], {"tokens": [0, 9]}, {}, "keep.tokens: "),
        ([WITHOUT["tokens"]], {"prefer": "shorter", "per_problem": 1}, {}, f"does not say how many `tokens` the rollout {ROW['id']} has; add them, or leave keep.prefer out"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, rows, keep, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        selected(tmp_path, rows, keep, **changes)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "rollouts.parquet"
    path.write_bytes(b"PAR1 no more")
    config = config_of(path)
    with pytest.raises(ValueError, match="rollouts.parquet.*not a parquet file"):
        select.run(config, make_stage(tmp_path / "select", "select", config))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, None),
        ({"pass_rate": [0.2, 0.8], "keep": {"tokens": [0, 9]}}, None),
        ({"pass_rate": [0.8, 0.2]}, "pass_rate: must be [LOW, HIGH] with 0 <= LOW <= HIGH <= 1; got [0.8, 0.2]"),
        ({"pass_rate": [0, 80]}, "pass_rate: must be [LOW, HIGH] with 0 <= LOW <= HIGH <= 1; got [0.0, 80.0]"),
        ({"pass_rate": [-1, 1]}, "pass_rate: must be [LOW, HIGH] with 0 <= LOW <= HIGH <= 1; got [-1.0, 1.0]"),
        ({"keep": {"tokens": [9, 0]}}, "keep.tokens: must be [LOW, HIGH] with 0 <= LOW <= HIGH; got [9, 0]"),
        ({"keep": {"tokens": [-1, 0]}}, "keep.tokens: must be [LOW, HIGH] with 0 <= LOW <= HIGH; got [-1, 0]"),
        ({"keep": {"prefer": "diverse"}}, "keep.prefer: diverse says which ones stay of too many; state keep.per_problem too"),
    ],
)  # fmt: skip
def test_faults_that_types_cannot_say(settings, fault):
    assert list(config_of("a.parquet", **settings).faults()) == ([fault] if fault else [])


@pytest.mark.parametrize(
    "keep",
    [{"language": "xx"}, {"loops": 1}, {"near_duplicates": 0}, {"near_duplicates": 1.1}, {"per_problem": 0},
     {"longest_paragraph": 0}, {"prefer": "longer"}, {"least": {"accuracy": "all"}}, {"tokens": 5}, {"correct": True}],
)  # fmt: skip
def test_faults_that_types_say(keep):
    with pytest.raises(ValidationError, match=f"keep.{next(iter(keep))}"):
        config_of("a.parquet", keep)


WORDS = ["so", "it", "is", "two", "等", "```", "\n\n", "</think>"]
found = st.lists(
    st.tuples(
        st.sampled_from(["1+1", "2+0"]), st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), st.integers(0, 9),
        st.sampled_from(["stop", "length", None]), st.sampled_from([0.0, 1.0, None]),
    ),
    min_size=1, max_size=12,
)  # fmt: skip
keeps = st.fixed_dictionaries(
    {},
    optional={
        "finished": st.booleans(),
        "least": st.just({"accuracy": 1}),
        "tokens": st.just([1, 8]),
        "code": st.booleans(),
        "longest_paragraph": st.integers(1, 20),
        "loops": st.integers(2, 3),
        "language": st.sampled_from(["en", "zh"]),
        "near_duplicates": st.sampled_from([0.2, 1.0]),
        "per_problem": st.integers(1, 3),
        "prefer": st.sampled_from(["first", "shorter", "diverse"]),
    },
)


@given(found, keeps, st.sampled_from([None, [0, 0.5], [0.3, 1]]), st.integers())
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost_the_cap_holds_and_the_order_of_rows_decides_nothing(found, keep, pass_rate, seed):
    rows = [
        rollout(problem, sample, text, tokens=tokens, finish_reason=reason, **{"reward/accuracy": score})
        for sample, (problem, text, tokens, reason, score) in enumerate(found)
    ]
    config = config_of("rollouts.parquet", keep, pass_rate=pass_rate)
    rates = select.pass_rates(config, rows, "rollouts.parquet")
    kept, why, funnel = select.sift(rows, select.filters(config, rates))
    assert sorted([*why, *(row["id"] for row in kept)]) == sorted(row["id"] for row in rows)
    assert funnel[-1]["left"] == len(kept)
    problems = [row["problem"] for row in kept]
    assert all(problems.count(problem) <= keep.get("per_problem", 99) for problem in problems)
    assert len({(row["problem"], select.whole(row)) for row in kept}) == len(kept)
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert select.pass_rates(config, shuffled, "rollouts.parquet") == rates
    assert select.sift(shuffled, select.filters(config, rates))[1:] == (why, funnel)
    # What fails on its own does so whatever else there is: such a reason is no one else's matter.
    alone = {"finished", "least.accuracy", "tokens", "code", "longest_paragraph", "loops", "language", None}
    for row in rows:
        _, mine, _ = select.sift([row], select.filters(config, rates))
        assert why.get(row["id"]) == mine.get(row["id"]) or mine.get(row["id"]) is None
        assert mine.get(row["id"]) in alone | {"pass_rate"}


@pytest.mark.parametrize(
    ("rates", "expected"),
    [([], {}), ([0, 0.09, 0.1, 0.3, 0.7, 0.99, 1], {"0.0": 2, "0.1": 1, "0.3": 1, "0.7": 1, "0.9": 1, "1.0": 1})],
)
def test_in_tenths(rates, expected):
    counts = select.in_tenths(rates)
    assert {low: count for low, count in counts.items() if count} == expected
    assert len(counts) in (0, 11)


def test_every_tenth_is_counted_as_itself():
    for n in range(1, 65):
        for right in range(n + 1):
            assert select.in_tenths([right / n])[f"{right * 10 // n / 10:.1f}"] == 1
