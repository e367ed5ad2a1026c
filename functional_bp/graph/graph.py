"""A computational graph is a read-only view of a function's jaxpr, with a person's names.

>>> import jax.numpy as jnp
>>> import functional_bp as bp
>>> def loss(W, x):
...     h = bp.name(jnp.tanh(x @ W), "h")
...     return jnp.sum(h * h)
>>> graph = bp.trace(loss, jnp.ones((3, 4), "float32"), jnp.ones((2, 3), "float32"))
>>> graph
<Graph loss: 2 inputs, 4 equations, 1 output>
>>> graph["h"], graph.defined_by("h").operation, [e.operation for e in graph.uses("h")]
(<h: f32[2,4]>, 'tanh', ['mul'])
>>> graph.flops  # 2·2·4·3 for the product, 8 each for tanh, mul and sum
72
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, JaxprEqn, Var
from jax.interpreters import ad

import functional_bp.vjps  # noqa: F401  (registers the rules that are looked up below)
from functional_bp.engine.rule import Rule, rules
from functional_bp.errors import BackpropError, describe
from functional_bp.graph.flops import flops_of
from functional_bp.tables.table import Cell, Column, Line, Table
from functional_bp.tables.text import plain


@dataclass(frozen=True, eq=False)
class Variable:
    """A variable is one value of a graph; two are equal only if they are the same one.

    Attributes:
        name: unique in its graph: an argument's path, a tag, an output's path, or letters.
        aval: JAX's abstract value: shape, dtype, sharding.
        kind: "input", "constant", "intermediate" or "literal".
        tag: what ``bp.name`` called it, None if it was not tagged.
        value: of a literal or a constant; None otherwise.
    """

    name: str
    aval: Any
    kind: str
    tag: str | None = None
    value: Any = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape; () for what has none, such as a token."""
        return tuple(getattr(self.aval, "shape", ()))

    @property
    def dtype(self) -> Any:
        """Return its dtype; None for what has none."""
        return getattr(self.aval, "dtype", None)

    @property
    def size(self) -> int:
        """Return the number of its elements."""
        return int(getattr(self.aval, "size", 0)) if self.dtype is not None else 0

    @property
    def bytes(self) -> int:
        """Return its size in bytes, on one device."""
        return self.size * self.dtype.itemsize if self.dtype is not None else 0

    @property
    def type(self) -> str:
        """Return dtype and shape, as ``f32[3,5]``."""
        return describe(self.aval)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{self.name}: {self.type}>"


def short_place(source: tuple[str, int] | None) -> str:
    """Write a file and a line as ``model.py:12``, "" where they are not known."""
    return "" if source is None else f"{os.path.basename(source[0])}:{source[1]}"


class RuleOf(NamedTuple):
    """An equation is differentiated by this.

    Attributes:
        kind: the kind of our rule ("pullback", "joint", "structural", "piecewise constant",
            "no tangent space"), "registered with JAX by its author", or "none".
        where: our rule's file and line as ``(file, line)``, None where it is not ours.
        rule: our rule, None where it is not ours.
    """

    kind: str
    where: tuple[str, int] | None = None
    rule: Rule | None = None


@dataclass(frozen=True, eq=False)
class Nested:
    """A graph stands inside an equation.

    Attributes:
        label: "body", "condition", "branch 1", "solve", …
        graph: the graph, with its own variables.
        runs: how often it runs when the equation runs once; None where that is not known before.
            Of the branches of a ``cond`` only one runs.
        operands: for each input of ``graph``, the operand outside that (first) feeds it, or None.
    """

    label: str
    graph: Graph
    runs: int | None
    operands: tuple[Variable | None, ...]

    @property
    def times(self) -> str:
        """Say how often it runs, for a reader: `` × 3``, `` × ?``; "" for once."""
        return " × ?" if self.runs is None else f" × {self.runs}" if self.runs > 1 else ""


@dataclass(frozen=True, eq=False)
class Recomputed:
    """A call of ``jax.checkpoint`` was opened: the reverse sweep runs its equations again."""

    eqn: JaxprEqn


