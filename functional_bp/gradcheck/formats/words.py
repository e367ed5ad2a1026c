"""All formats say this alike: titles, tables, the repair, the failing input as NumPy code."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from functional_bp.errors import describe
from functional_bp.gradcheck.findings import (
    CheckResult,
    Finding,
    Kind,
    Outcome,
    Place,
    Repair,
    Row,
    Verdict,
    WrongEntry,
)
from functional_bp.tables.table import Cell, Column, Line, State, Table

STATES: dict[str, State] = {
    Outcome.RIGHT: "right", Outcome.WRONG: "wrong", Outcome.UNRESOLVED: "open",
    Outcome.NOTE: "note", Outcome.LEFT_OUT: "quiet", Verdict.INCONCLUSIVE: "open",
}  # fmt: skip
SYMBOLS = {Outcome.RIGHT: "✓", Outcome.WRONG: "✗", Outcome.UNRESOLVED: "?", Outcome.NOTE: "·",
           Outcome.LEFT_OUT: "–", Verdict.INCONCLUSIVE: "?"}  # fmt: skip
VERDICTS = {
    Verdict.RIGHT: "the gradient is right",
    Verdict.WRONG: "the gradient is wrong",
    Verdict.INCONCLUSIVE: "not decided",
}
LONGEST_EXAMPLE = 200  # entries of an array that are written out


def title(finding: Finding) -> str:
    """Write ``cotangent of x: the sign is wrong``."""
    return f"{subject(finding)}: {Kind(finding.kind).meaning}"


def subject(finding: Finding) -> str:
    """Write ``cotangent of x``, as the row of the table that it belongs to is called."""
    return f"{finding.stage} of {finding.argument}" if finding.argument else finding.stage


def extent(finding: Finding) -> str:
    """Write ``12 of 12 entries wrong · relative error 0.53 · on the given inputs``, if known."""
    parts = []
    if finding.wrong_entries is not None and finding.size is not None:
        noun = "entry" if finding.size == 1 else "entries"
        parts.append(f"{finding.wrong_entries} of {finding.size} {noun} wrong")
    if finding.relative_error is not None:
        parts.append(f"relative error {finding.relative_error:.2g}")
    given = finding.inputs == "given"
    return " · ".join([*parts, "on the given inputs" if given else f"inputs: {finding.inputs}"])


def settings(report: CheckResult) -> list[str]:
    """Write ``jax 0.10.2``, ``cpu``, ``float64``, ``seed 0`` and the rest, in this order."""
    bare = ("backend", "precision", "dtype")  # say by themselves what they are
    known = [key for key in ("jax", *bare, "seed") if key in report.settings]
    others = [key for key in report.settings if key not in known and key != "rerun"]
    value = report.settings
    return [str(value[k]) if k in bare else f"{k} {value[k]}" for k in (*known, *others)]


def summary(report: CheckResult) -> str:
    """Write ``✗ the gradient is wrong: 5 checked, 1 wrong, 1 left out, in 3.1 s``."""
    count = Counter(row.outcome for row in report.rows)
    named = ((Outcome.WRONG, "wrong"), (Outcome.UNRESOLVED, "not decided"),
             (Outcome.LEFT_OUT, "left out"))  # fmt: skip
    checked = count[Outcome.RIGHT] + count[Outcome.WRONG] + count[Outcome.UNRESOLVED]
    parts = [f"{checked} checked", *(f"{count[o]} {name}" for o, name in named if count[o])]
    verdict = f"{SYMBOLS[report.verdict]} {VERDICTS[report.verdict]}"
    return f"{verdict}: {', '.join(parts)}, in {seconds(report.seconds)}"


def found(report: CheckResult) -> str:
    """Write the first finding, or the reason for no verdict, and how many more there are."""
    texts = [*map(title, report.findings)] or [*report.reasons]
    return "; ".join([*texts[:1], *([f"{len(texts) - 1} more"] if texts[1:] else [])])


def totals(reports: Sequence[CheckResult]) -> str:
    """Write ``12 gradients: 10 right, 1 wrong, 1 not decided``."""
    count = Counter(report.verdict for report in reports)
    named = ((Verdict.RIGHT, "right"), (Verdict.WRONG, "wrong"),
             (Verdict.INCONCLUSIVE, "not decided"))  # fmt: skip
    parts = [f"{count[verdict]} {name}" for verdict, name in named if count[verdict]]
    noun = "gradient" if len(reports) == 1 else "gradients"
    return f"{len(reports)} {noun}: {', '.join(parts) or 'nothing to check'}"


def detail(finding: Finding) -> str:
    """Write a finding in a few lines: message, extent, what it looks like, where, the repair."""
    lines = [finding.message, extent(finding), *finding.explanations]
    if finding.where:
        lines.append(f"at {place(finding.where)}  {finding.where.text}".rstrip())
    if finding.repair:
        before, after = edits(finding.repair)
        lines += [f"repair: {finding.repair.message}"] if finding.repair.message else []
        lines += [f"{sign} {text}" for sign, text in (("−", before), ("+", after)) if text]
    return "\n".join(dict.fromkeys(line for line in lines if line))


def in_short(report: CheckResult) -> str:
    """Write the verdict, and a few lines on every finding or reason: an exception's message."""
    lines = [f"{report.name}: {VERDICTS[report.verdict]}"]
    for finding in report.findings:
        lines += [f"  {title(finding)}", *(f"    {t}" for t in detail(finding).splitlines())]
    return "\n".join([*lines, *(f"  {reason}" for reason in report.reasons)])


