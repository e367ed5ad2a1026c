"""The report of a check in text, and the words of all forms: complete, readable, and not cut."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from sample_reports import (
    ALL,
    ARRAYS,
    LINE_TEXT,
    MISSING_TERM,
    OPEN,
    RIGHT,
    WRONG,
    with_example,
)

from functional_bp import errors
from functional_bp.gradcheck import formats
from functional_bp.gradcheck.findings import Finding, Kind, Place, Repair, Row, WrongEntry
from functional_bp.gradcheck.formats import text, words
from functional_bp.gradcheck.report import Report

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
        for said in (words.title(finding), finding.message, *finding.explanations):
            assert said in shown
    for row in WRONG.rows:
        assert all(word in shown for word in (*row.checked.split(), *row.against.split()))
    assert "…" not in shown and words.rerun(WRONG) in shown


def test_text_breaks_a_heading_for_which_there_is_no_room() -> None:
    shown = " ".join(WRONG.to_text(48).split())
    assert all(f"✗ {words.title(finding)}" in shown for finding in WRONG.findings)


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("100", 100), ("140", 100)])
def test_print_takes_the_width_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert max(map(cell_len, str(WRONG).splitlines())) == width
    assert f"{WRONG}\n" == WRONG.to_text(width)


def test_text_has_its_parts_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
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
    for kind in Kind:
        finding = Finding(kind, "", "x")
        assert words.title(finding) == f"cotangent of x: {kind.meaning}"
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
    assert words.columns([WrongEntry((0, 1), claimed, true)]) == [("[0, 1]", *expected)]


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
    assert names == {"html", "json", "markdown", "text", "words"}