@dataclass(frozen=True, eq=False)
class Equation:
    """An equation is one operation of a graph: ``outputs = operation(inputs, parameters)``.

    Attributes:
        index: its position in its graph.
        operation: the primitive's name.
        label: the name of the function inside, for ``jit``, ``scan`` and their like; else "".
        inputs, outputs: variables; literals stand among the inputs.
        parameters: those that say something, in a short form.
        nested: the graphs inside, in the order in which they run.
        scope: the ``jax.named_scope`` path, "" at the top.
        source: the person's ``(file, line)``, None if unknown.
        eqn: the jaxpr's own equation.
        recomputed: the calls of ``jax.checkpoint`` that it came out of, outermost first.
    """

    index: int
    operation: str
    label: str
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    parameters: Mapping[str, str]
    nested: tuple[Nested, ...]
    scope: str
    source: tuple[str, int] | None
    eqn: JaxprEqn
    recomputed: tuple[Recomputed, ...] = ()

    @property
    def rule(self) -> RuleOf:
        """Look up the rule that differentiates it now."""
        rule = rules.get(self.eqn.primitive)
        if rule is not None:
            return RuleOf(rule.kind, (rule.file, rule.line), rule)
        known = self.eqn.primitive in ad.primitive_jvps
        return RuleOf("registered with JAX by its author" if known else "none")

    @cached_property
    def flops(self) -> int:
        """Estimate its floating-point operations (``graph.flops``), nested graphs × runs.

        A loop without a known trip count counts once, a ``cond`` its dearest branch.
        """
        if self.nested:
            return self._total(lambda graph: graph.flops)
        return flops_of(self.eqn)

    @cached_property
    def bytes_read(self) -> int:
        """Count the bytes of its distinct inputs; of nested graphs, what equations read × runs."""
        if self.nested:
            return self._total(lambda graph: graph.bytes_read)
        return sum(v.bytes for v in dict.fromkeys(self.inputs) if v.kind != "literal")

    @cached_property
    def bytes_written(self) -> int:
        """Count the bytes of its outputs; of nested graphs, what equations write × runs."""
        if self.nested:
            return self._total(lambda graph: graph.bytes_written)
        return sum(v.bytes for v in self.outputs)

    @property
    def bytes(self) -> int:
        """Count the bytes read and written, before any fusion."""
        return self.bytes_read + self.bytes_written

    def _total(self, cost: Callable[[Graph], int]) -> int:
        each = [cost(n.graph) * (1 if n.runs is None else n.runs) for n in self.nested]
        return max(each, default=0) if self.operation == "cond" else sum(each)

    def __repr__(self) -> str:
        outs = ", ".join(f"{v.name}: {v.type}" for v in self.outputs)
        return f"<{outs} = {self.operation}({', '.join(map(str, self.inputs))})>"


class UnknownVariableError(BackpropError, KeyError):
    """A graph has no variable of that name."""


