"""Why an operation makes a NaN or an infinity: said of its operands' entries, found by running it.

No operation is known here by name. Where one entry of the result is not finite, the operation is
run again: in double precision (is the true result finite? then the dtype is too narrow), beside the
point (is it finite there? then the point is a pole), and the entries themselves say the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp import backprop
from functional_bp.explain.formulas.equations import forward
from functional_bp.explain.formulas.expression import Expression, Verbatim
from functional_bp.explain.formulas.unicode import written
from functional_bp.explain.nonfinite.entries import (
    Entry,
    Index,
    Read,
    entry_at,
    first_bad,
    host,
    is_bad,
    number,
    read_by,
)
from functional_bp.graph.parts import Equation, Variable

BESIDE = 1e-2  # how far beside a point an operation is run again, of the point's size or of 1


class Cause(NamedTuple):
    """Why one entry of an equation's output is not finite.

    Attributes:
        variable: the output.
        entry: the entry of it.
        reads: the operands' entries that it comes from.
        text: what about them caused it.
        advice: what to do.
    """

    variable: Variable
    entry: Entry
    reads: tuple[Entry, ...]
    text: str
    advice: str


def cause_of(
    equation: Equation, operands: Sequence[Any], outs: Sequence[Any], names: Mapping[Variable, str]
) -> Cause:
    """Why an equation's first bad output is so.

    Args:
        equation: the equation.
        operands: its operands' values.
        outs: its outputs' values.
        names: what to call its variables, where not by their names.
    """
    output = next(i for i, out in enumerate(outs) if is_bad(out))
    index = first_bad(outs[output])
    variable = equation.outputs[output]
    bad = entry_at(names.get(variable, variable.name), outs[output], index)
    if equation.nested:
        text = (
            f"something inside {equation.label or equation.operation} makes it of finite operands"
        )
        return Cause(variable, bad, (), text, "look at that function by itself")
    run = lambda *values: backprop.evaluate(equation.eqn, values)  # noqa: E731
    found = read_by(run, operands, output, index)
    reads = tuple(
        entry_at(names.get(v, v.name), x, at)
        for v, x, read in zip(equation.inputs, operands, found)
        for at in read.first
        if v.kind != "literal"
    )
    place = _Place(equation, operands, found, output, index, bad.value)
    text, advice = place.cause({v: Verbatim(n) for v, n in names.items()})
    return Cause(variable, bad, tuple(dict.fromkeys(reads)), text, advice)


class _Place:
    """One entry of an output, with what it reads of the operands."""

    def __init__(
        self,
        equation: Equation,
        operands: Sequence[Any],
        found: Sequence[Read],
        output: int,
        index: Index,
        value: Any,
    ) -> None:
        self.equation, self.operands, self.output, self.index = equation, operands, output, index
        self.found, self.value = found, value
        self.dtype = equation.outputs[output].dtype
        self.is_point = all(read.total <= 1 for read in found)
        self.values = [
            [entry_at("", x, at).value for at in read.first] for x, read in zip(operands, found)
        ]

    def cause(self, known: Mapping[Variable, Expression]) -> tuple[str, str]:
        """The cause in words, and what to do."""
        written = self._with_numbers() if self.is_point else right_side(self.equation, known)
        shown = f"{written} = {number(self.value)}"
        read = np.array([value for values in self.values for value in values])
        is_nan = np.isnan(self.value)
        if np.isnan(read).any():
            return f"{shown}: an operand is NaN", "mend the operand"
        if np.isinf(read).any():
            why = "∞ − ∞, 0 · ∞ and ∞ / ∞ have no value" if is_nan else "an operand is infinite"
            return f"{shown}: {why}", KEEP_INFINITIES_OUT
        terms = max((found.total for found in self.found), default=0)
        true = self._in_double()
        if not is_nan and true is not None and np.isfinite(true):
            of = "" if self.is_point else f", of {terms} terms,"
            return f"{shown}: {number(true)}{of} exceeds {largest(self.dtype)}", self._narrower()
        if self.is_point and self._is_finite_beside():
            why = "it has no value there" if is_nan else "a pole"
            return f"{shown}: {why}", KEEP_AWAY
        if not is_nan:
            of = "it" if self.is_point else f"the result of {terms} terms"
            return f"{shown}: {of} exceeds {largest(self.dtype)}", self._narrower()
        why = "outside the domain of" if self.is_point else "these entries are outside its domain:"
        return f"{shown}: {why} {self.equation.operation}", KEEP_AWAY

    def _with_numbers(self) -> str:
        """The operation on numbers: ``ln 0.0``, ``1.0 / 0.0``."""
        shown = [number(values[0]) if values else "" for values in self.values]
        letters = [chr(0xE000 + i) for i in range(len(shown))]  # of private use: none is simplified
        stand_ins = [
            replace(v, name=letter) if text else v
            for v, letter, text in zip(self.equation.inputs, letters, shown)
        ]
        known: dict[Variable, Expression] = {
            v: Verbatim(letter) for v, letter, text in zip(stand_ins, letters, shown) if text
        }
        written = right_side(replace(self.equation, inputs=tuple(stand_ins)), known)
        for letter, text in zip(letters, shown):
            is_compound = text.startswith("−") or text.endswith("i")
            within = f"({letter})" in written
            written = written.replace(letter, f"({text})" if is_compound and not within else text)
        return written

    def _in_double(self) -> Any:
        """The result in double precision; None where the operation does not run so."""
        if self.dtype in (np.float64, np.complex128):
            return None
        wide = np.complex128 if np.dtype(self.dtype).kind == "c" else np.float64
        eqn = self.equation.eqn
        if eqn.params.get("preferred_element_type") is not None:
            eqn = eqn.replace(params={**eqn.params, "preferred_element_type": np.dtype(wide)})
        try:
            with jax.enable_x64(True):
                operands = [
                    jnp.asarray(host(x), wide) if read.total else x
                    for x, read in zip(self.operands, self.found)
                ]
                out = backprop.evaluate(eqn, operands)[self.output]
            return None if out.dtype != wide else np.asarray(out)[self.index].item()
        except Exception:  # whatever an operation refuses: it is said to overflow without a number
            return None

    def _is_finite_beside(self) -> bool:
        """Whether the result is finite a little beside the point, in some direction."""
        for i, (x, read) in enumerate(zip(self.operands, self.found)):
            for at in read.first:
                step = BESIDE * max(abs(self.values[i][0]), 1.0)
                for sign in (1, -1):
                    moved = [*self.operands]
                    moved[i] = jnp.asarray(x).at[at].add(jnp.asarray(sign * step, x.dtype))
                    out = host(backprop.evaluate(self.equation.eqn, moved)[self.output])
                    if out is not None and np.isfinite(out[self.index]):
                        return True
        return False

    def _narrower(self) -> str:
        """What to do about an overflow."""
        is_exp = self.equation.operation == "exp"
        first = "subtract the maximum before exp, or " if is_exp else ""
        is_double = self.dtype in (np.float64, np.complex128)
        wider = "" if is_double else ", or compute in a wider dtype"
        return f"{first}scale or clip the operand{wider}"


KEEP_AWAY = "keep the operand away from it: mask it before the operation, or add a small number"
KEEP_INFINITIES_OUT = (
    "put a large finite number in the place of the infinity, and leave no row masked as a whole"
)


def right_side(equation: Equation, known: Mapping[Variable, Expression]) -> str:
    """What an equation computes, written down."""
    right = forward(equation, known).right
    return equation.operation if right is None else written(right)


def largest(dtype: Any) -> str:
    """``the largest float16, 65504``."""
    most = float(jnp.finfo(dtype).max)
    text = f"{most:.0f}" if most < 1e6 else f"{most:.1e}".replace("e+", "e")
    return f"the largest {np.dtype(dtype).name}, {text}"


def operands_of(equation: Equation, values: Mapping[Variable, Any]) -> list[Any]:
    """The values of an equation's operands, literals included."""
    return [
        jnp.asarray(backprop.value_of(atom, {}), v.dtype) if v.kind == "literal" else values[v]
        for v, atom in zip(equation.inputs, equation.eqn.invars)
    ]
