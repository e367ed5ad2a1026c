"""The search for what is notable about gradients, with the thresholds that decide.

All comparisons are of norms within one sweep, so that the size of the loss does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from functional_bp import _jax
from functional_bp.explain.explanation import Explanation
from functional_bp.explain.nonfinite.entries import host
from functional_bp.explain.nonfinite.finding import FirstNonfinite
from functional_bp.explain.numbers import format_number, summarize
from functional_bp.explain.signals.findings import Kind, Signal, Signals
from functional_bp.explain.signals.gates import Gate, dead_gate, unit_gate
from functional_bp.explain.sweeps import sweep
from functional_bp.graph.parts import Variable
from functional_bp.structure import has_tangent

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


def signals(explanation: Explanation) -> Signals:
    """What is notable about the gradients of inputs, parameters and named values.

    Dead (all zero though a path leads to the output), partly dead (units, as columns of a weight,
    that a relu or its like has shut for all examples), vanishing and exploding (norms, compared
    with the graph's usual one), NaN and infinity, and half-precision gradients that underflow.
    """
    graph, bars = explanation.graph, explanation.bars
    named = [v for v in (*graph.inputs, *graph.constants) if has_tangent(v.aval)]
    named += [v for e in graph for v in e.outputs if v.tag is not None and has_tangent(v.aval)]
    named = [v for v in named if v.size]
    found: list[Signal] = []
    search = _Search(explanation, named)
    for variable in named:
        signal = search.of_value(variable)
        if signal is None and variable in bars:
            signal = search.of_gradient(variable)
        if signal is not None:
            found.append(signal)
    return Signals(graph.name, found, len(named))


class _Search:
    """What one explanation's gradients are compared with."""

    def __init__(self, explanation: Explanation, named: Sequence[Variable]) -> None:
        self.explanation = explanation
        self.norms = {v: summarize(host(bar)).norm for v, bar in explanation.bars.items()}
        usual = [norm for v, norm in self.norms.items() if v.kind == "intermediate" and norm > 0]
        self.usual = float(np.median(usual)) if usual else 0.0
        self.greatest = max([self.usual, *(self.norms[v] for v in named if v in self.norms)])

    @cached_property
    def _first(self) -> FirstNonfinite | None:
        return self.explanation.first_nonfinite()

    def of_value(self, variable: Variable) -> Signal | None:
        """A value that is not finite."""
        return self._nonfinite(variable, self.explanation.values[variable], "value")

    def of_gradient(self, variable: Variable) -> Signal | None:
        """The gravest finding about a variable's gradient; None for none."""
        x_bar = self.explanation.bars[variable]
        signal = self._nonfinite(variable, x_bar, "gradient") or self._underflow(variable)
        if signal is not None:
            return signal
        if not np.any(host(x_bar)):
            return self._dead(variable)
        return self._size(variable) or self._through_time(variable) or self._partly_dead(variable)

    def _nonfinite(self, variable: Variable, array: Any, what: str) -> Signal | None:
        summary = summarize(host(array))
        if not summary.nans + summary.infinities:
            return None
        kind: Kind = "nan" if summary.nans else "infinite"
        count = summary.nans or summary.infinities
        word = "NaN" if summary.nans else "infinite"
        message = f"{count} of {variable.size} entries of its {what} are {word}"
        first = self._first
        if first is not None and first.reaches:
            begins = first.formula or first.cause
            message += (
                f"; the first is {first.entry}, {f'in {begins}' if first.formula else begins}"
            )
        source = self._source(variable) if first is None else first.source
        numbers = {"nans": summary.nans, "infinities": summary.infinities, "size": variable.size}
        return Signal(kind, variable, message, source, numbers)

    def _dead(self, variable: Variable) -> Signal:
        if self._lost(variable).any():
            message = "its gradient vanishes: all of it is below the smallest "
            message += f"{variable.dtype.name}, and became 0"
            numbers = {"norm": 0.0, "usual": self.usual, "ratio": 0.0, "of_value": 0.0}
            return Signal("vanishing", variable, message, self._source(variable), numbers)
        gate = dead_gate(self.explanation, variable)
        message = "its gradient is zero, though a path leads from it to the output"
        source = self._source(variable)
        if gate is not None:
            message += f"; it ends at {_called(gate)}, which lets nothing through here"
            zero = [v for v in gate.equation.inputs if v is not gate.operand and self._is_zero(v)]
            message += "".join(f", as {v} is all zero" for v in zero)
            source = gate.equation.source or source
        return Signal("dead", variable, message, source, {"zeros": variable.size, "share": 1.0})

    def _is_zero(self, variable: Variable) -> bool:
        value = self.explanation.values.get(variable)
        return value is not None and has_tangent(value) and not np.any(host(value))

    def _partly_dead(self, variable: Variable) -> Signal | None:
        gate = unit_gate(self.explanation, variable)
        if gate is None or gate.units is None:
            return None
        dead, share = len(gate.units), len(gate.units) / gate.width
        if dead <= BY_CHANCE * gate.width / (gate.examples + 1):
            return None
        listed = ", ".join(map(str, gate.units[:MOST_LISTED]))
        listed += ", …" if dead > MOST_LISTED else ""
        message = (
            f"{dead} of {gate.width} units ({share:.0%}) have no gradient in any of "
            f"{gate.examples} examples: {_called(gate)} lets nothing through to {listed}"
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
            if equation.operation != "scan" or variable not in _stepped(equation):
                continue
            held = np.asarray(host(self.explanation.bars[variable]))
            norms = np.linalg.norm(held.reshape(held.shape[0], -1), axis=1)
            last = norms[0] if equation.eqn.params["reverse"] else norms[-1]
            first = norms[-1] if equation.eqn.params["reverse"] else norms[0]
            if not first or not last:
                continue
            ratio = float(first / last)
            numbers = {"first": float(first), "last": float(last), "ratio": ratio}
            text = f"from ‖·‖ = {format_number(last)} at the last step to {format_number(first)} "
            text += f"at the first of {len(norms)}"
            source = equation.source or self._source(variable)
            if ratio < VANISHING:
                message = f"its gradient vanishes through the loop, {text}"
                return Signal("vanishing", variable, message, source, numbers)
            if ratio > 1 / VANISHING:
                message = f"its gradient explodes through the loop, {text}"
                return Signal("exploding", variable, message, source, numbers)
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


def _called(gate: Gate) -> str:
    equation = gate.equation
    return f"{equation.label or equation.operation}({gate.operand})"


def _stepped(equation: Any) -> Iterator[Variable]:
    """The operands of a ``scan`` of which each step takes one slice."""
    consts, carries = _jax.scan_counts(equation.eqn.params)
    return iter(equation.inputs[consts + carries :])
