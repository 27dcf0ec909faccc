import pytest

from rewards.format import think_answer


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("<think>a</think><answer></answer>", 1.0),
        ("<think>a</think><answer>b</answer>!", 0.0),
        ("<think>a</think> b", 0.0),
        ("", 0.0),
    ],
)
def test_think_answer(completion, expected):
    assert think_answer([completion]) == [expected]
    assert think_answer([[{"role": "assistant", "content": completion}]]) == [expected]
