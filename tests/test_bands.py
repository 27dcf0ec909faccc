"""Results are held against published figures of the same model, problems and decoding, and against no others."""

from io import StringIO

import pytest
from rich.console import Console
from test_compare import report_of, result_of

from r1lite.bands import held_against
from r1lite.report import print_results

MODEL, SET = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "data/aime24.yaml#test"
CHEAPEST = f"""
- model: {MODEL}
  problems: {SET}
  metric: pass@1
  protocol: {{temperature: 0.6, top_p: 0.95, max_tokens: 32768}}
  published: {{DeepSeek: 0.25, open-r1: 0.5}}
  band: [0.25, 0.5]
- model: {MODEL}
  problems: {SET}
  metric: maj@64
  protocol: {{temperature: 0.6, top_p: 0.95, max_tokens: 32768}}
  published: {{DeepSeek: 0.9}}
  band: [0.875, 1]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text(CHEAPEST)
    return path


def measured(right=3, samples=8, model=MODEL, problems=SET, **protocol) -> dict:
    """A report on four problems, of each of which `right` samples were right."""
    report = report_of(result_of([right] * 4, samples, model, problems))
    report["protocol"] |= protocol
    return report


@pytest.mark.parametrize(
    ("right", "verdict"), [(0, "outside"), (1, "outside"), (2, "inside"), (3, "inside"), (4, "inside"), (5, "outside")]
)
def test_a_result_is_inside_the_band_or_outside(file, right, verdict):
    (held,) = held_against(measured(right), file)
    assert (held.model, held.problems, held.metric) == (MODEL, SET, "pass@1")
    assert (held.value, held.verdict) == (right / 8, verdict)
    assert (held.band, held.published) == ((0.25, 0.5), {"DeepSeek": 0.25, "open-r1": 0.5})


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 1.0},
        {"top_p": 1.0},
        {"max_tokens": 4096},
        {"model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"},
        {"problems": "data/amc23.yaml#test"},
        {"problems": "data/aime24.yaml#train"},
        {"problems": "aime24.jsonl"},
    ],
    ids=str,
)
def test_what_was_measured_otherwise_is_held_against_nothing(file, other):
    assert held_against(measured(**other), file) == []


def test_a_seed_or_engine_of_its_own_is_held_all_the_same(file):
    assert len(held_against(measured(seed=7, engine="transformers 5.5.0"), file)) == 1


def test_a_vote_is_held_where_it_was_sampled_as_often(file):
    assert [held.metric for held in held_against(measured(16, 32), file)] == ["pass@1"]
    report = measured(16, 64)
    report["results"][0]["maj@k"]["64"] = {"mean": 0.875}
    by_pass, by_vote = held_against(report, file)
    assert (by_pass.metric, by_pass.value, by_pass.verdict) == ("pass@1", 0.25, "inside")
    assert (by_vote.metric, by_vote.value, by_vote.verdict) == ("maj@64", 0.875, "inside")


def test_a_file_that_stands_in_counts_as_the_card(file):
    (held,) = held_against(measured(problems=f"{SET}@aime24.jsonl"), file)
    assert (held.problems, held.verdict) == (f"{SET}@aime24.jsonl", "inside")


def test_of_several_results_the_published_one_is_held(file):
    report = report_of(result_of([3]), result_of([2], model=MODEL, problems=SET), result_of([5], model="$zero"))
    assert [(held.model, held.value) for held in held_against(report, file)] == [(MODEL, 0.25)]


def test_graded_completions_of_unknown_sampling_are_held_against_nothing(file):
    report = measured()
    report["protocol"] = {name: report["protocol"][name] for name in ("versions", "problems")} | {"models": {}}
    assert held_against(report, file) == []


def test_without_the_file_nothing_is_held(tmp_path):
    assert held_against(measured(), tmp_path / "published.yaml") == []


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("band: [0.25, 0.5]", "band: [0.25]", "band"),
        ("band: [0.25, 0.5]", "band: wide", "band"),
        ("DeepSeek: 0.25", "DeepSeek: high", "published"),
        ("metric: pass@1", "metrik: pass@1", "metrik"),
        ("  metric: pass@1\n", "", "metric"),
        (CHEAPEST, "model: m", "list"),
        ("band: [0.25, 0.5]", "band: [0.25, 0.5", "malformed YAML"),
    ],
)
def test_a_malformed_file_is_named(file, before, after, message):
    assert before in CHEAPEST
    file.write_text(CHEAPEST.replace(before, after))
    with pytest.raises(ValueError, match="published.yaml") as error:
        held_against(measured(), file)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("rate", "verdict"), [(0.28, "inside"), (0.30, "inside"), (0.31, "inside"), (0.27, "outside"), (0.32, "outside")]
)
def test_the_printed_results_say_so(rate, verdict):
    """Against the figures that the repository ships: 0.28 to 0.31."""
    report = measured(round(rate * 100), 100)
    out = StringIO()
    print_results(Console(file=out, width=200), report)
    lines = [line for line in out.getvalue().splitlines() if "the band" in line]
    expected = f"{MODEL} on {SET}: pass@1 {rate:.3f} is {verdict} the band 0.280 to 0.310 of what was published"
    assert len(lines) == 1 and lines[0].startswith(expected)
    assert "DeepSeek 0.289, open-r1 0.307" in out.getvalue()


def test_nothing_is_printed_of_what_is_held_against_nothing():
    out = StringIO()
    print_results(Console(file=out, width=200), measured(temperature=1.0))
    assert MODEL in out.getvalue()
    assert "published" not in out.getvalue()
