"""What rejection sampling drops: tables of what each filter sees, and comparisons with what is plainly right."""

import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from r1lite import filters
from r1lite.filters import goes_round, in_language, longest_paragraph, shingles, similarity, words_of


def rows_of(*completions: str) -> list[dict]:
    return [
        {"id": f"s-{n}", "problem_id": "p", "prefill": "", "completion": text, "sample": n, "tokens": len(text)}
        for n, text in enumerate(completions)
    ]


def texts(rows: list[dict]) -> list[str]:
    return [row["completion"] for row in rows]


@pytest.mark.parametrize(
    ("text", "language", "expected", "why"),
    [
        ("so the sum is 4, and that is it", "en", True, "English"),
        ("先算左边，再算右边。", "zh", True, "Chinese"),
        ("先算左边，再算右边。", "en", False, "Chinese, where English is meant"),
        ("so the sum is 4", "zh", False, "English, where Chinese is meant"),
        ("so the sum is 4, 所以 it is done", "en", False, "a word of Chinese"),
        ("所以答案是 four", "zh", False, "a word of English"),
        (r"\frac{1}{2} + x_1 = 3", "en", True, "no words: formulas have no language"),
        (r"所以 \frac{a}{b} = x", "zh", True, "formulas in Chinese"),
        ("", "zh", True, "nothing"),
        ("donc la somme est 4 et nous avons fini", "en", False, "French in Latin letters"),
        ("donc la somme est 4 et nous avons fini", "fr", True, "French"),
    ],
)
def test_in_language(text, language, expected, why):
    assert in_language(text, language) == expected, why


@pytest.mark.parametrize(
    ("text", "expected", "why"),
    [
        ("", 0, "nothing"),
        ("one two", 7, "one paragraph"),
        ("one\ntwo", 7, "a line's end does not end it"),
        ("one\n\nthree", 5, "a blank line does"),
        ("one\r\n\r\nthree", 5, "of Windows too"),
        ("one\n  \t\nthree", 5, "and one of spaces"),
        ("  one  \n\n\n\n two ", 3, "space around does not count"),
        ("先算左边，\n再算右边。\n\n好", 11, "Chinese by characters"),
        ("\n" * 50, 0, "blank lines alone"),
    ],
)
def test_longest_paragraph(text, expected, why):
    assert longest_paragraph(text) == expected, why


@pytest.mark.parametrize(
    ("text", "times", "expected", "why"),
    [
        ("", 2, False, "nothing"),
        ("wait", 2, False, "one word"),
        ("wait wait", 2, True, "twice"),
        ("wait wait wait", 4, False, "three are not four"),
        ("wait Wait wait\nwait", 4, True, "case and space aside"),
        ("so wait wait wait wait now", 4, True, "in the midst"),
        ("wait a bit, wait a bit, wait a bit,", 3, True, "three words"),
        ("wait a bit, wait a bit, wait a bit", 3, False, "punctuation stays with its word"),
        ("wait now wait then wait again wait", 2, False, "often, but not in a row"),
        ("1 + 2 = 3 1 + 2 = 3", 2, True, "formulas"),
        ("等等等等", 4, True, "Han characters one by one"),
        ("让我再想想，让我再想想，让我再想想，", 3, True, "a phrase in Chinese"),
        ("让我再想想，然后再算", 2, True, "想想 is a word that doubles a character: a small number drops sound text"),
        ("让我再算一算，然后再看", 3, False, "sound Chinese"),
        ("ha" * 60, 6, True, "a word without an end"),
        (" ".join(map(str, range(50))) * 2, 2, False, "the seam 490 is a word of its own"),
        (" ".join(map(str, [*range(50), *range(50)])), 2, True, "50 words, which are the most"),
        (" ".join(map(str, [*range(51), *range(51)])), 2, False, "51 words"),
    ],
)
def test_goes_round(text, times, expected, why):
    assert goes_round(text, times) == expected, why


def goes_round_plainly(words: list[str], times: int) -> bool:
    return any(
        words[start : start + n] * times == words[start : start + n * times]
        for n in range(1, 51)
        for start in range(len(words) - n * times + 1)
    )


# Motifs that come a few times make loops, and near ones, far likelier than words at random.
motifs = st.lists(
    st.tuples(st.lists(st.sampled_from("ab我"), min_size=1, max_size=6), st.integers(1, 6)), max_size=8
).map(lambda parts: [word for motif, times in parts for word in motif * times])


