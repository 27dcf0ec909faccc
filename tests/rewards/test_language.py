import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards.language import LANGUAGES, language_consistency


@pytest.mark.parametrize(
    ("completion", "language", "expected", "why"),
    [
        ("<think>We add the numbers.</think><answer>5</answer>", "en", 1, "English"),
        ("<think>我们把数字相加。</think><answer>5</answer>", "zh", 1, "Chinese"),
        ("<think>我们把数字相加。</think><answer>5</answer>", "en", 0, "Chinese is not English"),
        ("<think>We add the numbers.</think><answer>5</answer>", "zh", 0, "nor the other way round"),
        ("<think>We think 因为</think>", "en", 1 / 2, "two words of four"),
        ("<think>We think 因为</think>", "zh", 1 / 2, "and the other two"),
        ("<think>So 因 为 此</think>", "zh", 3 / 4, "each Han character is a word"),
        ("<think>我用Python写</think>", "zh", 3 / 4, "no spaces needed"),
        ("<think>We add.</think><answer>五</answer>", "en", 1, "the answer does not count"),
        ("<think>We add.</think> 答案 <answer>5</answer>", "en", 1, "nor what stands between"),
        ("We add the numbers.", "en", 1, "no tags: all counts"),
        ("We add 因 为", "en", 1 / 2, "no tags: all counts"),
        ("<think>We add 因 为", "en", 1 / 2, "cut off: all that was thought"),
        ("因为</think><answer>five of them</answer>", "zh", 1, "opened by nobody"),
        ("<answer>五</answer>", "en", 0, "tags are no words"),
        ("", "en", 0, "nothing"),
        ("<think></think><answer>five</answer>", "en", 0, "no thought, no reward"),
        ("<think>1 + 2 = 3</think>", "en", 0, "numbers are no words"),
        ("<think>x + y = z</think>", "en", 0, "nor are variables"),
        ("<think>设 x = 5</think>", "zh", 1, "nor beside Chinese"),
        ("<think>设 x1 = 2ab, foo_bar</think>", "zh", 1, "names with digits and underscores"),
        (r"<think>\frac{1}{2} 是 \sqrt{x}</think>", "zh", 1, "LaTeX commands"),
        (r"<think>\begin{aligned} 是 \end{aligned}</think>", "zh", 1, "LaTeX environments"),
        (r"<think>\text{for all} 是</think>", "zh", 1 / 3, "words inside LaTeX are words"),
        ("<think>代码 ```for item in items: print(item)``` 是</think>", "zh", 1, "code in ASCII"),
        ("<think>用 `len(items)` 是</think>", "zh", 1, "inline code"),
        ("<think>The code ```因为``` is</think>", "en", 3 / 5, "prose does not hide in a code block"),
        ("<think>It's what we don’t know</think>", "en", 1, "apostrophes"),
        ("<think>OK THE SUM IS FIVE</think>", "en", 1, "upper case"),
        ("<think>The α and β are π</think>", "en", 1, "single Greek letters are variables"),
        ("<think>The ответ is пять</think>", "en", 1 / 2, "Cyrillic"),
        ("<think>Мы складываем числа</think>", "ru", 1, "Russian"),
        ("<think>これは日本語です</think>", "ja", 1, "Japanese, Han and kana"),
        ("<think>这是中文</think>", "ja", 0, "Han alone is Chinese"),
        ("<think>これは日本語です</think>", "zh", 0, "Han among kana is not"),
        ("<think>숫자를 더합니다</think>", "ko", 1, "Korean"),
        ("<think>שלום we</think>", "en", 1 / 2, "a script that is not known is another language"),
        ("<think>Nous avons donc que le total est cinq</think>", "en", 0, "French by its function words"),
        ("<think>Nous avons donc que le total est cinq</think>", "fr", 1, "French"),
        ("<think>Wir haben die Summe und das ist nicht fünf</think>", "de", 1, "German"),
        ("<think>Entonces tenemos que la suma es cinco</think>", "es", 1, "Spanish"),
        ("<think>We add. Donc le total est cinq.</think>", "en", 2 / 7, "sentence by sentence"),
        ("<think>The naïve café is open</think>", "en", 3 / 5, "words with diacritics are not English"),
        ("<think>Hello world</think>", "en", 1, "no function words: English"),
        ("<think>Hello world</think>", "fr", 0, "no function words: English"),
    ],
)
def test_language_consistency(completion, language, expected, why):
    assert language_consistency([completion], language) == pytest.approx([expected]), why
    assert language_consistency([[{"role": "assistant", "content": completion}]], language=[language]) == (
        pytest.approx([expected])
    ), why


def test_the_prefill_opens_the_thinking():
    assert language_consistency(["因 add</think><answer>five of them</answer>"], "zh", ["<think>"]) == [0.5]


def test_english_is_the_default_and_a_column_names_a_language_a_completion():
    assert language_consistency(["We add", "因为"]) == [1.0, 0.0]
    assert language_consistency(["We add", "因为"], language=["en", "zh"], level=[1, 2]) == [1.0, 1.0]


@pytest.mark.parametrize("language", ["English", "", None, ["en", "xx"]])
def test_an_unknown_language_is_named_with_the_known_ones(language):
    with pytest.raises(ValueError, match=r"there is no language .*en, zh, ja"):
        language_consistency(["a", "b"], language=language if isinstance(language, list) else [language] * 2)


@given(st.text(max_size=10_000), st.sampled_from(LANGUAGES))
@example("<think>" * 2000, "en")
@example("`" * 9999, "en")
@example("```a" * 2499, "zh")
@example("\\begin{" * 1400, "en")
@example("a'" * 5000, "en")
@example("a_" * 5000, "en")
@example("e\u0301" * 5000, "fr")
@example("哈" * 10_000, "zh")
@settings(max_examples=50, deadline=None)
def test_no_text_raises_or_leaves_the_range(text, language):
    assert 0.0 <= language_consistency([text], language)[0] <= 1.0


def test_no_word_counts_for_two_languages():
    text = "We add 因为 これは です. Мы 숫자를 και le total est cinq."
    words = 13  # and one of them Greek
    assert sum(language_consistency([text] * 8, list(LANGUAGES))) == pytest.approx((words - 1) / words)