class Visit(NamedTuple):
    """``Graph.walk`` meets one equation.

    Attributes:
        graph: the graph that it stands in.
        equation: the equation.
        depth: 0 in the graph that is walked, 1 in a graph inside one of its equations, …
        runs: how often it runs in one call; loops of unknown length count once.
    """

    graph: Graph
    equation: Equation
    depth: int
    runs: int


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph is a function as equations between variables, at given shapes.

    A ``bp.name`` tag is not an equation here: the value that it names carries the tag. Only where
    that value already has a name (an input, a second tag) an equation ``name`` is left.

    Attributes:
        name: the function's name.
        inputs: one variable per array among the arguments.
        constants: arrays that the function closes over.
        outputs: one variable per array returned; one may stand here twice, or be an input.
        output_paths: the outputs' places in what the function returns: ``result['loss']``.
        equations: in an order in which they can run.
        jaxpr: JAX's own form of the graph.
        consts: the constants' values.
        staged: the function was traced without values; False: it was run, and this is what it did.
    """

    name: str
    inputs: tuple[Variable, ...]
    constants: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    output_paths: tuple[str, ...]
    equations: tuple[Equation, ...]
    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    of_var: Mapping[Var, Variable] = field(repr=False)
    staged: bool = True

    @cached_property
    def variables(self) -> tuple[Variable, ...]:
        """Return inputs, constants and every equation's outputs, in this order; no literals."""
        defined = [v for equation in self.equations for v in equation.outputs]
        return (*self.inputs, *self.constants, *defined)

    def __iter__(self) -> Iterator[Equation]:
        return iter(self.equations)

    def __len__(self) -> int:
        return len(self.equations)

    def __getitem__(self, key: str | Var | Variable) -> Variable:
        """The variable of that name, output path, or jaxpr variable.

        Raises:
            UnknownVariableError: there is none; the message lists near names.
        """
        if isinstance(key, Variable):
            return key
        if isinstance(key, Var):
            return self.of_var[key]
        if key not in self._by_name:
            near = difflib.get_close_matches(key, self._by_name, n=4, cutoff=0.4)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise UnknownVariableError(f"no variable of {self.name} is called {key}{hint}")
        return self._by_name[key]

    def __contains__(self, key: object) -> bool:
        return key in self._by_name or key in self.of_var or key in self._places

    @cached_property
    def _by_name(self) -> dict[str, Variable]:
        paths = dict(zip(self.output_paths, self.outputs))
        return {**paths, **{v.name: v for v in self.variables if v.name != "_"}}

    @cached_property
    def _places(self) -> dict[Variable, tuple[int, tuple[int, ...]]]:
        """For each variable: the equation that defines it (-1: none), and those that use it."""
        defined = {v: e.index for e in self.equations for v in e.outputs}
        uses: dict[Variable, list[int]] = {v: [] for v in self.variables}
        for equation in self.equations:
            for v in dict.fromkeys(equation.inputs):
                if v.kind != "literal":
                    uses[v].append(equation.index)
        return {v: (defined.get(v, -1), tuple(used)) for v, used in uses.items()}

    @cached_property
    def _ends(self) -> frozenset[Variable]:
        return frozenset(self.outputs)

    def uses(self, variable: str | Variable) -> tuple[Equation, ...]:
        """Return the equations that take the variable as an input, in order."""
        return tuple(self.equations[i] for i in self._places[self[variable]][1])

    def defined_by(self, variable: str | Variable) -> Equation | None:
        """Return the equation that computes the variable; None for inputs and constants."""
        index = self._places[self[variable]][0]
        return None if index < 0 else self.equations[index]

    def live_range(self, variable: str | Variable) -> tuple[int, int]:
        """Return the first and last equation at which the value must exist, by index.

        -1 stands for the start (inputs and constants), ``len(graph)`` for the end (outputs). A
        value that nothing uses lives only where it is made.
        """
        variable = self[variable]
        start, used = self._places[variable]
        return start, len(self) if variable in self._ends else max(used, default=start)

    def _span(self, variable: Variable) -> range:
        """The equations while which the value is in memory; the caller holds inputs throughout."""
        if variable.kind != "intermediate":
            return range(len(self))
        start, end = self.live_range(variable)
        return range(start, min(end + 1, len(self)))

    def live_at(self, index: int) -> tuple[Variable, ...]:
        """Return the variables in memory while equation ``index`` runs, its outputs included.

        Inputs and constants are always among them: the caller holds them.
        """
        return tuple(v for v in self.variables if index in self._span(v))

    def live_bytes(self, index: int) -> int:
        """Count the bytes in memory while equation ``index`` runs, nested graphs included."""
        return self._live_bytes[index]

    @cached_property
    def _live_bytes(self) -> tuple[int, ...]:
        return self._sum_live(self.variables)

    def _sum_live(self, variables: Iterable[Variable]) -> tuple[int, ...]:
        """For each equation: bytes of those variables that are live, and of what is inside it."""
        change = [0] * (len(self) + 1)
        for variable in variables:
            span = self._span(variable)
            change[span.start] += variable.bytes
            change[span.stop] -= variable.bytes
        inside = [max((n.graph.temporary_bytes for n in e.nested), default=0) for e in self]
        return tuple(held + extra for held, extra in zip(accumulate(change), inside))

    @cached_property
    def temporary_bytes(self) -> int:
        """Return the most bytes at once that are neither inputs, constants nor outputs."""
        passing = [v for v in self.variables if v.kind == "intermediate" and v not in self._ends]
        return max(self._sum_live(passing), default=0)

    @cached_property
    def peak_bytes(self) -> int:
        """Return the most bytes in memory at once, if equations run in order, without fusion.

        Inputs and constants count throughout; a value is freed after its last use. A compiler
        fuses operations and reuses buffers, and so needs less.
        """
        ends = [sum(v.bytes for v in {*self.inputs, *self.constants, *self.outputs})]
        return max([*ends, *self._live_bytes])

    @cached_property
    def flops(self) -> int:
        """Estimate the floating-point operations of one call (``graph.flops``)."""
        return sum(equation.flops for equation in self.equations)

    @cached_property
    def bytes_read(self) -> int:
        """Count the bytes that the equations read in one call, before any fusion."""
        return sum(equation.bytes_read for equation in self.equations)

    @cached_property
    def bytes_written(self) -> int:
        """Count the bytes that the equations write in one call, before any fusion."""
        return sum(equation.bytes_written for equation in self.equations)

    @property
    def bytes(self) -> int:
        """Count the bytes read and written in one call, before any fusion."""
        return self.bytes_read + self.bytes_written

    @property
    def input_bytes(self) -> int:
        """Count the bytes of all inputs and constants."""
        return sum(v.bytes for v in (*self.inputs, *self.constants))

    def walk(self, depth: int = 0, runs: int = 1) -> Iterator[Visit]:
        """Go through every equation, those of nested graphs after the one that holds them."""
        for equation in self.equations:
            yield Visit(self, equation, depth, runs)
            for nested in equation.nested:
                inner = runs * (1 if nested.runs is None else nested.runs)
                yield from nested.graph.walk(depth + 1, inner)

    @property
    def exact(self) -> bool:
        """Tell whether every loop's trip count is known, so that costs are not lower bounds."""
        return all(n.runs is not None for visit in self.walk() for n in visit.equation.nested)

    def text(self, width: int | None = None, depth: int = 1) -> str:
        """Write the graph as an aligned table.

        Args:
            width: characters per line, by default the terminal's. Narrower tables cut long cells,
                then leave out the name scope, the source and the rule.
            depth: nested graphs are shown to this depth, and as one line each below it.
        """
        return graph_text(self, width, depth)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        count = lambda n, what: f"{n} {what}{'' if n == 1 else 's'}"
        return (
            f"<Graph {self.name}: {count(len(self.inputs), 'input')}, "
            f"{count(len(self), 'equation')}, {count(len(self.outputs), 'output')}>"
        )