@given(motifs, st.integers(2, 7))
@settings(max_examples=500, deadline=None)
def test_goes_round_is_what_it_says(words, times):
    text = " ".join(words)
    assert words_of(text) == words
    assert goes_round(text, times) == goes_round_plainly(words, times)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 49, 50])
@pytest.mark.parametrize("times", [2, 3, 10])
@pytest.mark.parametrize("before", [0, 1, 5, 61])
def test_a_loop_is_found_wherever_it_stands(n, times, before):
    prefix = [f"before{index}" for index in range(before)]
    loop = [f"loop{index}" for index in range(n)] * times
    assert goes_round(" ".join([*prefix, *loop, "after"]), times)
    assert not goes_round(" ".join([*prefix, *loop[:-1], "after"]), times)


@pytest.mark.parametrize(
    "text",
    [
        " ".join(str(n * n % 9973) for n in range(25_000)),
        " ".join((["wait"] * 7 + ["x"]) * 4 + [str(n)] for n in range(0)) + "wait " * 7 + "x " * 7,
        " ".join("wait " * 7 + f"{n}" for n in range(3_000)),
        " ".join("a b c d e f g h " * 7 + f"{n}" for n in range(500)),
    ],
)
def test_long_texts_take_no_time(text):
    start = time.perf_counter()
    assert not goes_round(text, 8)
    assert time.perf_counter() - start < 0.5  # a hundredth of a second where nothing else runs


def test_shingles_are_runs_of_five_words():
    assert shingles("a b c d E f") == {("a", "b", "c", "d", "e"), ("b", "c", "d", "e", "f")}
    assert shingles("a b") == {("a", "b")}
    assert shingles("") == {()}
    assert shingles("先算左边再") == {tuple("先算左边再")}


def test_similarity():
    assert similarity({1, 2, 3}, {2, 3, 4}) == 0.5
    assert similarity({1}, {1}) == 1
    assert similarity({1}, {2}) == 0


def test_equal_texts_are_told_by_the_whole_text():
    rows = rows_of("a</think>", "<think>a</think>", "a", "a</think>")
    rows[0]["prefill"] = "<think>"
    assert [row["sample"] for row in filters.without_duplicates(rows)] == [0, 2, 3]


ENGLISH = "we add the two numbers on the left and then we take three from what we have so that it is done"
CHINESE = "我们先把左边的两个数加起来然后再减去三这样就得到了答案"


@pytest.mark.parametrize(
    ("other", "least", "stays"),
    [
        (ENGLISH + " now", 0.9, False),
        (ENGLISH.upper(), 1.0, False),
        (ENGLISH + " now", 1.0, True),
        (ENGLISH.replace("three", "four"), 0.5, False),  # 5 of 18 runs of five words differ: 13 / 23
        (ENGLISH.replace("three", "four"), 0.57, True),
        (" ".join(reversed(ENGLISH.split())), 0.1, True),
        (CHINESE, 0.1, True),
    ],
)
def test_near_duplicates_in_english(other, least, stays):
    assert len(filters.without_near_duplicates(rows_of(ENGLISH, other), least)) == 1 + stays


@pytest.mark.parametrize(
    ("other", "least", "stays"),
    [(CHINESE + "了", 0.9, False), (CHINESE.replace("三", "四"), 0.9, True), (CHINESE[::-1], 0.1, True)],
)
def test_near_duplicates_in_chinese(other, least, stays):
    assert len(filters.without_near_duplicates(rows_of(CHINESE, other), least)) == 1 + stays


def test_what_is_like_a_dropped_one_alone_stays():
    long = [f"w{n}" for n in range(40)]
    rows = rows_of(*(" ".join(long[start : start + 24]) for start in (0, 4, 8)))  # 16 of 24, and 12 of 28, runs shared
    assert [row["sample"] for row in filters.without_near_duplicates(rows, 0.6)] == [0, 2]


def near_duplicates_plainly(rows: list[dict], least: float) -> list[dict]:
    staying: list[dict] = []
    for row in rows:
        mine = runs_plainly(row["completion"].split())
        if not any(
            len(mine & (other := runs_plainly(each["completion"].split()))) / len(mine | other) >= least
            for each in staying
        ):
            staying.append(row)
    return staying


def runs_plainly(words: list[str]) -> set[str]:
    return {" ".join(words[start : start + 5]) for start in range(len(words) - 4)} or {" ".join(words)}


