"""How the values of a loss depend on the examples of a batch is read off its graph.

A value is the same for every batch, or has an entry for each example, or is a sum over examples,
or couples them: then no microbatch can compute its part of it alone. Sums and entries may be
scaled: by a power of the number of examples, and by values that have no gradient with respect to
the parameters (one over the number of tokens that are no padding).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from jax import lax

from functional_bp.engine.axes import Axes, Role, axes_of
from functional_bp.engine.higher_order import has_tangent
from functional_bp.engine.rule import rules
from functional_bp.graph.graph import Equation, Graph, Nested, Variable
from functional_bp.graph.nested import opened_scan

Source = tuple[str, int] | None


class Mode(Enum):
    """A value depends so on the examples."""

    FIXED = "the same for every batch"
    EACH = "an entry for each example"
    TOTAL = "a sum over the examples"
    COUPLED = "couples the examples"


@dataclass(frozen=True)
class Dependence:
    """A value's dependence on the examples.

    Attributes:
        kind: of the dependence.
        power: the value is scaled by this power of the number of examples.
        factors: it is multiplied by powers of these values, which the batch determines.
        is_learned: it has a gradient with respect to the parameters.
        with_fixed: something that is the same for every batch was added to a sum.
        is_zero: it is fixed, and zero.
        numbers: of indices, column by column: "own" for an example's own number, "shifted" for
            that plus a constant, "" for anything else.
        culprit: the operation that couples the examples.
        source: the person's file and line of the culprit.
        why: how.
    """

    kind: Mode = Mode.FIXED
    power: int = 0
    factors: tuple[tuple[Variable, int], ...] = ()
    is_learned: bool = False
    with_fixed: bool = False
    is_zero: bool = False
    numbers: tuple[str, ...] = ()
    culprit: Equation | None = None
    source: Source = None
    why: str = ""

    @property
    def is_plain(self) -> bool:
        """Say whether it is not scaled."""
        return not self.power and not self.factors


FIXED = Dependence()
ALONG = {
    Role.HALO: "goes from one example to the next",
    Role.MIXED: "mixes the examples",
    Role.POSITIONAL: "picks examples by their position",
}
ADDING = {"add", "add_any", "convert_element_type"}
EACH_ITS_OWN = {"optimization_barrier", "device_put"}
SUMS = {"add", "sub", "add_any"}
LINEAR = {"neg", "real", "imag", "mul_out"}
KEEPS_NUMBERS = {"convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "copy"}


class Dependences:
    """Every value of a graph is given its dependence on the examples.

    Args:
        graph: of the loss.
        of_inputs: the dependences of its inputs.
        has_axis: says of a variable's axis whether the examples stand along it.
        powers: the power of the number of examples that a literal of an equation scales with, by
            equation and operand, where it is not 0; None for what is no power.
    """

    def __init__(
        self,
        graph: Graph,
        of_inputs: Sequence[Dependence],
        has_axis: Callable[[tuple[Variable, int]], bool],
        powers: Mapping[tuple[Equation, int], int | None],
    ) -> None:
        self.graph, self.has_axis, self.powers = graph, has_axis, powers
        self.known: dict[Variable, Dependence] = dict(zip(graph.inputs, of_inputs))
        self.draws: dict[Equation, Source] = {}  # random numbers for each example, and their line
        self._callers: list[Source] = [None]
        self._run(graph)

    @property
    def of_outputs(self) -> list[Dependence]:
        """Return the dependences of the graph's outputs."""
        return [self.known.get(v, FIXED) for v in self.graph.outputs]

    def batch_axes(self, variable: Variable) -> list[int]:
        """Return the axes along which the examples stand."""
        return [i for i in range(len(variable.shape)) if self.has_axis((variable, i))]

    def _run(self, graph: Graph) -> list[Dependence]:
        for equation in graph:
            operands = [self._operand(equation, k) for k in range(len(equation.inputs))]
            for variable, found in zip(equation.outputs, self._outputs(equation, operands)):
                is_learned = found.is_learned and has_tangent(variable.aval)
                self.known[variable] = replace(found, is_learned=is_learned)
        return [self.known.get(v, FIXED) for v in graph.outputs]

    def _operand(self, equation: Equation, k: int) -> Dependence:
        variable = equation.inputs[k]
        if variable.kind != "literal":
            return self.known.get(variable, FIXED)
        power = self.powers.get((equation, k), 0)
        if power is None:
            return self._culprit(equation, "holds a number that grows with the batch")
        is_zero = getattr(variable.value, "ndim", 0) == 0 and variable.value == 0
        return Dependence(power=power, is_zero=bool(is_zero))

    def _source(self, equation: Equation) -> Source:
        """The line of an operation; of what a library does inside a call, that of the call."""
        return equation.source or self._callers[-1]

    def _outputs(self, equation: Equation, operands: Sequence[Dependence]) -> Sequence[Dependence]:
        rule = rules.get(equation.eqn.primitive)
        if equation.nested and (rule is None or rule.axes is None):
            return self._nested(equation, operands)
        axes = axes_of(equation.eqn)
        if axes is None:
            return [self._unrelated(equation, operands)] * len(equation.outputs)
        return [self._output(equation, operands, axes, k) for k in range(len(equation.outputs))]

    def _unrelated(self, equation: Equation, operands: Sequence[Dependence]) -> Dependence:
        if all(x.kind is Mode.FIXED for x in operands):
            return FIXED
        return self._coupled(
            equation, operands, "has no rule that says how its axes belong together"
        )

    def _coupled(self, equation: Equation, operands: Sequence[Dependence], why: str) -> Dependence:
        """The first operation that couples the examples is the one to name."""
        earlier = next((x for x in operands if x.kind is Mode.COUPLED), None)
        is_learned = any(x.is_learned for x in operands)
        if earlier is not None:
            return replace(earlier, is_learned=is_learned)
        return replace(self._culprit(equation, why), is_learned=is_learned)

    def _culprit(self, equation: Equation, why: str) -> Dependence:
        return Dependence(Mode.COUPLED, culprit=equation, source=self._source(equation), why=why)

    # One output of an operation without a graph of its own.

    def _output(
        self, equation: Equation, operands: Sequence[Dependence], axes: Axes, k: int
    ) -> Dependence:
        kinds = {x.kind for x in operands}
        fails = lambda why: self._coupled(equation, operands, why)
        variable = equation.outputs[k]
        along = self._labels(equation, operands, axes)
        if equation.operation == "stop_gradient":
            return replace(operands[0], is_learned=False)
        if equation.operation in EACH_ITS_OWN:
            return operands[k]
        if kinds <= {Mode.FIXED}:
            return self._of_fixed(equation, operands, axes, k)
        if Mode.COUPLED in kinds and not self._scales(equation, operands):
            return fails("")
        if len(along) > 1:
            return fails("sets examples side by side with each other")
        if Mode.EACH in kinds:
            if None in along:
                return fails("takes the batch apart")
            (label,) = along or [None]
            role = axes.role(label)
            if role is Role.POSITIONAL and self._picks_own_rows(equation, operands):
                return self._scaled(equation, operands, Mode.EACH)
            if role is Role.SUMMED:
                if axes.combine != "sum":
                    return fails(f"takes the {axes.combine} over the examples")
                return self._scaled(equation, operands, Mode.TOTAL)
            if along and role is not Role.DIVISIBLE:
                return fails(ALONG[role])
            if along and label not in axes.outputs[k]:
                return fails("is not divided along the batch")
            if Mode.TOTAL in kinds and along and not self._scales(equation, operands):
                return fails("sets each example against the sum over all")
            found = self._scaled(equation, operands, Mode.EACH)
            if Mode.TOTAL in kinds and equation.operation in SUMS and found.kind is Mode.EACH:
                return replace(found, kind=Mode.TOTAL)  # a loop adds up what it makes of each
            return replace(found, numbers=self._numbers(equation, operands))
        if self.batch_axes(variable) and Mode.TOTAL in kinds:
            return fails("gives every example the sum over all")
        return self._scaled(equation, operands, Mode.TOTAL)

    def _labels(self, equation: Equation, operands: Sequence[Dependence], axes: Axes) -> list[Any]:
        """The labels of the axes of examples, of the operands that have an entry for each."""
        found: dict[Any, None] = {}
        for variable, x, labels in zip(equation.inputs, operands, axes.operands):
            if x.kind is Mode.EACH:
                found.update((labels[i], None) for i in self.batch_axes(variable))
        if equation.operation == "gather" and self._picks_own_rows(equation, operands):
            found = {label: None for label in found if label and label[0] == "at"}
        return list(found)

    def _of_fixed(
        self, equation: Equation, operands: Sequence[Dependence], axes: Axes, k: int
    ) -> Dependence:
        """What no example has made may still have an axis of examples: numbers, draws, zeros."""
        variable = equation.outputs[k]
        along = self.batch_axes(variable)
        zero = all(x.is_zero for x in operands) and bool(operands)
        if not along:
            return replace(self._scaled(equation, operands, Mode.FIXED), is_zero=zero)
        if any(axes.role(axes.outputs[k][i]) is Role.POSITIONAL for i in along):
            if equation.operation == "iota":
                return Dependence(Mode.EACH, numbers=("own",))
            self.draws[equation] = self._source(equation)
        return replace(self._scaled(equation, operands, Mode.EACH), is_zero=zero)

    # Scales.

    def _scales(self, equation: Equation, operands: Sequence[Dependence]) -> bool:
        """Whether it multiplies, or divides, by one value that the parameters do not determine."""
        return self._scale(equation, operands) is not None

    def _scale(self, equation: Equation, operands: Sequence[Dependence]) -> int | None:
        """Which operand scales the other one."""
        if equation.operation not in ("mul", "div"):
            return None
        for k in (1, 0) if equation.operation == "mul" else (1,):
            x, other = operands[k], operands[1 - k]
            is_one = x.kind in (Mode.TOTAL, Mode.COUPLED) and not equation.inputs[k].shape
            if (
                is_one
                and not x.is_learned
                and other.kind is not Mode.COUPLED
                and (other.kind is not Mode.FIXED)
            ):
                return k
        return None

    def _scaled(self, equation: Equation, operands: Sequence[Dependence], kind: Mode) -> Dependence:
        """The dependence of a linear operation's result, or of any where nothing is scaled."""
        name = equation.operation
        is_learned = any(x.is_learned for x in operands)
        made = Dependence(kind, is_learned=is_learned)
        fails = lambda why: self._coupled(equation, operands, why)
        sums = [x for x in operands if x.kind is Mode.TOTAL]
        by = self._scale(equation, operands)
        if by is not None:
            factor = (equation.inputs[by], -1 if name == "div" else 1)
            scaled = operands[1 - by]
            return replace(scaled, factors=(*scaled.factors, factor), is_learned=is_learned)
        if not has_tangent(equation.outputs[0].aval) and not sums:
            return made
        if not sums and all(x.is_plain for x in operands):
            return made
        if name in SUMS:
            return self._added(equation, operands, kind)
        if name in ("mul", "div", "dot_general"):
            if len(sums) + sum(x.kind is Mode.EACH for x in operands) > 1 and (
                sums or name == "div" and operands[1].kind is not Mode.FIXED
            ):
                return fails("multiplies a sum over the examples")
            first, second = operands
            sign = -1 if name == "div" else 1
            if name == "div" and (second.kind is not Mode.FIXED or second.factors):
                return fails("divides by what is scaled")
            power = first.power + sign * second.power
            factors = (*first.factors, *second.factors)
            with_fixed = any(x.with_fixed for x in sums)
            return replace(made, power=power, factors=factors, with_fixed=with_fixed)
        rule = rules.get(equation.eqn.primitive)
        if (rule is not None and rule.linear) or name in LINEAR:
            scaled = {(x.power, x.factors) for x in operands if x.kind is not Mode.FIXED}
            if any(not x.is_plain for x in operands if x.kind is Mode.FIXED) and sums:
                return fails("mixes scales")
            if len(scaled) <= 1:
                power, factors = next(iter(scaled), (operands[0].power, operands[0].factors))
                with_fixed = any(x.with_fixed for x in sums)
                return replace(made, power=power, factors=factors, with_fixed=with_fixed)
        what = (
            "the sum over the examples" if sums else "what depends on how many examples there are"
        )
        return fails(f"is not linear in {what}")

    def _added(self, equation: Equation, operands: Sequence[Dependence], kind: Mode) -> Dependence:
        """A sum of what is scaled alike."""
        counted = [x for x in operands if not x.is_zero]
        changing = [x for x in counted if x.kind is not Mode.FIXED]
        scales = {(x.power, x.factors) for x in (changing or counted)}
        fixed = [x for x in counted if x.kind is Mode.FIXED]
        if len(scales) > 1 or (changing and any(not x.is_plain for x in fixed)):
            return self._coupled(equation, operands, "adds what has different weights")
        power, factors = next(iter(scales), (0, ()))
        with_fixed = any(x.with_fixed for x in operands) or bool(fixed and kind is Mode.TOTAL)
        is_learned = any(x.is_learned for x in operands)
        return Dependence(kind, power, factors, is_learned, with_fixed)

    # Indices.

    def _numbers(self, equation: Equation, operands: Sequence[Dependence]) -> tuple[str, ...]:
        """Which columns of indices hold an example's own number."""
        name = equation.operation
        numbers = [x.numbers for x in operands]
        if name in KEEPS_NUMBERS:
            return numbers[0]
        if name == "add":
            found = next((n for n in numbers if n), ())
            fixed = any(x.kind is Mode.FIXED for x in operands)
            return tuple("shifted" if n and fixed else "" for n in found)
        if name == "select_n" and all(numbers[1:]):
            columns = zip(*numbers[1:])
            return tuple("own" if all(c) and "own" in c else "" for c in columns)
        if name == "concatenate":
            widths = [v.shape[-1] for v in equation.inputs]
            return tuple(
                column
                for n, width in zip(numbers, widths)
                for column in (n if len(n) == width else ("",) * width)
            )
        return ()

    def _picks_own_rows(self, equation: Equation, operands: Sequence[Dependence]) -> bool:
        """Whether a gather takes from each example's row what that example asks for."""
        if equation.eqn.primitive is not lax.gather_p:
            return False
        numbers, rows = operands[1].numbers, self.batch_axes(equation.inputs[0])
        order = equation.eqn.params["dimension_numbers"].start_index_map
        return len(rows) == 1 and any(
            axis == rows[0] and numbers[k : k + 1] == ("own",) for k, axis in enumerate(order)
        )

    # Operations that hold graphs.

    def _nested(self, equation: Equation, operands: Sequence[Dependence]) -> Sequence[Dependence]:
        if equation.operation == "scan":
            return self._scan(equation, operands)
        count = len(equation.outputs)
        inside = [n for n in equation.nested if n.runs != 0 and len(n.graph.outputs) == count]
        changing = any(x.kind is not Mode.FIXED for x in operands)
        name = equation.operation
        if name == "cond" and operands[0].kind is not Mode.FIXED:
            return [self._coupled(equation, operands, "is chosen by all examples")] * count
        if name == "while":
            return self._while(equation, operands)
        if not inside or (name == "shard_map" and changing):
            why = "is written for devices" if name == "shard_map" else "holds no graph to look into"
            return [self._coupled(equation, operands, why) if changing else FIXED] * count
        given = dict(zip(equation.inputs, operands))
        outs = [self._inside(equation, n, _fed(n, given)) for n in inside]
        return [self._joined(equation, v, *xs) for v, *xs in zip(equation.outputs, *outs)]

    def _inside(
        self, equation: Equation, nested: Nested, operands: Sequence[Dependence]
    ) -> list[Dependence]:
        self.known.update(zip(nested.graph.inputs, operands))
        self._callers.append(self._source(equation))
        outs = self._run(nested.graph)
        self._callers.pop()
        return outs

    def _scan(self, equation: Equation, operands: Sequence[Dependence]) -> Sequence[Dependence]:
        scan, (body,) = opened_scan(equation.eqn), equation.nested
        held, carry, xs = scan.divided(operands)
        over = [self.batch_axes(v)[:1] == [0] for v in scan.divided(equation.inputs)[2]]
        for _ in range(4):
            outs = self._inside(equation, body, [*held, *carry, *xs])
            after = outs[: scan.carries]
            variables = body.graph.outputs
            if any(over):  # what is made of one example is added up, or goes on to the next
                after = [
                    self._gone_on(equation, body.graph, k, x, b)
                    for k, (x, b) in enumerate(zip(after, carry))
                ]
            joined = [self._joined(equation, v, b, a) for v, b, a in zip(variables, carry, after)]
            if joined == carry:
                break
            carry = joined
        else:
            failed = self._coupled(
                equation, [*operands, *carry], "goes from one example to the next"
            )
            return [failed] * len(equation.outputs)
        why = "goes from one example to the next"
        ys = [
            self._coupled(equation, [x], why) if any(over) and x.kind is Mode.TOTAL else x
            for x in outs[scan.carries :]
        ]
        return [*carry, *ys]

    def _gone_on(
        self, equation: Equation, body: Graph, k: int, after: Dependence, before: Dependence
    ) -> Dependence:
        """The k-th carry of a loop over the examples: a sum, if each adds to it."""
        if after.kind is Mode.FIXED:
            return after
        scan = opened_scan(equation.eqn)
        starts = before.kind is Mode.TOTAL or before.is_zero
        if starts and adds_to(body, body.outputs[k], body.inputs[scan.consts + k]):
            return replace(after, kind=Mode.TOTAL)
        return self._coupled(equation, [after], "goes from one example to the next")

    def _while(self, equation: Equation, operands: Sequence[Dependence]) -> Sequence[Dependence]:
        if all(x.kind is Mode.FIXED for x in operands):
            return [replace(FIXED, is_learned=any(x.is_learned for x in operands))] * len(
                equation.outputs
            )
        condition, body = equation.nested
        given = dict(zip(equation.inputs, operands))
        carry, tested = _fed(body, given), _fed(condition, given)
        count = len(equation.outputs)
        held, state = carry[:-count], carry[-count:]
        for _ in range(4):
            outs = self._inside(equation, body, [*held, *state])
            variables = body.graph.outputs
            joined = [self._joined(equation, v, b, a) for v, b, a in zip(variables, state, outs)]
            if joined == state:
                break
            state = joined
        (proceeds,) = self._inside(equation, condition, [*tested[:-count], *state])
        if proceeds.kind is Mode.EACH and all(map(self.batch_axes, equation.outputs)):
            if all(x.kind in (Mode.EACH, Mode.FIXED) for x in state):
                return [replace(x, kind=Mode.EACH) for x in state]  # each until it is done itself
        if proceeds.kind is not Mode.FIXED:
            why = "goes on until all examples are done"
            return [self._coupled(equation, [*operands, *state], why)] * count
        return state

    def _joined(self, equation: Equation, variable: Variable, *found: Dependence) -> Dependence:
        """What holds of a value that is one of several."""
        first, *others = found
        for other in others:
            first = self._either(equation, variable, first, other)
        return first

    def _either(
        self, equation: Equation, variable: Variable, x: Dependence, y: Dependence
    ) -> Dependence:
        is_learned = x.is_learned or y.is_learned
        if x.kind is Mode.FIXED:
            x, y = y, x
        if x.kind is y.kind and (x.power, x.factors) == (y.power, y.factors):
            with_fixed = x.with_fixed or y.with_fixed
            is_zero = x.is_zero and y.is_zero
            return replace(x, is_learned=is_learned, with_fixed=with_fixed, is_zero=is_zero)
        if y.kind is Mode.FIXED and x.kind is Mode.EACH and x.is_plain and y.is_plain:
            return replace(x, is_learned=is_learned)
        if y.kind is Mode.FIXED and x.kind is Mode.TOTAL:
            return replace(x, is_learned=is_learned, with_fixed=x.with_fixed or not y.is_zero)
        return self._coupled(equation, [x, y], "mixes examples in its state")


def _fed(nested: Nested, given: Mapping[Variable, Dependence]) -> list[Dependence]:
    """The dependences of what feeds the inputs of a nested graph."""
    return [FIXED if v is None else given.get(v, FIXED) for v in nested.operands]


def adds_to(graph: Graph, end: Variable, start: Variable) -> bool:
    """Say whether a value of a graph is another one with something added."""
    if end is start:
        return True
    equation = None if end.kind == "literal" else graph.defined_by(end)
    if equation is None or equation.operation not in ADDING:
        return False
    return any(adds_to(graph, x, start) for x in equation.inputs)
