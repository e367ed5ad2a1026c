"""The report of a check in every form: complete, readable, escaped, and not cut."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json
import re
from typing import Any
from xml.etree import ElementTree

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from sample_reports import ALL, MISSING_TERM, OPEN, REGION, RIGHT, WRONG, with_example

from functional_bp import errors
from functional_bp.check import formats
from functional_bp.check.findings import KINDS, Entry, Finding, Place, Repair, Row
from functional_bp.check.formats import github, junit, markdown, text, words
from functional_bp.check.formats import html as html_format
from functional_bp.check.formats import json as json_format
from functional_bp.check.report import Report

NASTY = '<b>&"|`_*[x](y)%0A\n::error::, \x07'  # what each format has to escape


def nasty() -> Report:
    place = Place(f"{NASTY}.py", 1, NASTY)
    finding = Finding("sign", NASTY, NASTY, NASTY, NASTY, place, Repair(NASTY, place, "a", NASTY))
    row = Row(NASTY, "wrong", 1.0, 0.1, NASTY)
    return Report(NASTY, "wrong", (finding,), (row,), (NASTY,), (NASTY,), 1.0, {"jax": NASTY})


# Text


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("report", ALL, ids=lambda report: report.verdict)
def test_text_fits_its_width(report: Report, width: int) -> None:
    lines = report.to_text(width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert not [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_text_cuts_nothing(width: int) -> None:
    shown = re.sub(r"\s+", " ", WRONG.to_text(width).replace("\\\n", " "))
    for finding in WRONG.findings:
        for said in (finding.message, *finding.explanations):
            assert said in shown
    for row in WRONG.rows:
        assert all(word in shown for word in (*row.checked.split(), *row.against.split()))
    assert "…" not in shown and words.rerun(WRONG) in shown


def test_text_has_its_parts_in_order() -> None:
    shown = str(WRONG)
    parts = [
        "mypackage.ops:layer_norm\njax 0.10.2 · cpu · float64 · seed 0 · reference its own primal",
        "   checked                                    error  limit  against",
        "✓  value                                          0  1e-12  the reference",
        "✗  cotangent of x                              0.53   1e-6  jax.vjp and finite",
        "✓  number, shapes and dtypes of cotangents                  the arguments",
        "?  vmap                                                     took longer than 20 s",
        "–  sharding                                                 one device only",
        "·  kink at 0                                                a valid subgradient",
        "✗ cotangent of x: a term is missing: a path of the gradient was dropped ─",
        "12 of 12 entries wrong · relative error 0.53 · on the given inputs",
        " index       yours        true   yours − true",
        "[1, 2]   −3.113791   −0.279384      −2.834407",
        "looks like   missing: − r · x̂ · mean(x̂ · ȳ · γ)",
        "             the true backward without rsqrt is yours",
        "written at   mypackage/ops.py:19",
        "repair       subtract x̂ times the mean of x̂ · a",
        "             − x_bar = r * (a - a.mean(-1, keepdims=True))",
        "             + x_bar = r * (a - a.mean(-1, keepdims=True) - x_hat *",
        "the smallest input that fails\nx = np.array([[1.0, 2.0, 0.1]], dtype=np.float32)\n",
        "✗ second order of params['bias']: wrong only in a part of the input space ─",
        "1 of 1 entry wrong · relative error inf · inputs: large",
        "nan + 2.000000i",
        "return jnp.where(x < -3, 0, bias_bar)",
        "note         at x = 0 the claim is 1",
        "✗ the gradient is wrong: 6 checked, 1 wrong, 1 not decided, 1 left out, in 3.1 s",
        "again: functional-bp check mypackage.ops:layer_norm --shape x=f32[3,4] --seed 0",
    ]
    places = [shown.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)


def test_text_of_the_other_verdicts() -> None:
    assert str(RIGHT).splitlines()[-1] == "✓ the gradient is right: 1 checked, in 0.42 s"
    assert "not decided  no witness settled: finite differences of x differ by 3e-2" in str(OPEN)
    assert str(OPEN).splitlines()[-1] == "? not decided: 1 checked, 1 not decided, in 21 s"


def test_text_of_several() -> None:
    shown = text.plain(ALL)
    assert shown.count("mypackage.ops:layer_norm\njax") == 1 and "softplus\njax" not in shown
    assert shown.splitlines()[-1] == "3 gradients: 1 right, 1 wrong, 1 not decided"
    assert "was dropped;\n                             1 more\n" in shown
    assert "✓  mypackage.ops:softplus\n" in shown


def test_rich_output_is_coloured_and_the_same() -> None:
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(WRONG)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[1;31m✗" in shown
    bare = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert [line.rstrip() for line in bare.splitlines()] == str(WRONG).splitlines()


def test_square_brackets_are_no_markup() -> None:
    row = Row("cotangent of params[bold]", "right", 0.0, 1.0, "[red]")
    shown = str(dataclasses.replace(RIGHT, rows=(row,)))
    assert "params[bold]" in shown and "[red]" in shown


# The words that all have in common


def test_every_kind_has_a_headline() -> None:
    for kind, meaning in KINDS.items():
        finding = Finding(kind, "", "x")
        assert words.title(finding) == f"cotangent of x: {meaning}"
    assert words.title(Finding("vmap", "", stage="vmap")) == "vmap: vmap changes the result"


@pytest.mark.parametrize(
    ("claimed", "true", "expected"),
    [
        (1.5, -0.25, ("1.500000", "−0.250000", "1.750000")),
        (2e-9, 1e-9, ("2.00000e-09", "1.00000e-09", "1.00000e-09")),
        (1e9, 0.0, ("1.00000e+09", "0.00000e+00", "1.00000e+09")),
        (float("inf"), 1.0, ("inf", "1.000000", "inf")),
        (0.0, 0.0, ("0.000000", "0.000000", "0.000000")),
        (1 - 2j, 3j, ("1.000000 − 2.000000i", "0.000000 + 3.000000i", "1.000000 − 5.000000i")),
    ],
)
def test_numbers(claimed: Any, true: Any, expected: tuple[str, ...]) -> None:
    assert words.columns([Entry((0, 1), claimed, true)]) == [("[0, 1]", *expected)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, ""), (0.0, "0"), (1.9, "1.9"), (0.53, "0.53"), (0.0123, "0.012"), (123.4, "123"),
     (1e-6, "1e-6"), (9.57e-13, "9.6e-13"), (1e5, "1e5"), (float("inf"), "inf")],
)  # fmt: skip
def test_errors_are_short(value: float | None, expected: str) -> None:
    assert words.error(value) == expected


def test_edits_are_shown_in_their_line_where_that_is_clear() -> None:
    once, twice = Place("a.py", 1, "y = a + b"), Place("a.py", 1, "y = a + a")
    assert words.edits(Repair("", once, "a", "c")) == ("y = a + b", "y = c + b")
    assert words.edits(Repair("", twice, "a", "c")) == ("a", "c")
    assert words.edits(Repair("", None, "a", "c")) == ("a", "c")


def test_paths_are_short_inside_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words.place(Place(f"{tmp_path}/a/b.py", 3)) == "a/b.py:3"
    assert words.place(Place(f"{tmp_path}-other/b.py", 3)) == f"{tmp_path}-other/b.py:3"
    assert words.place(Place("b.py", 3)) == "b.py:3"


def test_a_repair_elsewhere_names_its_own_line() -> None:
    repair = Repair("keep r, not r²", Place("mypackage/ops.py", 7, "return y, r**2"), "r**2", "r")
    report = dataclasses.replace(
        WRONG, findings=(dataclasses.replace(MISSING_TERM, repair=repair),)
    )
    for shown in (report.to_text(), report.to_markdown(), report.to_html()):
        assert "mypackage/ops.py:19" in shown and "mypackage/ops.py:7" in shown
        assert "return y, r**2" in shown and shown.count(LINE_TEXT) == 1


LINE_TEXT = "x_bar = r * (a - a.mean(-1, keepdims=True))"

ARRAYS = {
    "scalar": np.float32(0.1),
    "f64": np.linspace(-1, 1, 7).reshape(7, 1) / 3,
    "f32": np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32),
    "f16": np.array([0.1, 65504], np.float16),
    "bf16": np.array([[0.1, 1e30]], ml_dtypes.bfloat16),
    "special": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40], np.float32),
    "all_nan": np.full(4, np.nan),
    "complex": np.array([1 + 2j, complex(np.nan, -np.inf), 0.1j], np.complex64),
    "integers": np.array([[1, -2], [3, 2**31 - 1]], np.int32),
    "unsigned": np.array(7, np.uint8),
    "booleans": np.array([True, False, True]),
    "constant": np.full((64, 64), -2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("name", ARRAYS)
def test_the_failing_input_can_be_pasted(name: str, width: int) -> None:
    array = np.asarray(ARRAYS[name])
    code = words.numpy_code({"x": array, "params['a']['b']": array}, width)
    namespace: dict[str, Any] = {"np": np, "jnp": jnp}
    exec(code, namespace)
    for read in (namespace["x"], namespace["params"]["a"]["b"]):
        assert read.dtype == array.dtype and read.shape == array.shape
        assert read.tobytes() == array.tobytes() or np.array_equal(read, array, equal_nan=True)
    assert code in with_example(**{"x": array, "params['a']['b']": array}).to_text(width) + code
    assert max(map(len, code.splitlines())) <= max(width, 80)


def test_a_long_failing_input_says_where_it_is() -> None:
    array = np.arange(1000.0)
    assert words.numpy_code({"x": array}).startswith("# x: f64[1000], too long to print; see")
    report = Report.from_json(with_example(x=array).to_json())
    assert np.array_equal(report.findings[0].example["x"], array)


def test_a_command_is_broken_as_a_shell_reads_it() -> None:
    command = "functional-bp check m:f --shape x=f32[3,4] --shape y=f32[4] --seed 0"
    for width in (20, 40, 60, 100):
        broken = words.broken(command, width)
        assert broken.replace("\\\n", "").split() == command.split()
    assert words.broken(command, 100) == command
    assert words.broken(command, 45).count(" \\\n    --") == 1


# JSON


@pytest.mark.parametrize("report", [*ALL, nasty()], ids=lambda report: report.verdict)
def test_json_holds_everything(report: Report) -> None:
    written = report.to_json()
    read = Report.from_json(written)
    assert read.to_json() == written
    bare = lambda r: dataclasses.replace(r, findings=())  # noqa: E731
    assert bare(read) == bare(report)
    assert [f.where for f in read.findings] == [f.where for f in report.findings]
    assert [f.repair for f in read.findings] == [f.repair for f in report.findings]
    json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_json_arrays_come_back_as_they_were() -> None:
    read = Report.from_json(with_example(**{k: np.asarray(v) for k, v in ARRAYS.items()}).to_json())
    for name, array in ARRAYS.items():
        got = read.findings[0].example[name]
        assert got.dtype == np.asarray(array).dtype
        assert np.array_equal(got, np.asarray(array), equal_nan=got.dtype.kind in "fc")


def test_json_entries_keep_what_is_not_finite() -> None:
    entry = Report.from_json(WRONG.to_json()).findings[1].entries[0]
    assert entry.claimed != entry.claimed and entry.claimed.imag == 2.0 and entry.true == 1 - 3j


@pytest.mark.parametrize(
    ("written", "got"),
    [
        ("[]", "list"),
        ("{}", "no version"),
        (json_format.render(ALL), "version 1"),
        ('{"version": 99, "verdict": "right"}', "version 99"),
    ],
)
def test_json_that_is_no_report_is_refused(written: str, got: str) -> None:
    with pytest.raises(ValueError, match="this is not the JSON of one report") as refused:
        Report.from_json(written)
    assert f"got:      {got}" in str(refused.value) and "report.to_json()" in str(refused.value)


def test_json_of_several() -> None:
    every = json.loads(json_format.render(ALL))["reports"]
    assert [r["verdict"] for r in every] == ["wrong", "right", "inconclusive"]


# HTML


class Balance(html.parser.HTMLParser):
    """Fails where a tag is closed that is not the one last opened; collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not [name for name, value in attrs if name in ("src", "onclick", "onload")]
        links = [value or "" for name, value in attrs if name == "href"]
        assert all(link.startswith("#") for link in links)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


