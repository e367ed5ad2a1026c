"""An operation makes a NaN or an infinity for a cause that is found by running it once more.

No operation is known here by name. Where one entry of the result is not finite, the operation is
run again: in double precision (is the true result finite? then the dtype is too narrow), beside the
point (is it finite there? then the point is a pole), and the entries themselves say the rest. What
an entry of an output reads is found likewise: its gradient with respect to the operands, at
harmless values, is not zero there.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import has_tangent
from functional_bp.engine.transforms import vjp
from functional_bp.explanation.formulas.equations import forward
from functional_bp.explanation.formulas.expression import Expression, Verbatim
from functional_bp.explanation.formulas.writing import written
from functional_bp.explanation.numbers import format_value
from functional_bp.graph.graph import Equation, Variable, short_place

MOST_NAMED = 3  # entries of one operand that are named

Run = Callable[..., Sequence[Any]]
Index = tuple[int, ...]


@dataclass(frozen=True)
class ArrayEntry:
    """An entry of an array has a place and a value: ``z[2] = 0.0``.

    Attributes:
        name: what the array is called.
        index: where in it; () of a scalar.
        value: a plain number.
    """

    name: str
    index: Index
    value: Any

    @property
    def place(self) -> str:
        """Return ``z[2]``; ``z`` of a scalar."""
        at = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        return f"{self.name}{at}"

    def __str__(self) -> str:
        return f"{self.place} = {number(self.value)}"

    def as_data(self) -> dict[str, Any]:
        """Return it as strings and numbers; a value that JSON has not is a string."""
        plain = isinstance(self.value, int | float) and self.value - self.value == 0
        value = self.value if plain else number(self.value)
        return {"name": self.name, "index": list(self.index), "value": value}


def number(value: Any) -> str:
    """Write a plain number to six digits: ``0.0``, ``−1e−07``, ``−∞``, ``NaN``.

    >>> number(0.0), number(-np.inf), number(1 / 3), number(3), number(1 - 2j)
    ('0.0', '−∞', '0.333333', '3', '1.0 − 2.0i')
    """
    if isinstance(value, complex):
        sign = "−" if np.signbit(value.imag) else "+"
        return f"{number(value.real)} {sign} {number(abs(value.imag))}i"
    if isinstance(value, bool | int):
        return str(value).replace("-", "−")
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "∞" if value > 0 else "−∞"
    return repr(float(f"{value:.6g}")).replace("-", "−")


def host(array: Any) -> np.ndarray | None:
    """Return a real or complex array in double precision; None for integers, keys, tokens."""
    if not has_tangent(array):
        return None
    held = np.asarray(array)
    return held.astype(np.complex128 if held.dtype.kind == "c" else np.float64)


def is_bad(array: Any) -> bool:
    """Tell whether a real or complex array holds a NaN or an infinity."""
    held = host(array)
    return held is not None and not np.isfinite(held).all()


def has_nan(array: Any) -> bool:
    """Tell whether a real or complex array holds a NaN."""
    held = host(array)
    return held is not None and bool(np.isnan(held).any())


def first_bad(array: Any) -> Index:
    """Return the first NaN, or else the first infinity, in the order of memory."""
    held = np.asarray(host(array))
    bad = np.isnan(held) if np.isnan(held).any() else ~np.isfinite(held)
    return tuple(int(i) for i in np.argwhere(bad)[0])


def entry_at(name: str, array: Any, index: Index) -> ArrayEntry:
    """Return the entry of an array at an index."""
    held = host(array)
    return ArrayEntry(name, index, (np.asarray(array) if held is None else held)[index].item())


def harmless(array: Any, value: float) -> Any:
    """Return the array with ``value`` for each entry that is not finite."""
    if not has_tangent(array):
        return array
    return jnp.where(jnp.isfinite(array), array, jnp.asarray(value, array.dtype))


class Read(NamedTuple):
    """An entry of an output reads these entries of one operand.

    Attributes:
        total: how many entries.
        first: the indices of the few of most weight: infinities and NaN, then by |value · slope|.
    """

    total: int
    first: tuple[Index, ...]


def read_by(run: Run, operands: Sequence[Any], output: int, index: Index) -> list[Read]:
    """Return for each operand of ``run`` the entries that one entry of an output reads.

    Of integers and keys nothing is said to be read.
    """
    floats = [i for i, x in enumerate(operands) if has_tangent(x)]
    actual = [operands[i] for i in floats]
    ordinary = [_ordinary(x, order) for order, x in enumerate(actual)]
    masks = _slopes(run, operands, floats, ordinary, output, index)
    slopes = (
        None if any(map(is_bad, actual)) else _slopes(run, operands, floats, actual, output, index)
    )
    found = [Read(0, ()) for _ in operands]
    for order, i in enumerate(floats):
        value = np.asarray(host(operands[i]))
        mask = np.zeros(value.shape, bool) if masks is None else masks[order] != 0
        found[i] = _heaviest(mask, value, None if slopes is None else slopes[order])
    if not any(read.total for read in found):  # no gradient: elementwise, or all of it
        shape = np.shape(run(*operands)[output])
        for i in floats:
            value = np.asarray(host(operands[i]))
            if value.shape == shape:
                found[i] = Read(1, (index,))
            else:
                found[i] = _heaviest(np.ones(value.shape, bool), value, None)
    return found


def _ordinary(array: Any, order: int) -> Any:
    """Values between 0 and 1, all different, other ones for each operand."""
    ramp = np.linspace(1.0, 0.9, num=max(array.size, 1))[: array.size].reshape(array.shape)
    return jnp.asarray(0.8 / (1 + 0.45 * order) * ramp, array.dtype)


def _slopes(
    run: Run, operands: Sequence[Any], floats: list[int], points: list[Any], out: int, index: Index
) -> list[np.ndarray] | None:
    """The gradient of one entry of an output at ``points``; None if it cannot be had, or is bad."""

    def of_floats(*values: Any) -> Any:
        full = list(operands)
        for i, value in zip(floats, values):
            full[i] = value
        return run(*full)[out]

    try:
        y, pull = vjp(of_floats, *points)
        bars = pull(jnp.zeros_like(y).at[index].set(1))
    except Exception:  # whatever an operation refuses: it is looked at in another way
        return None
    found = [np.asarray(host(bar)) for bar in bars]
    return None if any(not np.isfinite(bar).all() for bar in found) else found


def _heaviest(mask: np.ndarray, value: np.ndarray, slope: np.ndarray | None) -> Read:
    with np.errstate(all="ignore"):
        weight = np.abs(value if slope is None else value * slope)
    weight = np.where(np.isfinite(value), weight, np.inf)[mask]
    order = np.argsort(-weight, kind="stable")[:MOST_NAMED]
    first = np.argwhere(mask)[order]
    return Read(weight.size, tuple(tuple(int(i) for i in at) for at in first))


BESIDE = 1e-2  # how far beside a point an operation is run again, of the point's size or of 1


class Cause(NamedTuple):
    """A cause says why one entry of an equation's output is not finite.

    Attributes:
        entry: that one.
        reads: the operands' entries that it comes from.
        text: what about them caused it.
        advice: what to do.
    """

    entry: ArrayEntry
    reads: tuple[ArrayEntry, ...]
    text: str
    advice: str


def cause_of(
    equation: Equation, operands: Sequence[Any], outs: Sequence[Any], names: Mapping[Variable, str]
) -> Cause:
    """Say why an equation's first bad output is so, given its operands' and outputs' values.

    ``names`` says what to call its variables, where not by their names.
    """
    output = next(i for i, out in enumerate(outs) if is_bad(out))
    index = first_bad(outs[output])
    variable = equation.outputs[output]
    bad = entry_at(names.get(variable, variable.name), outs[output], index)
    if equation.nested:
        what = equation.label or equation.operation
        text = f"something inside {what} makes it of finite operands"
        return Cause(bad, (), text, "look at that function by itself")
    run = lambda *values: sweeps.evaluate(equation.eqn, values)
    found = read_by(run, operands, output, index)
    reads = tuple(
        entry_at(names.get(v, v.name), x, at)
        for v, x, read in zip(equation.inputs, operands, found)
        for at in read.first
        if v.kind != "literal"
    )
    blamed = _BadEntry(equation, operands, found, output, index, bad.value)
    text, advice = blamed.cause({v: Verbatim(n) for v, n in names.items()})
    return Cause(bad, tuple(dict.fromkeys(reads)), text, advice)


@dataclass
class _BadEntry:
    """One entry of an output, with what it reads of the operands."""

    equation: Equation
    operands: Sequence[Any]
    found: Sequence[Read]
    output: int
    index: Index
    value: Any

    def __post_init__(self) -> None:
        self.dtype = self.equation.outputs[self.output].dtype
        self.is_point = all(read.total <= 1 for read in self.found)
        self.values = [
            [entry_at("", x, at).value for at in read.first]
            for x, read in zip(self.operands, self.found)
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
                out = sweeps.evaluate(eqn, operands)[self.output]
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
                    out = host(sweeps.evaluate(self.equation.eqn, moved)[self.output])
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
    """Say what an equation computes, written down."""
    right = forward(equation, known).right
    return equation.operation if right is None else written(right)


def largest(dtype: Any) -> str:
    """Name a dtype's largest number: ``the largest float16, 65504``."""
    most = float(jnp.finfo(dtype).max)
    text = f"{most:.0f}" if most < 1e6 else f"{most:.1e}".replace("e+", "e")
    return f"the largest {np.dtype(dtype).name}, {text}"


