"""Two reports are compared problem by problem, but only where they were measured alike."""

import json
import random
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import r1lite

from r1lite.compare import compare, paired, sign_flip_p
from r1lite.protocol import LIKE
from r1lite.stages.evaluate import Config, stated_protocol
from r1lite.summary import summarize

SET = "data/aime24.yaml#test"
FREE = {"seed", "limit", "weights"}  # facts of a report that two results may differ in
T975 = {1: 12.706, 3: 3.182, 9: 2.262, 39: 2.023}  # the 0.975 quantile of Student's t, from a printed table
Z975 = 1.960


def result_of(rights, samples=8, model="m", problems=SET, prefix="p") -> dict:
    """One model's result on one set; of problem i, `rights[i]` samples were right."""
    rate = sum(rights) / len(rights) / samples
    stated = {"mean": rate, "ci_samples": [rate, rate] if samples > 1 else None, "ci_problems": [rate, rate]}
    return {
        "model": model,
        "problems": problems,
        "n_problems": len(rights),
        "n_samples": samples,
        "pass@1": rate,
        "pass@1_ci_samples": stated["ci_samples"],
        "pass@1_ci_problems": stated["ci_problems"],
        "pass@k": {"1": stated, str(samples): stated},
        "maj@k": {"1": stated, str(samples): stated},
        "truncated": 0.0,
        "no_answer": 0.0,
        "mean_tokens": 9.0,
        "graders": {"accuracy": rate, "exact": rate, "disagree": 0},
        "right_by_problem": {f"{prefix}-{number}": right for number, right in enumerate(rights)},
        "fingerprint": "0" * 12,
    }


def report_of(*results: dict) -> dict:
    """A report.json as r1lite/stages/evaluate.py writes it."""
    return {
        "protocol": {
            "prompt": "r1",
            "temperature": 0.6,
            "top_p": 0.95,
            "max_tokens": 32768,
            "seed": 0,
            "limit": None,
            "template": "7e3",
            "engine": "vllm 0.22.0",
            "versions": {"math-verify": "0.9.0"},
            "problems": {
                result["problems"]: {"key": "c0ffee", "graders": {"rewards.math:accuracy": "ab1e"}}
                for result in results
            },
            "models": {
                result["model"]: {"weights": "feed", "dtype": "bfloat16", "chat_template": "beef"} for result in results
            },
        },
        "results": list(results),
    }


def place_of(report: dict, fact: str) -> tuple[dict, str]:
    """Where a report of one result says a fact: the object and the key in it."""
    (result,), protocol = report["results"], report["protocol"]
    if fact == "problems":
        return protocol["problems"][result["problems"]], "key"
    homes = [protocol, protocol["models"][result["model"]], protocol["problems"][result["problems"]], result]
    (home,) = [home for home in homes if fact in home and not (fact == "graders" and home is result)]
    return home, fact