def rerun(report: CheckResult) -> str:
    """Return the command or call that repeats the check, "" where none is known."""
    return report.settings.get("rerun", "")


def broken(command: str, width: int) -> str:
    """Break a command into several lines, as a shell takes them, where one is not enough."""
    lines = [""]
    for position, word in enumerate(re.split(r" (?=--)", command)):
        if position and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += " \\"
            lines.append("    " + word)
        else:
            lines[-1] += (" " if position else "") + word
    return "\n".join(lines)


def seconds(value: float) -> str:
    """Write ``0.42 s``, ``3.1 s``, ``84 s``."""
    return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"


def place(where: Place | None) -> str:
    """Write ``ops.py:19``, relative to the working folder if the file is inside it."""
    return f"{short_path(where.file)}:{where.line}" if where else ""


def short_path(file: str) -> str:
    """Write a file's path, relative to the working folder if it is inside it."""
    inside = os.path.isabs(file) and os.path.commonprefix([file, os.getcwd() + os.sep])
    return os.path.relpath(file) if inside == os.getcwd() + os.sep else file


def error(value: float | None) -> str:
    """Write ``0``, ``9.6e-13``, ``1e-6``, ``0.53``; "" for None."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value) or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def edits(repair: Repair) -> tuple[str, str]:
    """Return the line as it is and as it should be; the expressions where no line is known."""
    line = repair.place.text if repair.place else ""
    if repair.before and line.count(repair.before) == 1:
        return line, line.replace(repair.before, repair.after)
    return repair.before, repair.after


def shown_by_repair(finding: Finding) -> bool:
    """Tell whether the repair shows the line of the fault, so that it is not shown twice."""
    where, repair = finding.where, finding.repair
    return bool(where and repair and edits(repair)[0] == where.text)


def repaired_elsewhere(finding: Finding) -> bool:
    """Tell whether the repair has a line of its own, other than that of the fault."""
    place = finding.repair.place if finding.repair else None
    return place is not None and str(place) != str(finding.where)


def rows(rows: Sequence[Row]) -> Table:
    """Make the table of what was checked, and how it came out."""
    heads = (Column("", wraps=False), Column("checked"), Column("error", "right", wraps=False),
             Column("limit", "right", wraps=False), Column("against"))  # fmt: skip
    return Table("", heads, tuple(map(_row, rows)))


def _row(row: Row) -> Line:
    left_out, wrong = row.outcome == Outcome.LEFT_OUT, row.outcome == Outcome.WRONG
    of_text: State = "quiet" if left_out else ""
    return Line("out" if left_out else "", (
        Cell(SYMBOLS[row.outcome], STATES[row.outcome], hint=row.outcome),
        Cell(row.checked, "wrong" if wrong else of_text),
        Cell(error(row.error), "wrong" if wrong else ""),
        Cell(error(row.limit), "quiet"),
        Cell(row.against, of_text),
    ))  # fmt: skip


def entries(worst: Sequence[WrongEntry]) -> Table:
    """Make the table of the entries that are most wrong."""
    names = ("index", "yours", "true", "yours − true")
    lines = [
        Line("", (Cell(index, "quiet"), Cell(claimed), Cell(true), Cell(gap, "off")))
        for index, claimed, true, gap in columns(worst)
    ]
    return Table("", tuple(Column(name, "right", wraps=False) for name in names), tuple(lines))


def overview(reports: Sequence[CheckResult]) -> Table:
    """Make the table of several reports."""
    heads = (Column("", wraps=False), Column("gradient"), Column("found"))
    lines = [
        Line("", (Cell(SYMBOLS[report.verdict], STATES[report.verdict]),
                  Cell(report.name, link=f"#r{position}"),
                  Cell(found(report), STATES[report.verdict])))
        for position, report in enumerate(reports)
    ]  # fmt: skip
    return Table("", heads, tuple(lines))


def columns(entries: Sequence[WrongEntry]) -> list[tuple[str, str, str, str]]:
    """Write index, yours, true and difference of every entry, a column's numbers alike."""
    claimed = [entry.claimed for entry in entries]
    true = [entry.true for entry in entries]
    gaps = [_difference(entry) for entry in entries]
    places = [f"[{', '.join(map(str, entry.index))}]" for entry in entries]
    values = numbers([*claimed, *true, *gaps])
    count = len(entries)
    return list(zip(places, values[:count], values[count : 2 * count], values[2 * count :]))


