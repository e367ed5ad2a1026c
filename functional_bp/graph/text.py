"""A graph as plain text: one aligned table, nested graphs indented."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from typing import NamedTuple

from functional_bp.graph.parts import Equation, Nested, Variable
from functional_bp.graph.view import Graph

CUT = "…"
MOST_LEFT = 32  # characters of "name: type" before the equals sign that are aligned
LONG_PATH = 20  # characters of an input's path that an equation shows in full
Shown = dict[Variable, str]  # what equations call a variable, where that is not its name
_STEP = re.compile(r"\[[^\]]*\]|\.\w+")


class Row(NamedTuple):
    """One line: ``left = right``, or ``left`` alone, and the columns behind."""

    left: str
    right: str = ""
    rule: str = ""
    flops: str = ""
    size: str = ""
    scope: str = ""
    source: str = ""


HEADINGS = Row("", "", "rule", "flops", "bytes", "scope", "source")


def format_bytes(count: int) -> str:
    """Bytes for a reader: ``512 B``, ``3.5 KiB``, ``1.2 GiB``.

    >>> format_bytes(512), format_bytes(3584), format_bytes(3 * 2**30)
    ('512 B', '3.5 KiB', '3.0 GiB')
    """
    amount, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = next(units)
    while amount >= 1023.95 and unit != "PiB":
        amount, unit = amount / 1024, next(units)
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def format_count(count: int) -> str:
    """A number for a reader: ``72``, ``9999``, ``12.3k``, ``4.6M``.

    >>> format_count(72), format_count(9999), format_count(12345), format_count(4_560_000)
    ('72', '9999', '12.3k', '4.6M')
    """
    if count < 10_000:
        return str(count)
    amount, units = count / 1000, iter("kMGTPE")
    unit = next(units)
    while amount >= 999.95 and unit != "E":
        amount, unit = amount / 1000, next(units)
    return f"{amount:.1f}{unit}"


def graph_text(graph: Graph, width: int | None = None, depth: int = 1) -> str:
    """The table of a graph; see ``Graph.text``."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    rows: list[Row | str] = ["inputs"]
    rows += [_value_row(v) for v in graph.inputs] or [Row("  none")]
    if graph.constants:
        rows += ["constants", *map(_value_row, graph.constants)]
    rows += ["equations", *_equation_rows(graph, {}, "  ", depth)]
    rows.append("outputs")
    for path, variable in zip(graph.output_paths, graph.outputs):
        same = variable.name == path
        left = f"  {path}: {variable.type}"
        rows.append(Row(left, "" if same else variable.name, size=format_bytes(variable.bytes)))
    return "\n".join([_title(graph, width), *_layout(rows, width)])


def _title(graph: Graph, width: int) -> str:
    least = "" if graph.exact else "at least "
    total = sum(1 for _ in graph.walk())
    inner = f" ({total} with nested ones)" if total > len(graph) else ""
    parts = [
        _many(len(graph), "equation") + inner,
        f"{least}{_many(graph.flops, 'flop')}",
        f"{least}{format_bytes(graph.bytes)} moved",
        f"{format_bytes(graph.peak_bytes)} at the peak",
    ]
    return textwrap.fill(f"{graph.name}: {', '.join(parts)}", width, subsequent_indent="  ")


def _many(count: int, what: str) -> str:
    return f"{format_count(count)} {what}{'' if count == 1 else 's'}"


def _value_row(variable: Variable) -> Row:
    return Row(f"  {variable.name}: {variable.type}", size=format_bytes(variable.bytes))


def _equation_rows(graph: Graph, shown: Shown, indent: str, depth: int) -> list[Row | str]:
    shown = {**_short_paths(graph), **shown}
    rows: list[Row | str] = []
    for equation in graph.equations:
        rows.append(_equation_row(equation, shown, indent))
        inside = [n for n in _through_wrappers(equation) if n.runs != 0]
        for nested in inside:
            rows += _nested_rows(equation, nested, shown, indent + "│ ", depth, len(inside) > 1)
    return rows


def _through_wrappers(equation: Equation) -> tuple[Nested, ...]:
    """The nested graphs, past calls whose only content is one more call with the same inputs."""
    nested = equation.nested
    while len(nested) == 1 and nested[0].runs == 1 and len(nested[0].graph) == 1:
        (only,) = nested[0].graph
        if len(only.nested) != 1 or only.nested[0].runs != 1:
            break
        if only.inputs != nested[0].graph.inputs:
            break
        (deeper,) = only.nested
        nested = (Nested(deeper.label, deeper.graph, 1, nested[0].operands),)
    return nested


