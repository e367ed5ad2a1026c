"""The gallery of rules: what it says of each, and that the page in the repository is fresh."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jax import lax
from jax.extend.core import Primitive

import functional_bp as bp
from functional_bp.cli import gallery, main
from functional_bp.cli.gallery import improvements_of, primitive_of
from functional_bp.engine.improvements import improvements
from functional_bp.engine.rule import Rule

PAGE = Path(gallery.HOME) / "functional_bp" / "vjps" / "README.md"
RULES = sorted(bp.rules.values(), key=lambda rule: rule.primitive.name)
REFRESH = "run: functional-bp rules --markdown > functional_bp/vjps/README.md (newest JAX)"


def parts(text: str) -> dict[str, str]:
    """The page by chapter: heading to what stands below it."""
    _, *found = re.split(r"^## \[(.*?)\]", text, flags=re.M)
    return dict(zip(found[::2], found[1::2]))


def own_page() -> str:
    """The page of the rules of the package; a test may have declared others."""
    return gallery.page(RULES)


def made_with(text: str) -> str:
    found = re.search(r"rules, with JAX ([\d.]+)", text)
    assert found is not None
    return found[1]


def test_the_page_is_fresh() -> None:
    """On the JAX that it was written with, letter by letter; on others, for the rules of both.

    Another JAX has a few other primitives, but the same formulas.
    """
    written, now = PAGE.read_text(encoding="utf-8"), own_page()
    if made_with(written) == gallery.version():
        assert written == now, REFRESH
        return
    theirs, ours = parts(written), parts(now)
    assert theirs.keys() == ours.keys(), REFRESH
    named = lambda text: {n for n in re.findall(r"^\| `(.+?)` \|", text, flags=re.M)}
    for chapter, text in ours.items():
        missing = named(text) - named(theirs[chapter])
        both = named(text) & named(theirs[chapter])
        assert len(missing) <= 3, (REFRESH, missing)
        for name in both:
            row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
            assert row in theirs[chapter], (REFRESH, row)
        for rule in RULES:
            if rule.primitive.name in both and Path(rule.file).name == chapter:
                for derivation in gallery.derivation(rule):
                    assert derivation.strip() in theirs[chapter], (REFRESH, rule.primitive.name)


def test_a_stale_page_is_seen() -> None:
    rule = bp.rules[lax.sin_p]
    (row,) = [line for line in gallery.page([rule]).splitlines() if line.startswith("| `sin`")]
    text = PAGE.read_text(encoding="utf-8")
    assert row in text and row.replace("cos", "sin") not in text


def test_the_page_has_every_rule_and_says_what_is_kept() -> None:
    text = own_page()
    for rule in RULES:
        if gallery.short_path(rule.file).startswith("functional"):
            assert f"`{rule.primitive.name}`" in text
            if rule.kinks:
                assert gallery.escaped(rule.kinks) in text
    assert "| `mul` | x̄ = z̄ · y | y |  |\n|  | ȳ = z̄ · x | x |  |" in text
    assert "| `add` | x̄ = z̄ | nothing |  |" in text
    assert "`floor`" in text.split("Zero wherever there is a derivative: ")[1].splitlines()[0]
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {5}


def test_links_lead_to_headings() -> None:
    text = own_page()
    targets = set(re.findall(r"\]\(#(\w+)\)", text.split("\n## ")[0]))
    headings = {gallery.anchor(name) for name in re.findall(r"^## \[(.*?)\]", text, flags=re.M)}
    assert targets == headings
    for name in re.findall(r"^## \[(.*?)\]\((.*?)\)", text, flags=re.M):
        assert name[0] == name[1] and (PAGE.parent / name[1]).exists()


@pytest.mark.parametrize("entry", improvements, ids=lambda entry: entry.name)
def test_every_improvement_belongs_to_a_rule(entry: object) -> None:
    primitive = primitive_of(entry)  # pyright: ignore[reportArgumentType]
    assert primitive is not None
    assert entry in improvements_of(bp.rules[primitive])


def test_which_rules_improve() -> None:
    improved = lambda p: [entry.name for entry in improvements_of(bp.rules[p])]
    assert improved(lax.sin_p) == [] and improved(lax.mul_p) == []
    assert "division of small numbers in half precision" in improved(lax.div_p)
    assert "sign of a complex x" in improved(lax.sign_p), "and not to the product that follows"


def test_references_are_read_from_the_derivation() -> None:
    made = Rule(lax.sin_p, "pullback", why="sin′ = cos.\n\nReferences:\n    A book,\n    page 3.\n")
    assert gallery.references(made) == "A book, page 3."
    assert gallery.references(bp.rules[lax.sin_p]) == ""


def test_a_rule_of_a_persons_own_is_not_on_the_page(tmp_path: Path) -> None:
    stranger = Rule(Primitive("stranger"), "pullback", why="y = x", file=str(tmp_path / "notes.md"))
    assert gallery.page([*RULES, stranger]) == own_page()


def test_the_command_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["rules", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("# The rules\n")


@pytest.mark.parametrize(("name", "rows"), [("tanh", ["tanh"]), ("sin", ["sin"]),
                                            ("xpm", ["expm1"])])  # fmt: skip
def test_the_command_prints_of_the_page_what_has_the_name(
    capsys: pytest.CaptureFixture[str], name: str, rows: list[str]
) -> None:
    assert main.main(["rules", name, "--markdown"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("## [elementwise.py]")
    assert re.findall(r"^\| `(\w+)` \|", out, flags=re.M) == rows
    assert main.main(["rules", "no-such", "--markdown"]) == 2


def test_the_listing_has_formulas(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "180")
    assert main.main(["rules", "atan"]) == 0
    shown = capsys.readouterr().out
    assert "atan   x -> y" in shown and "x̄ = ȳ / (1 + x²)" in shown
    assert main.main(["rules", "div"]) == 0
    assert "better than JAX\n    division of small numbers" in capsys.readouterr().out
    assert main.main(["rules", "div", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["formulas"] == {"x": "x̄ = z̄ / y", "y": "ȳ = −z̄ · x / y²"}
    assert main.main(["rules", "a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("atan2 ")]
    assert "x̄ = z̄ · y / (x² + y²)" in row and " yes " in row and "arithmetic.py:" in row
    assert any(line.startswith("and ") and "none: no tangent space" in line for line in lines)
