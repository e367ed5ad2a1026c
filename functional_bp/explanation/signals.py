"""What is notable about gradients is searched for, with the thresholds that decide.

All comparisons are of norms within one sweep, so that the size of the loss does not matter.

A unit is one index along an axis: a column of a weight, an entry of a bias. It is dead where its
gradient is zero for all examples. The way from a parameter towards the output is followed as
long as the same units are dead; where they are no longer, an operation stands that made them so.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np

from functional_bp.engine.higher_order import has_tangent
from functional_bp.explanation.full_sweeps import sweep
from functional_bp.explanation.nonfinite import first_nonfinite
from functional_bp.explanation.nonfinite.causes import FirstNonfinite, host
from functional_bp.explanation.numbers import format_number, summarize
from functional_bp.explanation.record import EvaluatedGraph
from functional_bp.graph.graph import Equation, Variable, short_place
from functional_bp.graph.nested import opened_scan


class Gate(NamedTuple):
    """A gate is an operation that lets no gradient through to some units.

    Attributes:
        equation: the operation.
        operand: its operand whose gradient is zero there.
        units: the dead ones.
        width: how many units there are.
        examples: how many entries each unit has at the operation.
    """

    equation: Equation
    operand: Variable
    units: tuple[int, ...]
    width: int
    examples: int


def _path_ends(
    explanation: EvaluatedGraph, start: Variable, is_dead: Callable[[Any], bool]
) -> Iterator[tuple[Equation, Variable]]:
    """Where the paths from a variable leave what is dead: the equation, and its dead operand."""
    seen, ahead = {start}, [start]
    while ahead:
        here = ahead.pop()
        for equation in explanation.graph.uses(here):
            for out in equation.outputs:
                if out in explanation.bars and out not in seen:
                    seen.add(out)
                    if is_dead(explanation.bars[out]):
                        ahead.append(out)
                    else:
                        yield equation, here


def unit_gate(explanation: EvaluatedGraph, variable: Variable) -> Gate | None:
    """Find the operation at which units of a variable lose their gradient, by their own values."""
    for axis in reversed(range(len(variable.shape))):
        units = _dead_units(explanation.bars[variable], axis)
        if 0 < units.sum() < units.size:
            gate = _follow(explanation, variable, units)
            if gate is not None:
                return gate
    return None


def _follow(explanation: EvaluatedGraph, start: Variable, units: np.ndarray) -> Gate | None:
    is_dead = lambda bar: _axis_of(bar, units) is not None
    for equation, here in _path_ends(explanation, start, is_dead):
        if _is_gate(explanation, equation, here, units):
            shut = units & _far_from_zero(explanation.values[here])
            dead = tuple(int(i) for i in np.flatnonzero(shut))
            return Gate(equation, here, dead, units.size, here.size // units.size)
    return None


def _is_gate(explanation: EvaluatedGraph, equation: Equation, here: Variable, units: Any) -> bool:
    """Whether an operation closes by its operand's own value, unit by unit, and not by a mask."""
    if equation.outputs[0].shape != here.shape or not here.shape:
        return False
    if _axis_of(explanation.bars[here], units) != len(here.shape) - 1:
        return False
    others = [v for v in equation.inputs if v is not here and v.kind != "literal" and v.size > 1]
    if not others:
        return True
    return all(
        v in _reached_from(explanation, here) or not np.any(host(explanation.values[v]))
        for v in others
    )


def _far_from_zero(z: Any) -> np.ndarray:
    """For each unit whether all examples lie further from 0 than they lie from each other.

    Else more examples would open it: those seen are on one side by chance.
    """
    held = np.asarray(host(z))
    rows = held.reshape(-1, held.shape[-1])
    return np.abs(rows).min(axis=0) > rows.std(axis=0)


def _reached_from(explanation: EvaluatedGraph, variable: Variable) -> set[Variable]:
    """What is computed from a variable."""
    found = {variable}
    maker = explanation.graph.defined_by(variable)
    start = 0 if maker is None else maker.index
    for equation in explanation.graph.equations[start:]:
        if found.intersection(equation.inputs):
            found.update(equation.outputs)
    return found


def _dead_units(x_bar: Any, axis: int) -> np.ndarray:
    """For each index along an axis, whether all entries are zero."""
    held = np.asarray(host(x_bar))
    return ~np.any(held, axis=tuple(i for i in range(held.ndim) if i != axis))


