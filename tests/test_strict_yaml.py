"""YAML from anywhere: plain values come back, everything that expands, runs or repeats is refused in one line."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hetconv_cli.errors import ArgumentError
from hetconv_cli.strict_yaml import LARGEST, read_mapping, write

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


def test_plain_values_are_read():
    text = "a: 1\nb: [x, 2.5, true, null]\nc: {d: '1', e: {}}\n"
    assert read_mapping(text, "x") == {"a": 1, "b": ["x", 2.5, True, None], "c": {"d": "1", "e": {}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "net, line 2: .*aliases are not allowed"),
        ("a: &a {b: *a}", "net, line 1: .*aliases are not allowed"),
        ("b: {c: 1}\na: {<<: {d: 2}}", "net, line 2: .*merge keys are not allowed"),
        ("<<: {d: 2}", "net, line 1: .*merge keys are not allowed"),
        ("a: 1\nb: 2\na: 3", "net, line 3: .*key 'a' stands twice"),
        ("a: {b: 1, 'b': 2}", "net, line 1: .*key 'b' stands twice"),
        ("a: [{b: 1, b: 2}]", "key 'b' stands twice"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("!!python/object/new:os.system ['true']", "could not determine a constructor"),
        ("a: !custom 3", "could not determine a constructor for the tag '!custom'"),
        ("a: 1\n---\nb: 2", "net, line 2: .*another document"),
        ("a: [1, 2", "net, line 1: "),
        ("a: 'text", "net, line 1: "),
        ("a: \tb: c", "net, line 1: "),
        ("a:\n\t- b", "net, line 2: "),
        ("\x00\x01\x02", "special characters are not allowed"),
        ("a: \x07", "special characters are not allowed"),
        ("[" * 1000, "recursion"),
        ("a: " + "[" * 1000 + "]" * 1000, "recursion"),
        ("{a: " * 1000, "recursion"),
        ("- " * 1000, "recursion"),
        ("a: 2020-13-45", "month must be in"),
        (f"a: {'9' * 5000}", "4300"),
        ("", "expected a mapping with names as keys, got NoneType"),
        ("[a]", "expected a mapping with names as keys, got list"),
        ("1: a", "expected a mapping with names as keys, got dict"),
        ("null: a", "expected a mapping with names as keys, got dict"),
    ],
)
def test_what_expands_runs_or_repeats_is_refused(text, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        read_mapping(text, "net")
    assert str(caught.value).startswith("net")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{[a]: 1}", "a: {[b]: 1}", "? {a: 1}\n: 2", "? [a, b]\n: c", "a: {!!str {}: 1}"])
def test_a_key_that_is_no_plain_value_is_refused(text):
    with pytest.raises(ArgumentError, match=r"^net.*key"):
        read_mapping(text, "net")


@pytest.mark.parametrize(
    "text", ["!!int ''", "!!int _", "!!float ''", "!!bool 3", "!!timestamp 3", "!!int {}", "!!map 3"]
)
def test_a_value_that_is_not_of_its_tag_is_refused(text):
    with pytest.raises(ArgumentError, match=r"^net.*not readable as plain YAML") as caught:
        read_mapping(f"a: {text}", "net")
    assert "\n" not in str(caught.value)


def test_a_file_beyond_the_limit_is_refused_before_it_is_read():
    start = time.perf_counter()
    with pytest.raises(ArgumentError, match=f"net: expected at most {LARGEST} characters of YAML, got {LARGEST + 1}"):
        read_mapping("a: " + "x" * (LARGEST - 2), "net")
    assert time.perf_counter() - start < 1


def test_a_bomb_would_have_gone_off():
    import yaml  # the same text in an ordinary reader

    def leaves(value) -> int:
        return sum(map(leaves, value)) if isinstance(value, list) else 1

    assert leaves(yaml.safe_load(BOMB)["i"]) == 2**9


@given(st.text(max_size=40))
def test_any_text_is_a_mapping_or_one_line(text):
    try:
        answer = read_mapping(text, "net")
    except ArgumentError as error:
        answer = str(error)
    assert isinstance(answer, dict) or "\n" not in answer


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


@given(st.dictionaries(texts, values, max_size=4))
@example({"a": "next\x85line"})
def test_what_is_written_is_read_back(data):
    assert read_mapping(write(data), "x") == data


def test_it_is_written_in_its_own_order_without_aliases():
    shared = [1, 2]
    assert write({"z": shared, "a": shared}) == "z: [1, 2]\na: [1, 2]\n"
