"""The report of a check as HTML and Markdown: complete, well-formed, and escaped."""

from __future__ import annotations

import dataclasses
import re

import pytest
from html_document import Document
from sample_reports import (
    ALL,
    MISSING_TERM,
    OPEN,
    REGION,
    WRONG,
    nasty,
)

from functional_bp.gradcheck.findings import Repair
from functional_bp.gradcheck.formats import html as html_format
from functional_bp.gradcheck.formats import markdown, words

# HTML


@pytest.mark.parametrize("page", [html_format.render(ALL), WRONG._repr_html_(), nasty().to_html()])
def test_html_is_well_formed_and_fetches_nothing(page: str) -> None:
    document = Document(page)
    attributes = [pair for _, attrs in document.found for pair in attrs.items()]
    assert not {name for name, _ in attributes} & {"src", "onclick", "onload"}
    assert all((value or "").startswith("#") for name, value in attributes if name == "href")
    assert not re.search(r"https?:|url\(|@import", page)
    assert not {"b", "script"} & document.tags
    assert "prefers-color-scheme: dark" in page


def test_html_says_what_the_text_says() -> None:
    text = Document(WRONG.to_html()).text
    for part in (
        words.summary(WRONG), words.title(MISSING_TERM), MISSING_TERM.message, REGION.message,
        *MISSING_TERM.explanations, words.edits(MISSING_TERM.repair or Repair(""))[1],
        "−3.113791", "took longer than 20 s", words.numpy_code(MISSING_TERM.example),
        "mypackage/ops.py:23", *WRONG.notes, words.rerun(WRONG),
    ):  # fmt: skip
        assert part in text
    assert "<title>mypackage.ops:layer_norm – functional-bp check</title>" in WRONG.to_html()


def test_every_class_of_the_html_is_styled() -> None:
    page = html_format.render(ALL)
    used = {name for names in re.findall(r'class="([^"]*)"', page) for name in names.split()}
    unstyled = {name for name in used if f".{name}" not in html_format.STYLE}
    assert used and not unstyled


# Markdown


def test_markdown_tables_are_tables() -> None:
    for report in (WRONG, nasty()):
        rows = [line for line in report.to_markdown().splitlines() if line.startswith("|")]
        assert len(rows) > 2
        counts = [len(re.findall(r"(?<!\\)\|", row)) - 1 for row in rows]
        assert set(counts) <= {4, 5}


def test_markdown_says_what_the_text_says() -> None:
    shown = WRONG.to_markdown()
    for part in (
        "## mypackage.ops:layer\\_norm\n",
        "### ✗ cotangent of x: a term is missing",
        "| ✗ | cotangent of x | 0.53 | 1e-6 | jax.vjp and finite differences |",
        "| \\[1, 2\\] | −3.113791 | −0.279384 | −2.834407 |",
        "Written at `mypackage/ops.py:19`",
        "```diff\n- x_bar = r * (a - a.mean(-1, keepdims=True))\n+ x_bar",
        "```python\nx = np.array([[1.0, 2.0, 0.1]], dtype=np.float32)\n",
        "**Notes**\n\n- at x = 0",
        "```console\nfunctional-bp check",
    ):
        assert part in shown
    assert "**Not decided**\n\n- no witness settled" in OPEN.to_markdown()
    several = markdown.render(ALL)
    assert several.startswith("## 3 gradients: 1 right, 1 wrong, 1 not decided\n")
    assert "| ✓ | mypackage.ops:softplus |  |" in several


def test_markdown_escapes() -> None:
    assert '\\<b\\>&"\\|\\`\\_\\*\\[x\\](y)%0A ::error::' in nasty().to_markdown()
    code = dataclasses.replace(WRONG, settings={"rerun": "a ``` b"}).to_markdown()
    assert "````console\na ``` b\n````" in code