sentences = st.lists(st.sampled_from("ab"), max_size=12).map(" ".join)


@given(st.lists(sentences, max_size=8), st.sampled_from([0.01, 0.1, 0.25, 1 / 3, 0.5, 0.55, 2 / 3, 0.8, 1.0]))
@settings(max_examples=300, deadline=None)
def test_near_duplicates_are_what_they_say(completions, least):
    rows = rows_of(*completions)
    assert filters.without_near_duplicates(rows, least) == near_duplicates_plainly(rows, least)


def test_a_similarity_that_is_just_the_least_counts():
    """55 of 100 is no less than 0.55, although 0.55 * 100 is more than 55."""
    words = [f"w{n}" for n in range(104)]
    rows = rows_of(" ".join(words), " ".join(words[:59]))
    assert texts(filters.without_near_duplicates(rows, 0.55)) == texts(rows[:1])


def test_the_most_diverse_come_by_turns():
    a, b = " ".join(f"a{n}" for n in range(20)), " ".join(f"b{n}" for n in range(20))
    rows = rows_of(a, a + " x", b, b + " y", "all else is new here")
    assert [row["sample"] for row in filters.most_diverse(rows, 1)] == [0]
    assert [row["sample"] for row in filters.most_diverse(rows, 2)] == [0, 2]
    assert [row["sample"] for row in filters.most_diverse(rows, 3)] == [0, 2, 4]
    assert {row["sample"] for row in filters.most_diverse(rows, 4)} in ({0, 1, 2, 4}, {0, 2, 3, 4})
    assert filters.most_diverse(rows, 9) == rows


@given(st.lists(sentences, min_size=1, max_size=7), st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_each_of_the_most_diverse_is_the_least_similar_of_what_was_left(completions, count):
    rows = rows_of(*completions)
    taken = filters.most_diverse(rows, count)
    assert len(taken) == min(count, len(rows)) and len({row["id"] for row in taken}) == len(taken)
    assert taken[0] == rows[0]
    if len(taken) == len(rows):
        return
    for place in range(1, len(taken)):
        nearest = {
            row["id"]: max(
                similarity(shingles(row["completion"]), shingles(each["completion"])) for each in taken[:place]
            )
            for row in rows
            if row not in taken[:place]
        }
        assert nearest[taken[place]["id"]] == min(nearest.values())


keyed = st.lists(
    st.tuples(st.sampled_from("pq"), st.integers(0, 3), sentences), max_size=10
).map(lambda found: [
    {"id": f"s-{n}", "problem_id": problem, "sample": sample, "prefill": "", "completion": text, "tokens": len(text)}
    for n, (problem, sample, text) in enumerate(found)
])  # fmt: skip


def by_sample(row: dict) -> tuple:
    return row["sample"], row["id"]


SOME = {
    "short": filters.failing(lambda row: row["tokens"] > 2),
    "duplicates": filters.competing(filters.without_duplicates, by_sample),
    "near_duplicates": filters.competing(lambda rows: filters.without_near_duplicates(rows, 0.5), by_sample),
    "per_problem": filters.competing(lambda rows: rows[:2], by_sample),
}


@given(keyed, st.randoms())
@example([], None)
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost_and_the_order_of_rows_decides_nothing(rows, random):
    kept, reasons, funnel = filters.sift(rows, SOME)
    assert {row["id"] for row in kept} | set(reasons) == {row["id"] for row in rows}
    assert len(kept) + len(reasons) == len(rows)
    assert [row for row in rows if row["id"] not in reasons] == kept, "in the order of the rows"
    assert [line["reason"] for line in funnel] == list(SOME)
    lefts = [len(rows), *(line["left"] for line in funnel)]
    assert [before - after for before, after in pairwise(lefts)] == [line["dropped"] for line in funnel]
    assert [list(reasons.values()).count(name) for name in SOME] == [line["dropped"] for line in funnel]
    if rows:
        shuffled = random.sample(rows, len(rows))
        assert filters.sift(shuffled, SOME)[1:] == (reasons, funnel)


def test_a_row_keeps_the_first_reason():
    rows = rows_of("", "", "long enough")
    _, reasons, _ = filters.sift(rows, SOME)
    assert reasons == {"s-0": "short", "s-1": "short"}


def test_other_problems_do_not_compete():
    rows = [{**row, "problem_id": f"p{n}"} for n, row in enumerate(rows_of("the same", "the same"))]
    assert filters.sift(rows, SOME)[0] == rows