# What ``explanation.first_nonfinite()`` returns, and how it reads.

WIDTH = 100  # characters of a line


class Inside(NamedTuple):
    """An operation holds the equation: a loop at one of its steps, or a function.

    Attributes:
        equation: the ``scan``, ``while`` or call.
        step: which step, from 0; None where it is no loop.
        steps: how many it takes; None where it is no loop.
    """

    equation: Equation
    step: int | None = None
    steps: int | None = None

    def __str__(self) -> str:
        label = f" ({self.equation.label})" if self.equation.label else ""
        step = "" if self.step is None else f": step {self.step} of 0 … {(self.steps or 1) - 1}"
        return f"{self.equation.operation}{label}{step}"


@dataclass(frozen=True)
class FirstNonfinite:
    """This is the first NaN or infinity of both sweeps: where it is, from what, and why.

    ``print`` shows all of it; ``as_data()`` is the same as plain data.

    Attributes:
        direction: "forward" where a value is not finite, "reverse" where only a cotangent is.
        entry: the entry that is not finite: of a value ``y``, or of a cotangent ``x̄``.
        equation: the equation that makes it, forward or by its rule; None where a value is not
            finite from the start: an input, a constant, the cotangent of the output.
        formula: the equation as mathematics, ``y = ln x``.
        rule: in the reverse sweep, the rule's formula and its convention at such a point.
        inside: the loops and functions that hold the equation, outermost first, with the step.
        operands: the entries of the operands that it comes from.
        upstream: in the reverse sweep, the entries of the output's cotangent.
        kept: in the reverse sweep, the entries that the rule reads from the forward sweep.
        inputs: the values of all inputs of the equation, by name.
        cause: what about these entries makes a NaN or an infinity.
        advice: what to do.
        source: the person's ``(file, line)``; None if unknown.
        reaches: whether it reaches the output or a gradient.
    """

    direction: Literal["forward", "reverse"]
    entry: ArrayEntry
    equation: Equation | None
    cause: str
    advice: str = ""
    formula: str = ""
    rule: str = ""
    inside: tuple[Inside, ...] = ()
    operands: tuple[ArrayEntry, ...] = ()
    upstream: tuple[ArrayEntry, ...] = ()
    kept: tuple[ArrayEntry, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    source: tuple[str, int] | None = None
    reaches: bool = True

    @property
    def step(self) -> int | None:
        """Return the step of the innermost loop around the equation; None outside loops."""
        return next((i.step for i in reversed(self.inside) if i.step is not None), None)

    @property
    def operation(self) -> str:
        """Return the operation's name, as in ``bp.rules``; "" where no equation makes it."""
        return "" if self.equation is None else self.equation.operation

    @property
    def line(self) -> str:
        """Return the source as ``model.py:12``, "" if unknown."""
        return short_place(self.source)

    @property
    def rows(self) -> dict[str, str]:
        """Return where it is and of what it is made, line by line, by label."""
        return {
            "inside": "; ".join(map(str, self.inside)),
            "rule": self.rule,
            "upstream": ", ".join(map(str, self.upstream)),
            "kept": ", ".join(map(str, self.kept)),
            "operands": ", ".join(map(str, self.operands)),
        }

    def __str__(self) -> str:
        what = "value" if self.direction == "forward" else "cotangent"
        where = f"in {self.formula}" if self.formula else "from the start"
        lines = [f"The first {what} that is not finite: {self.entry}, {where}"]
        inputs = ", ".join(f"{name} = {format_value(x)}" for name, x in self.inputs.items())
        rows = {"line": self.line, **self.rows, "cause": self.cause, "to do": self.advice,
                "inputs": inputs}  # fmt: skip
        for label, text in rows.items():
            lines += textwrap.wrap(
                text, WIDTH, initial_indent=f"  {label:<10}", subsequent_indent=" " * 12
            )
        return "\n".join(lines)

    def as_data(self) -> dict[str, Any]:
        """Return all of it as strings, numbers, lists and dicts; NaN and infinities are strings."""
        return {
            "direction": self.direction,
            "operation": self.operation,
            "equation": None if self.equation is None else self.equation.index,
            "formula": self.formula,
            "entry": self.entry.as_data(),
            "rule": self.rule,
            "inside": [
                {"operation": i.equation.operation, "label": i.equation.label,
                 "step": i.step, "steps": i.steps}
                for i in self.inside
            ],
            "operands": [e.as_data() for e in self.operands],
            "upstream": [e.as_data() for e in self.upstream],
            "kept": [e.as_data() for e in self.kept],
            "inputs": {name: format_value(x) for name, x in self.inputs.items()},
            "cause": self.cause,
            "advice": self.advice,
            "source": None if self.source is None else list(self.source),
            "reaches": self.reaches,
        }  # fmt: skip