# A graph as plain text.

CUT = "…"
MOST_LEFT = 32  # characters of "name: type" before the equals sign that are aligned
LONG_PATH = 20  # characters of an input's path that an equation shows in full
Shown = dict[Variable, str]  # what equations call a variable, where that is not its name
_STEP = re.compile(r"\[[^\]]*\]|\.\w+")


class TextRow(NamedTuple):
    """A row is one line: ``left = right``, or ``left`` alone, and the columns behind."""

    left: str
    right: str = ""
    rule: str = ""
    flops: str = ""
    size: str = ""
    scope: str = ""
    source: str = ""


COLUMNS = (
    Column("inputs"), Column("rule", drop=3), Column("flops", "right", 4),
    Column("bytes", "right", 5), Column("scope", drop=1), Column("source", drop=2),
)  # fmt: skip


def format_bytes(count: int) -> str:
    """Write bytes for a reader: ``512 B``, ``3.5 KiB``, ``1.2 GiB``.

    >>> format_bytes(512), format_bytes(3584), format_bytes(3 * 2**30)
    ('512 B', '3.5 KiB', '3.0 GiB')
    """
    amount, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = next(units)
    while amount >= 1023.95 and unit != "PiB":
        amount, unit = amount / 1024, next(units)
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def format_count(count: int) -> str:
    """Write a number for a reader: ``72``, ``9999``, ``12.3k``, ``4.6M``.

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


def graph_text(graph: Graph, width: int | None, depth: int) -> str:
    """Write the table of a graph; see ``Graph.text``."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    rows: list[TextRow | str] = [_value_row(v) for v in graph.inputs] or [TextRow("  none")]
    if graph.constants:
        rows += ["constants", *map(_value_row, graph.constants)]
    rows += ["equations", *_equation_rows(graph, {}, "  ", depth)]
    rows.append("outputs")
    for path, variable in zip(graph.output_paths, graph.outputs):
        same = variable.name == path
        left = f"  {path}: {variable.type}"
        rows.append(TextRow(left, "" if same else variable.name, size=format_bytes(variable.bytes)))
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