@pytest.fixture
def save(tmp_path):
    def write(report: dict, name: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
        return str(tmp_path / name)

    return write


@pytest.fixture
def both(save):
    """Writes two reports; gives their directories."""
    return lambda one, other: (save(one, "a"), save(other, "b"))


def test_the_hand_made_reports_have_the_shape_of_real_ones():
    config = Config(
        kind="eval", models=["data/tiny_base"], problems=[SET], max_tokens=8, prompt="plain", engine="transformers"
    )
    source = SimpleNamespace(
        name=SET, problems=[], grader=SimpleNamespace(use="rewards.math:accuracy", args={}, columns={})
    )
    real = stated_protocol(config, [source], {"data/tiny_base": Path("data/tiny_base")})
    made = report_of(result_of([1], model="data/tiny_base"))["protocol"]
    assert set(made) == set(real)
    assert set(made["problems"][SET]) == set(real["problems"][SET])
    assert set(made["models"]["data/tiny_base"]) == set(real["models"]["data/tiny_base"])
    sample = {"found": "1", "reward/accuracy": 1.0, "finish_reason": "stop", "tokens": 9, "completion": "1"}
    assert set(result_of([1])) < {"model", "problems", "fingerprint", *summarize({"p-0": [sample]}, ["accuracy"])}
    assert set(real) | set(real["models"]["data/tiny_base"]) | {"graders", "n_samples"} == {*LIKE, *FREE, "models"}


# --- What may be compared


def test_equal_protocols_compare(both):
    (found,) = compare(*both(report_of(result_of([0, 4, 8])), report_of(result_of([2, 4, 8]))))
    assert (found.a, found.b, found.problems, found.n_problems) == ("m", "m", SET, 3)
    assert found.pass_at_1 == pytest.approx((12 / 24, 14 / 24))
    assert found.difference == pytest.approx(2 / 24)


@pytest.mark.parametrize("fact", LIKE)
def test_a_difference_in_one_fact_alone_is_refused_and_named(both, fact):
    one, other = report_of(result_of([1, 2])), report_of(result_of([1, 2]))
    home, key = place_of(other, fact)
    before = home[key]
    home[key] = {"another": "value"} if isinstance(before, dict) else 16 if isinstance(before, int) else "another"
    a, b = both(one, other)
    with pytest.raises(ValueError, match="were not measured alike") as error:
        compare(a, b)
    first, *faults = str(error.value).splitlines()
    assert faults == [f"{SET}: {fact}: {before} here, {home[key]} there"]
    assert a in first and b in first and "--anyway" in first
    assert len(compare(a, b, anyway=True)) == 1


def test_all_differences_are_named_at_once(both):
    other = report_of(result_of([1, 2], samples=4))
    other["protocol"] |= {"temperature": 1.0, "max_tokens": 4096}
    with pytest.raises(ValueError, match="were not measured alike") as error:
        compare(*both(report_of(result_of([1, 2])), other))
    assert str(error.value).splitlines()[1:] == [
        f"{SET}: temperature: 0.6 here, 1.0 there",
        f"{SET}: max_tokens: 32768 here, 4096 there",
        f"{SET}: n_samples: 8 here, 4 there",
    ]


@pytest.mark.parametrize("fact", ["seed", "limit", "weights"])
def test_other_samples_of_another_model_are_comparable(both, fact):
    other = report_of(result_of([1, 2], model="another"))
    home, key = place_of(other, fact)
    home[key] = 7
    assert len(compare(*both(report_of(result_of([1, 2])), other))) == 1


def test_sets_are_matched_by_content_whatever_they_are_called(both):
    renamed = f"{SET}@aime24.jsonl"
    (found,) = compare(*both(report_of(result_of([1, 2])), report_of(result_of([3, 4], problems=renamed))))
    assert (found.problems, found.n_problems) == (SET, 2)


def test_each_set_is_compared_with_its_like(both):
    def two(first: int, second: int, order: int) -> dict:
        results = [
            result_of([first] * 2, problems="x.jsonl", prefix="x"),
            result_of([second] * 2, problems="y.jsonl", prefix="y"),
        ]
        report = report_of(*results[::order])
        report["protocol"]["problems"]["x.jsonl"]["key"] = "of x"
        return report

    found = compare(*both(two(0, 8, 1), two(4, 6, -1)))
    assert {each.problems: each.difference for each in found} == {"x.jsonl": 0.5, "y.jsonl": -0.25}


def test_where_a_set_is_there_as_a_whole_its_part_is_left_alone(both):
    other = report_of(result_of([2, 2, 2]), result_of([8], problems="part.jsonl"))
    other["protocol"]["problems"]["part.jsonl"]["key"] = "a part"
    (found,) = compare(*both(report_of(result_of([2, 2, 2])), other))
    assert (found.n_problems, found.difference) == (3, 0.0)


def test_anyway_compares_the_problems_that_both_have(both):
    one, other = report_of(result_of([0, 8, 8, 8])), report_of(result_of([0, 4], problems="b.jsonl"))
    other["protocol"]["problems"]["b.jsonl"]["key"] = "other"
    other["protocol"]["temperature"] = 1.0
    (found,) = compare(*both(one, other), anyway=True)
    assert (found.n_problems, found.pass_at_1, found.difference) == (2, (0.5, 0.25), -0.25)


@pytest.mark.parametrize("anyway", [False, True])
def test_nothing_in_common_is_an_error(both, anyway):
    other = report_of(result_of([1, 2], problems="b.jsonl", prefix="q"))
    other["protocol"]["problems"]["b.jsonl"]["key"] = "other"
    with pytest.raises(ValueError, match="have no problem in common"):
        compare(*both(report_of(result_of([1, 2])), other), anyway=anyway)


def test_of_several_models_one_must_be_named(save):
    path = save(report_of(result_of([0, 0], model="data/base"), result_of([8, 4], model="$zero")), "a")
    (found,) = compare(f"{path}#data/base", f"{path}#$zero")
    assert (found.a, found.b, found.difference) == ("data/base", "$zero", 0.75)
    for reference in (path, f"{path}#zero"):
        with pytest.raises(ValueError, match="name one of the models") as error:
            compare(reference, f"{path}#$zero")
        assert f"{path}#data/base, {path}#$zero" in str(error.value)


def test_completions_graded_alike_compare_though_their_sampling_is_unknown(both):
    reports = report_of(result_of([1, 2])), report_of(result_of([2, 2]))
    for report in reports:
        report["protocol"] = {name: report["protocol"][name] for name in ("versions", "problems")} | {"models": {}}
    assert compare(*both(*reports))[0].difference == pytest.approx(1 / 16)


# --- The numbers


def test_won_and_lost_are_the_problems_that_cross_one_half():
    found = paired(result_of([0, 3, 4, 8, 4, 8, 2]), result_of([4, 4, 3, 0, 8, 4, 3]))
    assert found.won == ["p-0", "p-1"]
    assert found.lost == ["p-2", "p-3"]


@pytest.mark.parametrize("count", [4, 10, 40])
def test_the_interval_over_problems_is_students_for_paired_differences(count):
    random.seed(count)
    before, after = [[random.randint(2, 6) for _ in range(count)] for _ in range(2)]
    found = paired(result_of(before), result_of(after))
    gains = [(b - a) / 8 for a, b in zip(before, after, strict=True)]
    half = T975[count - 1] * stdev(gains) / count**0.5
    assert found.ci_problems == pytest.approx((fmean(gains) - half, fmean(gains) + half), abs=2e-3)
    assert found.ci_problems[0] < found.difference < found.ci_problems[1]


def test_the_interval_over_samples_is_the_binomials():
    before, after, n, m = [0, 1, 4, 8], [2, 4, 7, 16], 8, 16
    found = paired(result_of(before, n), result_of(after, m))
    variance = sum(
        x / n * (1 - x / n) / (n - 1) + y / m * (1 - y / m) / (m - 1) for x, y in zip(before, after, strict=True)
    )
    half = Z975 * variance**0.5 / 4
    assert found.ci_samples == pytest.approx((found.difference - half, found.difference + half), abs=1e-4)


def test_intervals_keep_within_what_is_possible_and_say_when_nothing_is_known():
    found = paired(result_of([0, 0, 1]), result_of([8, 8, 1]))
    assert found.ci_problems[1] == 1.0 and found.ci_problems[0] >= -1.0
    assert paired(result_of([0, 1], samples=1), result_of([1, 1])).ci_samples is None
    assert paired(result_of([0, 1]), result_of([1, 1], samples=1)).ci_samples is None
    low, high = paired(result_of([3]), result_of([3])).ci_problems
    assert (low, high) == (-1.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-8, 8), min_size=1, max_size=10))