def _axis_of(x_bar: Any, units: np.ndarray) -> int | None:
    """The axis along which these units, among others, are dead, and not all; None for none."""
    for axis in reversed(range(np.ndim(x_bar))):
        if np.shape(x_bar)[axis] == units.size:
            dead = _dead_units(x_bar, axis)
            if dead[units].all() and not dead.all():
                return axis
    return None


# What ``explanation.signals()`` returns, and how it reads.

WIDTH = 100  # characters of a line

Kind = Literal[
    "nan", "infinite", "dead", "underflow", "exploding", "vanishing", "partly dead"
]  # in the order in which they are told
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Signal:
    """A signal is one thing that is notable about a variable's gradient.

    Attributes:
        kind: "nan", "infinite", "dead", "underflow", "exploding", "vanishing" or "partly dead".
        variable: whose gradient, or value.
        message: what is notable, with the numbers, and what to look at.
        source: the person's ``(file, line)`` where it arises; None if unknown.
        numbers: the numbers that the message is made of, by name.
    """

    kind: Kind
    variable: Variable
    message: str
    source: tuple[str, int] | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the variable's name."""
        return self.variable.name

    @property
    def line(self) -> str:
        """Return the source as ``model.py:12``, "" if unknown."""
        return short_place(self.source)

    def __str__(self) -> str:
        at = f"  ({self.line})" if self.line else ""
        return f"{self.kind}: {self.name}: {self.message}{at}"

    def as_data(self) -> dict[str, Any]:
        """Return all of it as strings, numbers, lists and dicts."""
        return {
            "kind": self.kind,
            "variable": self.name,
            "message": self.message,
            "source": None if self.source is None else list(self.source),
            "numbers": dict(self.numbers),
        }


class Signals(Sequence[Signal]):
    """The findings stand in order: what is not finite, dead, exploding, vanishing, partly dead.

    A sequence of ``Signal``; empty, and false, where nothing is notable. ``print`` shows them.
    """

    def __init__(self, function: str, signals: Sequence[Signal], examined: int) -> None:
        self.function, self.examined = function, examined
        self._signals = tuple(sorted(signals, key=lambda s: KINDS.index(s.kind)))

    def __getitem__(self, index: Any) -> Any:
        return self._signals[index]

    def __len__(self) -> int:
        return len(self._signals)

    def of(self, name: str) -> tuple[Signal, ...]:
        """Return the findings about the variable of that name."""
        return tuple(s for s in self if s.name == name)

    def as_data(self) -> list[dict[str, Any]]:
        """Return all of them as plain data."""
        return [signal.as_data() for signal in self]

    def __str__(self) -> str:
        looked = f"{self.function}: gradients of {self.examined} variables"
        if not self:
            return f"{looked}, nothing notable"
        kinds = max(len(s.kind) for s in self)
        names = min(max(len(s.name) for s in self), 24)
        lines = [f"{looked}, {len(self)} finding{'' if len(self) == 1 else 's'}"]
        for signal in self:
            head = f"  {signal.kind:<{kinds}}  {signal.name:<{names}}  "
            text = f"{signal.message}  ({signal.line})" if signal.line else signal.message
            indent = " " * (kinds + names + 6)
            lines += textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=indent)
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Signals of {self.function}: {len(self)} findings>"


# A gradient this much smaller than others of its graph cannot train beside them: float32 has seven
# digits.
VANISHING = 1e-6
# What falls by this much in one sum over copies, as a key's bias in attention does, has cancelled.
CANCELS = 1e-4
# A gradient this much larger than the usual one, and than the value that it is the gradient of.
EXPLODING, EXPLODING_OF_VALUE = 1e3, 1e4
# Of n examples all are zero by chance in one unit of n + 1, if nothing is known of its gate.
BY_CHANCE = 2.0
# The share of a dtype's exponents by which a loss is scaled to see what underflows: float16 by 2¹².
SCALE = 0.75
MOST_LISTED = 6  # units that a message names


def signals(explanation: EvaluatedGraph) -> Signals:
    """Say what is notable about the gradients of inputs, parameters and named values.

    The kinds of it are those that ``Explanation.signals`` lists.
    """
    graph = explanation.graph
    named = [*graph.inputs, *graph.constants]
    named += [v for e in graph for v in e.outputs if v.tag is not None]
    named = [v for v in named if has_tangent(v.aval) and v.size]
    found = filter(None, map(_Search(explanation, named).gravest, named))
    return Signals(graph.name, list(found), len(named))