@pytest.mark.parametrize("page", [html_format.render(ALL), WRONG._repr_html_(), nasty().to_html()])
def test_html_is_well_formed_and_fetches_nothing(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"https?:|url\(|@import", page)
    assert "b" not in parser.tags and "script" not in parser.tags
    assert "prefers-color-scheme: dark" in page


def test_html_says_what_the_text_says() -> None:
    parser = Balance()
    parser.feed(WRONG.to_html())
    for part in (
        words.summary(WRONG), words.title(MISSING_TERM), MISSING_TERM.message, REGION.message,
        *MISSING_TERM.explanations, words.edits(MISSING_TERM.repair or Repair(""))[1],
        "−3.113791", "took longer than 20 s", words.numpy_code(MISSING_TERM.example),
        "mypackage/ops.py:23", *WRONG.notes, words.rerun(WRONG),
    ):  # fmt: skip
        assert part in parser.text
    assert "<title>mypackage.ops:layer_norm – functional-bp check</title>" in WRONG.to_html()


def test_every_class_of_the_html_is_styled() -> None:
    page = html_format.render(ALL)
    used = {name for names in re.findall(r'class="([^"]*)"', page) for name in names.split()}
    unstyled = {name for name in used if f".{name}" not in html_format.STYLE}
    assert unstyled <= {"entries"}, unstyled


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


