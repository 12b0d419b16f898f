"""One table, four ways to write it; names are never taken for markup, and nothing is cut."""

import csv
import io

import pytest

from hetconv_cli.render.table import Table, to_csv, to_markdown, to_text

SMALL = Table(
    ["variant", "GMAC", "notes"],
    [["standard", "15.470", "a"], ["P=4", "5.297", "a b"]],
    above=["vgg16  1x3x224x224"],
    below=["  [a] first", "  [b] second"],
    left=frozenset({0, 2}),
)


def test_text_has_words_on_the_left_and_numbers_on_the_right():
    assert to_text(SMALL) == (
        "vgg16  1x3x224x224\n"
        "\n"
        "variant      GMAC   notes\n"
        "─────────────────────────\n"
        "standard   15.470   a\n"
        "P=4         5.297   a b\n"
        "  [a] first\n"
        "  [b] second\n"
    )


def test_markdown_has_its_lines_as_paragraph_and_list():
    assert to_markdown(SMALL) == (
        "vgg16  1x3x224x224\n"
        "\n"
        "| variant | GMAC | notes |\n"
        "| --- | ---: | --- |\n"
        "| standard | 15.470 | a |\n"
        "| P=4 | 5.297 | a b |\n"
        "\n"
        "-   [a] first\n"
        "-   [b] second\n"
    )


def test_markdown_escapes_the_pipes_of_a_name():
    assert "| a\\|b | c\\|\\|d |" in to_markdown(Table(["x", "y"], [["a|b", "c||d"]]))
    assert "| x\\|y |" in to_markdown(Table(["x|y"], [["1"]]))


MARKUP = "[red]x[/red] [/] :smile: [link=https://a.b]c[/link] [bold"


@pytest.mark.parametrize("color", [False, True])
def test_names_are_no_markup(color):
    text = to_text(Table([MARKUP], [[MARKUP]], above=[MARKUP], below=[MARKUP]), width=None, color=color)
    assert text.count(MARKUP) == 4


def test_text_is_never_cut_outside_a_terminal():
    word = "x" * 500
    text = to_text(Table(["a", "b"], [[word, word]], above=[word + " " + word], below=[f"{word} {word} {word}"]))
    assert [line.count(word) for line in text.splitlines() if word in line] == [2, 2, 3]
    assert "…" not in text


def test_on_a_terminal_every_letter_is_still_there():
    word = "".join(chr(ord("a") + i % 26) for i in range(100))
    text = to_text(Table(["name", "macs"], [[word, "123,456"]]), width=40)
    assert max(len(line) for line in text.splitlines()) <= 40
    assert "…" not in text
    assert "".join("".join(line.split()[:1]) for line in text.splitlines()[2:]) == word
    assert "123,456" in text


def test_color_comes_only_where_it_was_asked_for():
    assert "\x1b[" not in to_text(SMALL, width=80)
    assert "\x1b[1m" in to_text(SMALL, width=80, color=True)


def test_a_table_without_rows_is_its_lines_alone():
    empty = Table(["a"], [], above=["above"], below=["below"])
    assert to_text(empty) == "above\n\nbelow\n"
    assert to_markdown(empty) == "above\n\n- below\n"


def test_csv_holds_raw_values():
    text = to_csv(["name", "count", "share"], [['a,"b"', 10**20, None], ["line\nbreak", 0, 1 / 3]])
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [
        ["name", "count", "share"],
        ['a,"b"', "100000000000000000000", ""],
        ["line\nbreak", "0", "0.3333333333333333"],
    ]
    assert "\r" not in text