def _value_row(variable: Variable) -> TextRow:
    return TextRow(f"  {variable.name}: {variable.type}", size=format_bytes(variable.bytes))


def _equation_rows(graph: Graph, shown: Shown, indent: str, depth: int) -> list[TextRow | str]:
    shown = {**_short_paths(graph), **shown}
    rows: list[TextRow | str] = []
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
) -> list[TextRow | str]:
    graph, times = nested.graph, nested.times
    if depth <= 0:
        return [TextRow(f"{indent}{CUT} {nested.label}{times}: {_many(len(graph), 'equation')}")]
    if len(graph) == 1 and not several and not times:  # inline: in the names of the caller
        fed = {v: shown.get(o, o.name) for v, o in zip(graph.inputs, nested.operands) if o}
        return _equation_rows(graph, fed, indent, depth - 1)
    called = f" {graph.name}" if graph.name and graph.name != equation.label else ""
    given = ", ".join(
        _binding(v, o, equation.operation, shown) for v, o in zip(graph.inputs, nested.operands)
    )
    return [
        TextRow(f"{indent}{nested.label}{called}{times}" + (f": {given}" if given else "")),
        *_equation_rows(graph, _unchanged(nested, shown), indent + "  ", depth - 1),
        TextRow(f"{indent}→ {', '.join(v.name for v in graph.outputs)}"),
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


def _equation_row(equation: Equation, shown: Shown, indent: str) -> TextRow:
    label = f"[{equation.label}]" if equation.label else ""
    arguments = [shown.get(v, v.name) for v in equation.inputs]
    for key, value in equation.parameters.items():
        arguments.append(value if key == "subscripts" else f"{key}={value}")
    outs = ", ".join(f"{v.name}: {v.type}" for v in equation.outputs) or "()"
    return TextRow(
        indent + outs,
        f"{equation.operation}{label}({', '.join(arguments)})",
        _rule_cell(equation),
        format_count(equation.flops) if equation.flops else "",
        format_bytes(sum(v.bytes for v in equation.outputs)),
        equation.scope,
        short_place(equation.source),
    )


def _rule_cell(equation: Equation) -> str:
    kind, where, _ = equation.rule
    if kind == "none":
        return "none"
    if where is None:
        return "its author's"
    if kind == "no tangent space":
        return "no tangent"
    place = short_place(where)
    return f"zero, {place}" if kind == "piecewise constant" else place


def _layout(rows: Sequence[TextRow | str], width: int) -> list[str]:
    """Align the rows at the equals sign, and set them as a table whose headings come first."""
    lefts = [len(row.left) for row in rows if isinstance(row, TextRow) and row.right]
    left = max((n for n in lefts if n <= MOST_LEFT), default=0)

    def line(row: TextRow | str) -> Line:
        if isinstance(row, str):
            return Line("more", (Cell(row),))
        first = f"{row.left:<{left}} = {row.right}" if row.right else row.left
        return Line("equation", tuple(map(Cell, (first, *row[2:]))))

    return plain(Table("", COLUMNS, tuple(map(line, rows))), width)