# JUnit


def test_junit_has_a_case_for_every_row_and_finding() -> None:
    root = ElementTree.fromstring(junit.render(ALL))
    assert [suite.get("name") for suite in root] == [report.name for report in ALL]
    layer_norm = root[0]
    cases = {case.get("name"): case for case in layer_norm.iter("testcase")}
    assert list(cases) == [*(row.checked for row in WRONG.rows), words.title(REGION)]
    failure = cases["cotangent of x"].find("failure")
    assert failure is not None and failure.get("type") == "missing term"
    assert "+ x_bar = r * (a" in (failure.text or "")
    assert (cases["cotangent of x"].get("file"), cases["cotangent of x"].get("line")) == (
        "mypackage/ops.py", "19")  # fmt: skip
    assert cases["value"].find("failure") is None
    skipped = [cases[name].find("skipped") for name in ("vmap", "sharding")]
    assert [s.get("message") for s in skipped if s is not None] == [
        "not decided: took longer than 20 s", "left out: one device only"]  # fmt: skip
    counts = {name: layer_norm.get(name) for name in ("tests", "failures", "skipped")}
    assert counts == {"tests": "9", "failures": "2", "skipped": "2"}
    assert {name: root.get(name) for name in counts} == {
        "tests": "12", "failures": "2", "skipped": "4"}  # fmt: skip
    verdict = root[2].findall("testcase")[-1].find("skipped")
    assert verdict is not None and verdict.get("message", "").startswith("no witness settled")