def test_p_counts_all_signs(eighths):
    observed = abs(sum(eighths))
    sums = [abs(sum(map(int.__mul__, signs, eighths))) for signs in product((-1, 1), repeat=len(eighths))]
    exact = sum(total >= observed for total in sums) / len(sums)
    assert sign_flip_p([each / 8 for each in eighths]) == pytest.approx(exact)
    assert sign_flip_p([each / 8 + 0.1 - 0.1 for each in eighths if each]) == pytest.approx(exact)


def test_many_problems_are_sampled_near_the_exact_p():
    gains = [1.0] * 13 + [-1.0] * 3  # sums of at least 10 in size: at most 3 minus signs, or at most 3 plus signs
    exact = 2 * (1 + 16 + 120 + 560) / 2**16
    assert sign_flip_p(gains) == pytest.approx(exact, abs=4 * (exact / 20_000) ** 0.5)
    assert sign_flip_p(gains) == sign_flip_p(gains)


def test_p_of_equal_results_is_1():
    assert paired(result_of([0, 3, 8]), result_of([0, 3, 8])).p == 1.0


def test_p_is_small_but_never_0_where_all_of_40_problems_improve():
    found = paired(result_of([2] * 40), result_of([3] * 40))
    assert 0 < found.p < 0.001
    assert len(found.won) == 0 and found.difference == pytest.approx(1 / 8)