class _Search:
    """What one explanation's gradients are compared with."""

    def __init__(self, explanation: EvaluatedGraph, named: Sequence[Variable]) -> None:
        self.explanation = explanation
        self.norms = {v: summarize(host(bar)).norm for v, bar in explanation.bars.items()}
        usual = [norm for v, norm in self.norms.items() if v.kind == "intermediate" and norm > 0]
        self.usual = float(np.median(usual)) if usual else 0.0
        self.greatest = max([self.usual, *(self.norms[v] for v in named if v in self.norms)])

    @cached_property
    def _first(self) -> FirstNonfinite | None:
        return first_nonfinite(self.explanation)

    def gravest(self, variable: Variable) -> Signal | None:
        """The gravest finding about a variable's value or gradient; None for none."""
        signal = self._nonfinite(variable, self.explanation.values[variable], "value")
        if signal is not None or variable not in self.explanation.bars:
            return signal
        checks = (
            lambda v: self._nonfinite(v, self.explanation.bars[v], "gradient"),
            self._underflow,
            self._dead,
            self._size,
            self._through_time,
            self._partly_dead,
        )
        return next(filter(None, (check(variable) for check in checks)), None)

    def _nonfinite(self, variable: Variable, array: Any, what: str) -> Signal | None:
        summary = summarize(host(array))
        if not summary.nans + summary.infinities:
            return None
        kind, word = ("nan", "NaN") if summary.nans else ("infinite", "infinite")
        count = summary.nans or summary.infinities
        message = f"{count} of {variable.size} entries of its {what} are {word}"
        first = self._first
        if first is not None and first.reaches:
            begins = f"in {first.formula}" if first.formula else first.cause
            message += f"; the first is {first.entry}, {begins}"
        source = self._source(variable) if first is None else first.source
        numbers = {"nans": summary.nans, "infinities": summary.infinities, "size": variable.size}
        return Signal(kind, variable, message, source, numbers)

    def _dead(self, variable: Variable) -> Signal | None:
        if not self._is_zero(self.explanation.bars[variable]):
            return None
        source = self._source(variable)
        if self._lost(variable).any():
            message = "its gradient vanishes: all of it is below the smallest "
            message += f"{variable.dtype.name}, and became 0"
            numbers = {"norm": 0.0, "usual": self.usual, "ratio": 0.0, "of_value": 0.0}
            return Signal("vanishing", variable, message, source, numbers)
        message = "its gradient is zero, though a path leads from it to the output"
        end = next(_path_ends(self.explanation, variable, self._is_zero), None)
        if end is not None:
            equation, operand = end
            called = _called(equation, operand)
            message += f"; it ends at {called}, which lets nothing through here"
            others = [v for v in equation.inputs if v is not operand]
            zero = [v for v in others if self._is_zero(self.explanation.values.get(v))]
            message += "".join(f", as {v} is all zero" for v in zero)
            source = equation.source or source
        return Signal("dead", variable, message, source, {"zeros": variable.size, "share": 1.0})

    @staticmethod
    def _is_zero(array: Any) -> bool:
        return array is not None and has_tangent(array) and not np.any(host(array))

    def _partly_dead(self, variable: Variable) -> Signal | None:
        gate = unit_gate(self.explanation, variable)
        if gate is None:
            return None
        dead, share = len(gate.units), len(gate.units) / gate.width
        if dead <= BY_CHANCE * gate.width / (gate.examples + 1):
            return None
        listed = ", ".join(map(str, gate.units[:MOST_LISTED]))
        listed += ", …" if dead > MOST_LISTED else ""
        message = (
            f"{dead} of {gate.width} units ({share:.0%}) have no gradient in any of "
            f"{gate.examples} examples: {_called(gate.equation, gate.operand)} lets nothing "
            f"through to {listed}"
        )
        numbers = {"units": list(gate.units), "width": gate.width, "share": share,
                   "examples": gate.examples}  # fmt: skip
        return Signal("partly dead", variable, message, gate.equation.source, numbers)

    def _size(self, variable: Variable) -> Signal | None:
        """Vanishing or exploding, by the norm of the gradient."""
        norm, value = self.norms[variable], summarize(host(self.explanation.values[variable])).norm
        value = value or np.sqrt(variable.size)  # of a value that starts from 0, as if of size 1
        ratio, small = (norm / size if size else 1.0 for size in (self.usual, self.greatest))
        numbers = {"norm": norm, "usual": self.usual, "greatest": self.greatest,
                   "of_value": norm / value}  # fmt: skip
        if small < VANISHING and norm < VANISHING * value and not self._cancels(variable):
            message = f"its gradient vanishes: ‖·‖ = {format_number(norm)}, {format_number(small)} "
            message += f"times the greatest, {format_number(self.greatest)}"
            return Signal("vanishing", variable, message, self._source(variable), numbers)
        if ratio > EXPLODING and norm > EXPLODING_OF_VALUE * value:
            message = f"its gradient explodes: ‖·‖ = {format_number(norm)}, {format_number(ratio)} "
            message += f"times the usual {format_number(self.usual)} of this graph, "
            message += f"{format_number(norm / value)} times the value's"
            return Signal("exploding", variable, message, self._source(variable), numbers)
        return None

    def _cancels(self, variable: Variable) -> bool:
        """Whether a gradient is small since summands cancel, and not since it shrank on its way."""
        while self.norms[variable] < VANISHING * self.greatest:
            outs = [v for e in self.explanation.graph.uses(variable) for v in e.outputs]
            above = max((v for v in outs if v in self.norms), key=lambda v: self.norms[v],
                        default=None)  # fmt: skip
            if above is None:
                return False
            if self.norms[variable] < CANCELS * self.norms[above]:
                return above.size > variable.size
            variable = above
        return False

    def _through_time(self, variable: Variable) -> Signal | None:
        """Vanishing or exploding from step to step of a loop that takes the variable as ``xs``."""
        for equation in self.explanation.graph.uses(variable):
            if equation.operation != "scan":
                continue
            if variable not in opened_scan(equation.eqn).divided(equation.inputs)[2]:
                continue
            held = np.asarray(host(self.explanation.bars[variable]))
            norms = np.linalg.norm(held.reshape(held.shape[0], -1), axis=1)
            norms = norms[::-1] if equation.eqn.params["reverse"] else norms
            first, last = norms[0], norms[-1]
            if not first or not last:
                continue
            ratio = float(first / last)
            if VANISHING <= ratio <= 1 / VANISHING:
                continue
            kind, verb = ("vanishing", "vanishes") if ratio < 1 else ("exploding", "explodes")
            message = f"its gradient {verb} through the loop, from ‖·‖ = {format_number(last)} at "
            message += f"the last step to {format_number(first)} at the first of {len(norms)}"
            source = equation.source or self._source(variable)
            numbers = {"first": float(first), "last": float(last), "ratio": ratio}
            return Signal(kind, variable, message, source, numbers)
        return None

    def _underflow(self, variable: Variable) -> Signal | None:
        """Entries that are zero in half precision, and are not once the loss is scaled up."""
        if variable.dtype.itemsize != 2 or jnp.finfo(variable.dtype).smallest_normal < 1e-10:
            return None
        lost = int(np.sum(self._lost(variable)))
        if not lost:
            return None
        share = lost / variable.size
        least = float(jnp.finfo(variable.dtype).smallest_subnormal)
        message = (
            f"{lost} of {variable.size} entries ({share:.0%}) of its gradient underflow: they are "
            f"smaller than {format_number(least)}, the smallest {variable.dtype.name}, and became "
            f"0; scale the loss, by {self._scale:.0f} for one"
        )
        numbers = {"zeros": lost, "size": variable.size, "share": share, "smallest": least}
        return Signal("underflow", variable, message, self._source(variable), numbers)

    @cached_property
    def _scale(self) -> float:
        """By what the loss is scaled to see what underflows in the narrowest dtype."""
        dtypes = {bar.dtype for bar in self.explanation.bars.values()}
        return 2.0 ** int(SCALE * min(int(jnp.finfo(dtype).maxexp) for dtype in dtypes))

    @cached_property
    def _scaled_bars(self) -> Mapping[Variable, Any]:
        """The cotangents of the scaled loss."""
        e = self.explanation
        seeds = [None if s is None else s * jnp.asarray(self._scale, s.dtype) for s in e.seeds]
        args = [e.values[v] for v in e.graph.inputs]
        return sweep(e.graph, args, seeds, e.max_steps).bars

    def _lost(self, variable: Variable) -> np.ndarray:
        """Which entries of a gradient are zero only since they are too small for their dtype."""
        scaled = np.asarray(host(self._scaled_bars[variable]))
        is_zero = np.asarray(host(self.explanation.bars[variable])) == 0
        return is_zero & (scaled != 0) & ~np.isnan(scaled)

    def _source(self, variable: Variable) -> tuple[str, int] | None:
        """The line that makes a variable; of an input, the line that uses it first."""
        graph = self.explanation.graph
        maker = graph.defined_by(variable)
        if maker is not None:
            return maker.source
        return next((e.source for e in graph.uses(variable)), None)


def _called(equation: Equation, operand: Variable) -> str:
    return f"{equation.label or equation.operation}({operand})"