def numbers(values: Iterable[Any]) -> list[str]:
    """Write numbers to six decimals, or all with an exponent where that would say too little."""
    values = list(values)
    sizes = [abs(part) for value in values for part in _parts(value)]
    sizes = [size for size in sizes if math.isfinite(size) and size > 0]
    fixed = not sizes or (max(sizes) < 1e6 and max(sizes) >= 1e-2)
    return [_number(value, ".6f" if fixed else ".5e") for value in values]


def _difference(entry: WrongEntry) -> Any:
    with np.errstate(all="ignore"):
        return (np.asarray(entry.claimed) - np.asarray(entry.true)).item()


def _parts(value: Any) -> tuple[float, ...]:
    return (value.real, value.imag) if isinstance(value, complex) else (float(value),)


def _number(value: Any, form: str) -> str:
    if isinstance(value, complex):
        sign = "−" if value.imag < 0 else "+"
        return f"{_number(value.real, form)} {sign} {_number(abs(value.imag), form)}i"
    return ("−" if value < 0 else "") + format(abs(float(value)), form)


def numpy_code(example: Mapping[str, np.ndarray], width: int = 96) -> str:
    """Write arrays as NumPy code to be pasted: ``x = np.array([1.0, 2.0], dtype=np.float32)``."""
    lines: list[str] = []
    for name, value in example.items():
        keys = re.findall(r"\['[^']*'\]", name)
        prefix = name.partition("[")[0]
        if prefix + "".join(keys) == name:  # params['W1']: make the dictionary first
            for key in keys:
                lines += [made] if (made := f"{prefix} = {{}}") not in lines else []
                prefix += key
        lines.append(_assignment(name, value, width))
    return "\n".join(lines)


def _assignment(name: str, value: Any, width: int) -> str:
    array = np.asarray(value)
    left, dtype = f"{name} = ", f"dtype={_dtype_code(array.dtype)}"
    if array.ndim == 0:
        return f"{left}np.asarray({_literal(array[()])}, {dtype})"
    if array.size == 0:
        return f"{left}np.zeros({array.shape}, {dtype})"
    first = array.flat[0]
    if array.size > 2 and np.array_equal(array, np.full_like(array, first)):
        return f"{left}np.full({array.shape}, {_literal(first)}, {dtype})"
    if array.size > LONGEST_EXAMPLE:
        where = f"the finding's example[{name!r}] in Python, or the JSON report"
        return f"# {name}: {describe(array)}, too long to print; see {where}"
    opening = left + "np.array("
    text = np.array2string(
        array,
        separator=", ",
        prefix=opening,
        max_line_width=width,
        threshold=array.size + 1,
        formatter={"all": _literal},
    )
    last = (opening + text).rpartition("\n")[2]
    fits = len(last) + len(dtype) + 3 <= width
    return f"{opening}{text},{' ' if fits else chr(10) + ' ' * len(opening)}{dtype})"


def _literal(value: Any) -> str:
    """A Python expression of a NumPy scalar: the shortest that gives the same number again."""
    if value.dtype.kind == "c":
        if np.isfinite(value):
            return str(value)
        return f"complex({_literal(value.real)}, {_literal(value.imag)})"
    if value.dtype.kind in "biu":
        return repr(value.item())
    if np.isfinite(value):
        return str(value)
    return "np.nan" if value != value else ("np.inf" if value > 0 else "-np.inf")


def _dtype_code(dtype: np.dtype) -> str:
    if dtype == np.bool_:
        return "bool"
    return f"np.{dtype.name}" if hasattr(np, dtype.name) else f"jnp.{dtype.name}"
