"""YAML without its traps: what is a number, what stays a text, and what is refused."""

import pytest

from r1lite.strict_yaml import load_yaml, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        ("1E+2", 100.0),
        ("-1e-6", -1e-6),
        ("+2.5e3", 2500.0),
        (".5e1", 5.0),
        ("2.e3", 2000.0),
        ("0.1", 0.1),
        ("6e4ed1a2", "6e4ed1a2"),  # the start of a commit
        ("1e5 tokens", "1e5 tokens"),
        ("3e", "3e"),
        ("e4", "e4"),
        ("1e-", "1e-"),
        ("'3e-4'", "3e-4"),
        ("7", 7),
    ],
)
def test_numbers_with_exponents_are_numbers_and_all_else_that_has_an_e_is_a_text(tmp_path, text, value):
    path = tmp_path / "a.yaml"
    path.write_text(f"key: {text}\nlist: [{text}]\n")
    loaded = load_yaml(path)
    assert loaded == {"key": value, "list": [value]}
    assert type(loaded["key"]) is type(value)
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: malformed YAML: the key 'a' stands twice"),
        ("a: {b: 1, b: 2}\n", "line 1, column 11: malformed YAML: the key 'b' stands twice"),
        ("a: [1\n", "malformed YAML"),
        ("a: !!python/name:os.system\n", "malformed YAML"),
    ],
)
def test_what_is_malformed_is_named_with_its_place(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="a.yaml, line") as error:
        load_yaml(path)
    assert message in str(error.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="a.yaml is not a text file"):
        load_yaml(path)