def _nested_rows(
    equation: Equation, nested: Nested, shown: Shown, indent: str, depth: int, several: bool
) -> list[Row | str]:
    graph, runs = nested.graph, nested.runs
    times = " × ?" if runs is None else f" × {runs}" if runs > 1 else ""
    if depth <= 0:
        return [Row(f"{indent}{CUT} {nested.label}{times}: {_many(len(graph), 'equation')}")]
    if len(graph) == 1 and not several and not times:  # inline: in the names of the caller
        fed = {v: shown.get(o, o.name) for v, o in zip(graph.inputs, nested.operands) if o}
        return _equation_rows(graph, fed, indent, depth - 1)
    called = f" {graph.name}" if graph.name and graph.name != equation.label else ""
    given = ", ".join(
        _binding(v, o, equation.operation, shown) for v, o in zip(graph.inputs, nested.operands)
    )
    return [
        Row(f"{indent}{nested.label}{called}{times}" + (f": {given}" if given else "")),
        *_equation_rows(graph, _unchanged(nested, shown), indent + "  ", depth - 1),
        Row(f"{indent}→ {', '.join(v.name for v in graph.outputs)}"),
    ]


def _unchanged(nested: Nested, shown: Shown) -> Shown:
    """Short paths go on inside where a nested graph's input has its operand's name."""
    return {
        v: shown[o]
        for v, o in zip(nested.graph.inputs, nested.operands)
        if o is not None and o in shown and v.name == o.name
    }


def _binding(variable: Variable, operand: Variable | None, operation: str, shown: Shown) -> str:
    """An input of a nested graph and what feeds it: ``x: f32[4] ← xs[t]``."""
    if operand is None:
        return f"{variable.name}: {variable.type}"
    outer = shown.get(operand, operand.name)
    if operand.name == variable.name and operand.shape == variable.shape:
        return outer
    step = "[t]" if operation == "scan" and operand.shape != variable.shape else ""
    return f"{variable.name}: {variable.type} ← {outer}{step}"


def _short_paths(graph: Graph) -> Shown:
    """For long paths, the shortest end that no other input or constant shares."""
    paths = {v: v.name for v in (*graph.inputs, *graph.constants)}
    short: Shown = {}
    for variable, path in paths.items():
        steps = [m.start() for m in _STEP.finditer(path)]
        if len(path) <= LONG_PATH:
            continue
        for start in reversed(steps[1:]):
            end = path[start:]
            if sum(other.endswith(end) for other in paths.values()) == 1:
                short[variable] = CUT + end
                break
    return short


def _equation_row(equation: Equation, shown: Shown, indent: str) -> Row:
    label = f"[{equation.label}]" if equation.label else ""
    arguments = [shown.get(v, v.name) for v in equation.inputs]
    for key, value in equation.parameters.items():
        arguments.append(value if key == "subscripts" else f"{key}={value}")
    outs = ", ".join(f"{v.name}: {v.type}" for v in equation.outputs) or "()"
    source = equation.source
    return Row(
        indent + outs,
        f"{equation.operation}{label}({', '.join(arguments)})",
        _rule_cell(equation),
        format_count(equation.flops) if equation.flops else "",
        format_bytes(sum(v.bytes for v in equation.outputs)),
        equation.scope,
        f"{os.path.basename(source[0])}:{source[1]}" if source else "",
    )


def _rule_cell(equation: Equation) -> str:
    kind, where, _ = equation.rule
    if kind == "none":
        return "none"
    if where is None:
        return "its author's"
    if kind == "no tangent space":
        return "no tangent"
    place = f"{os.path.basename(where[0])}:{where[1]}"
    return f"zero, {place}" if kind == "piecewise constant" else place


def _layout(rows: list[Row | str], width: int) -> list[str]:
    """Align the rows; cut the equations, then drop columns, until a line fits the width."""
    cells = [row for row in rows if isinstance(row, Row)]
    lefts = [len(r.left) for r in cells if r.right]
    left = max((n for n in lefts if n <= MOST_LEFT), default=0)
    firsts = [f"{row.left:<{left}} = {row.right}" if row.right else row.left for row in cells]
    columns = [n for n in ("rule", "flops", "size", "scope", "source")
               if any(getattr(row, n) for row in cells)]  # fmt: skip
    widths = {n: max(len(getattr(r, n)) for r in (HEADINGS, *cells)) for n in columns}
    longest = max(map(len, firsts), default=0)
    for drop in ("", "scope", "source", "rule", "flops", "size"):
        columns = [n for n in columns if n != drop]
        room = width - sum(widths[n] + 2 for n in columns)
        if room >= min(longest, 44):
            break
    first = max(8, min(longest, room))

    def line(start: str, row: Row) -> str:
        behind = [
            f"{getattr(row, n):>{widths[n]}}" if n in ("flops", "size")
            else f"{getattr(row, n):<{widths[n]}}"
            for n in columns
        ]  # fmt: skip
        return "  ".join([f"{_cut(start, first):<{first}}", *behind]).rstrip()

    lines: list[str] = []
    texts = iter(firsts)
    for row in rows:
        if isinstance(row, str):
            lines.append(line(row, HEADINGS) if not lines else _cut(row, width))
        elif any(getattr(row, n) for n in columns):
            lines.append(line(next(texts), row))
        else:
            lines.append(_cut(next(texts), width))
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + CUT