def test_junit_of_a_wrong_row_without_finding() -> None:
    report = dataclasses.replace(WRONG, findings=())
    failure = ElementTree.fromstring(report.to_junit()).find(".//failure")
    assert failure is not None and failure.get("message") == (
        "cotangent of x is wrong: error 0.53, limit 1e-6, against jax.vjp and finite differences"
    )


def test_junit_escapes() -> None:
    root = ElementTree.fromstring(nasty().to_junit())  # raises for a character XML has not
    assert root[0].get("name") == NASTY.replace("\x07", "�")


# Annotations


def test_github_lines() -> None:
    finding = Finding("sign", "50 % wrong\nnamely half", "x", where=Place("a,b:c.py", 7, "x = 1"))
    report = Report("m:f", "wrong", (finding,))
    first, *rest = github.render([report, OPEN, RIGHT]).splitlines()
    assert first == (
        "::error file=a%2Cb%3Ac.py,line=7,title=m%3Af%3A cotangent of x%3A the sign is wrong::"
        "50 %25 wrong%0Anamely half%0Aon the given inputs%0Aat a,b:c.py:7  x = 1"
    )
    assert rest == [
        "::warning title=mypackage.ops%3Aslow%3A not decided::"
        "no witness settled: finite differences of x differ by 3e-2",
        "3 gradients: 1 right, 1 wrong, 1 not decided",
    ]
    assert WRONG.to_github().splitlines()[2].startswith("::notice title=mypackage.ops%3Alayer_norm")


def test_github_escapes() -> None:
    lines = nasty().to_github().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::warning", "::notice", "1"]


# Raising


def test_raise_if_wrong() -> None:
    with pytest.raises(errors.WrongGradientError) as raised:
        WRONG.raise_if_wrong()
    assert raised.value.report is WRONG and isinstance(raised.value, AssertionError)
    assert str(raised.value).startswith(
        "mypackage.ops:layer_norm: the gradient is wrong\n"
        "  cotangent of x: a term is missing: a path of the gradient was dropped\n"
        "    the path through the variance was dropped\n"
        "    12 of 12 entries wrong · relative error 0.53 · on the given inputs\n"
        "    missing: − r · x̂ · mean(x̂ · ȳ · γ)\n"
    )
    assert "    at mypackage/ops.py:19  x_bar" in str(raised.value)
    assert "    repair: subtract x̂ times the mean of x̂ · a\n    − x_bar" in str(raised.value)


def test_raise_if_wrong_where_nothing_is_decided() -> None:
    RIGHT.raise_if_wrong(inconclusive=True)
    OPEN.raise_if_wrong()
    with pytest.raises(errors.WrongGradientError, match="slow: not decided\n  no witness settled"):
        OPEN.raise_if_wrong(inconclusive=True)


def test_each_format_is_a_file() -> None:
    import pkgutil

    names = {module.name for module in pkgutil.iter_modules(formats.__path__)}
    assert names == {"github", "html", "json", "junit", "markdown", "text", "words"}