@pytest.mark.parametrize("count", [10, 30])
def test_under_the_null_5_percent_are_significant(monkeypatch, count):
    """Both are sampled at the same rates, 400 times; 10 problems take all signs, 30 take random ones."""
    monkeypatch.setattr("r1lite.compare.FLIPS", 2000)  # as it is, but in less time
    draw = random.Random(count)
    found = []
    for _ in range(400):
        rates = [draw.betavariate(1, 1) for _ in range(count)]
        one, other = ([sum(draw.random() < rate for _ in range(16)) for rate in rates] for _ in range(2))
        found.append(paired(result_of(one, 16), result_of(other, 16)))
    assert 0.02 < fmean(each.p < 0.05 for each in found) < 0.08
    assert 0.92 < fmean(each.ci_problems[0] <= 0 <= each.ci_problems[1] for each in found) < 0.98
    assert 0.92 < fmean(each.ci_samples[0] <= 0 <= each.ci_samples[1] for each in found) < 0.98


# --- The command line


def test_unlike_protocols_are_exit_code_2_and_anyway_compares(both):
    other = report_of(result_of([8, 6, 4, 1]))
    other["protocol"] |= {"temperature": 1.0, "engine": "transformers 5.5.0"}
    a, b = both(report_of(result_of([0, 2, 4, 8])), other)
    done = r1lite("compare", a, b)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {SET}: temperature: 0.6 here, 1.0 there\n" in done.stderr
    assert f"error: {SET}: engine: vllm 0.22.0 here, transformers 5.5.0 there\n" in done.stderr
    assert "Traceback" not in done.stderr
    done = r1lite("compare", a, b, "--anyway")
    assert done.returncode == 0, done.stderr
    (found,) = compare(a, b, anyway=True)
    for text in (
        "4 problems: m 0.438, m 0.594",
        "+0.156",
        f"[{found.ci_problems[0]:+.3f}, {found.ci_problems[1]:+.3f}]",
        f"[{found.ci_samples[0]:+.3f}, {found.ci_samples[1]:+.3f}]",
        f"{found.p:.4f}",
        "won: p-0, p-1\n",
        "lost: p-3\n",
    ):
        assert text in done.stdout


def test_json_of_directory_and_file_is_the_same(both):
    a, b = both(report_of(result_of([0, 2, 4])), report_of(result_of([8, 6, 4])))
    done = r1lite("compare", a, f"{b}/report.json", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert (found["difference"], found["p"], found["won"]) == (0.5, 0.5, ["p-0", "p-1"])
    assert found["ci_problems"] == list(compare(a, b)[0].ci_problems)
    assert json.loads(r1lite("compare", f"{a}/report.json", b, "--json").stdout) == [found]


def test_one_sample_a_problem_says_what_the_interval_needs(both):
    done = r1lite("compare", *both(report_of(result_of([0, 1], 1)), report_of(result_of([1, 1], 1))))
    assert (done.returncode, "needs 2 samples" in done.stdout) == (0, True)


@pytest.mark.parametrize("name", ["nowhere", "nowhere/report.json", "empty"])
def test_a_missing_report_is_exit_code_2_and_named(save, tmp_path, name):
    (tmp_path / "empty").mkdir()
    path, here = tmp_path / name, save(report_of(result_of([1])), "a")
    for arguments in ((str(path), here), (here, str(path))):
        done = r1lite("compare", *arguments)
        assert done.returncode == 2
        assert f"error: there is no report {path}" in done.stderr
        assert "Traceback" not in done.stderr


def test_compare_has_help_with_an_example():
    done = r1lite("compare", "--help")
    assert (done.returncode, "r1lite compare runs/" in done.stdout) == (0, True)
