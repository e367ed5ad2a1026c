"""A table in each format: what is cut, what is dropped, what is escaped."""

from __future__ import annotations

import pytest

from functional_bp.tables.html import html
from functional_bp.tables.markdown import markdown
from functional_bp.tables.table import Cell, Column, Line, Table, between
from functional_bp.tables.text import plain, text

COLUMNS = (
    Column("equation"), Column("bytes", "right", 2), Column("scope", drop=1), Column("note", drop=3)
)  # fmt: skip
TABLE = Table(
    "loss", COLUMNS,
    (
        Line("equation", tuple(map(Cell, ("h = tanh(a)", "80 B", "cell", "")))),
        Line("more", (Cell("a heading that is longer than the table"),)),
        Line("equation", tuple(map(Cell, ("h", "", "", "")))),
    ),
)  # fmt: skip


def test_text_is_the_same_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rich takes itself for a notebook's display, it leaves the file empty."""
    expected = text((TABLE,), 80)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "tanh" in expected and text((TABLE,), 80) == expected


def test_plain_lines_are_aligned_and_what_nothing_stands_in_is_left_out() -> None:
    assert plain(TABLE, 60) == [
        "equation     bytes  scope",
        "h = tanh(a)   80 B  cell",
        "a heading that is longer than the table",
        "h",
    ]


@pytest.mark.parametrize(
    ("width", "least", "first"),
    [
        (25, 11, "h = tanh(a)   80 B  cell"),
        (24, 11, "h = tanh(a)   80 B"),  # the scope goes before the equation is cut
        (24, 10, "h = tanh(…   80 B  cell"),
        (17, 11, "h = tanh(a)"),
        (8, 11, "h = tan…"),
    ],
)
def test_plain_columns_go_in_their_order(width: int, least: int, first: str) -> None:
    lines = plain(TABLE, width, least)
    assert lines[1] == first and max(map(len, lines)) <= width
    assert lines[2] == "a heading that is longer than the table"[: width - 1] + "…"


def test_a_column_of_a_width_is_cut_in_a_terminal_and_others_are_folded() -> None:
    columns = (Column("name", width=6, wraps=False), Column("formula"))
    table = Table("", columns, (Line("rule", (Cell("cumulative"), Cell("x " * 30))),))
    heading, _, first, second = text((table,), 50).splitlines()
    assert heading.split() == ["name", "formula"] and first.startswith("cumul…  ")
    assert (first + second).count("x") == 30 and max(map(len, (first, second))) <= 50
    assert text((table,), 50, color=True).count("\x1b[1m") and "\x1b" not in text((table,), 50)


def test_markdown_without_a_title_and_with_code() -> None:
    line = Line("rule", (Cell("reduce_max", is_code=True), Cell("a|b_c"), Cell(), Cell()))
    made = markdown((Table("", COLUMNS, (line,)),))
    assert made == (
        "| equation | bytes | scope | note |\n| :-- | --: | :-- | :-- |\n"
        "| `reduce_max` | a\\|b\\_c |  |  |\n"
    )
    assert markdown((TABLE,)).startswith("**loss**\n\n| equation |")


def test_html_is_escaped() -> None:
    made = html((Table("a<b", COLUMNS, (Line("rule", (Cell("x<y"), Cell(), Cell(), Cell())),)),))
    assert "a&lt;b" in made and "x&lt;y" in made and "x<y" not in made


@pytest.mark.parametrize(
    ("scopes", "told"),
    [
        (["net/block0/mlp", "net/block3/mlp"], "net/block0…3/mlp"),
        (["net/block0/norm_0", "net/block2/norm_0", "net/block6/norm_1"], "net/block0…6/norm_0…1"),
        (["net/encoder/mlp", "net/decoder/mlp"], "net/encoder…decoder/mlp"),
        (["net/mlp", "net/attention/query"], "net/…"),
        (["encoder", "head/dense"], "encoder … head/dense"),
    ],
)
def test_scopes_are_written_as_one(scopes: list[str], told: str) -> None:
    assert between(scopes) == told


def test_a_table_as_wide_as_the_terminal_is_whole() -> None:
    cells = Cell("a" * 20), Cell("b" * 20)
    table = Table("", (Column("x"), Column("y", drop=1)), (Line("", cells),))
    assert "b" * 20 in text((table,), 43) and "b" not in text((table,), 42)
