"""A loss follows a law of its batch: how those of microbatches make up that of the whole.

==========  =====================================================  ==========================
law         the loss is                                            the gradient of the whole is
==========  =====================================================  ==========================
mean        (1/N) Σᵢ fᵢ, perhaps with a term of parameters alone   the mean of the microbatches'
sum         Σᵢ fᵢ                                                  their sum
weighted    Σᵢ fᵢ / w, where w is the batch's alone (tokens)       Σ w g / w of the whole
coupled     anything else: batch norm, in-batch negatives          none of these
none        without a batch, or without examples in it             –
==========  =====================================================  ==========================

fᵢ is a function of the parameters and of example i. The law is read off the graph; nothing is
computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functional_bp.engine import sweeps
from functional_bp.errors import ArgumentsError
from functional_bp.graph.graph import Equation, Graph, Variable, short_place
from functional_bp.graph.names import leaf_is_array
from functional_bp.graph.nested import called
from functional_bp.graph.trace import trace
from functional_bp.layouts.dimensions import Dimension, Dimensions, LeafAxis, dimensions
from functional_bp.layouts.examples import Dependence, Dependences, Mode


class Law(Enum):
    """The loss of a batch follows from those of its microbatches in this way."""

    MEAN = "mean"
    SUM = "sum"
    WEIGHTED = "weighted"
    COUPLED = "coupled"
    NONE = "none"


WORDS = {
    Law.MEAN: "the loss is a mean over {batch}; its gradient is the mean of those of equal "
    "microbatches",
    Law.SUM: "the loss is a sum over {batch}; its gradient is the sum of those of microbatches",
    Law.WEIGHTED: "the loss is a sum over {batch}, divided by {by}; its gradient is Σ w g / Σ w, "
    "of the gradients g of microbatches and their divisors w",
    Law.COUPLED: "microbatches would change the loss: {why}",
    Law.NONE: "there is no batch to divide: {why}",
}


class Factor(NamedTuple):
    """A loss is multiplied by a power of a value.

    Attributes:
        variable: the value, in the graph of the loss.
        power: -1 where the loss is divided by it.
        path: to the value, in the graph of a batch of any size.
    """

    variable: Variable
    power: int
    path: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class BatchLaw:
    """The law of a batch; it prints in words.

    Attributes:
        kind: of the law.
        why: what couples the examples, or why there are none.
        culprit: the operation that couples them.
        source: its file and line, None where they are not known.
        weights: of a weighted loss, what it is multiplied by.
        draws: where random numbers are drawn for each example: microbatches draw others than the
            whole batch does, of the same distribution.
        size: how many examples there are.
        loss: the loss.
    """

    kind: Law
    why: str = ""
    culprit: Equation | None = None
    source: tuple[str, int] | None = None
    weights: tuple[Factor, ...] = ()
    draws: tuple[tuple[str, int] | None, ...] = ()
    size: int = 0
    loss: Callable[..., Any] | None = None
    graph: Graph | None = None

    def weight(self, *args: Any) -> Any:
        """Compute by what the loss of a batch is divided; 1 where it is not.

        Args:
            *args: the loss's arguments, the batch of any size.

        Returns:
            The divisor w: the gradient of a batch is Σ w g / w over microbatches with gradients g,
            where the last w is that of the whole batch.
        """
        if self.kind is not Law.WEIGHTED or self.loss is None:
            return 1.0
        graph = trace(self.loss, *jax.tree.map(_shape, args))
        known: dict[Variable, Any] = {}
        evaluate(graph, [x for x in jax.tree.leaves(args) if leaf_is_array(x)], known)
        return math.prod(known[variable_at(graph, f.path)] ** -f.power for f in self.weights)

    @property
    def told_why(self) -> str:
        """Say what couples the examples, or why there are none: ``sort mixes the examples``."""
        return self.why if self.culprit is None else f"{self.culprit.operation} {self.why}"

    def __str__(self) -> str:
        scope = "" if self.culprit is None or "(" in self.culprit.scope else self.culprit.scope
        place = ", ".join(filter(None, (scope, short_place(self.source))))
        why = self.told_why + (f" ({place})" if place else "")
        by = " and ".join(self._told(factor.variable) for factor in self.weights)
        batch = f"the {self.size} examples"
        text = f"{self.kind.value}: " + WORDS[self.kind].format(batch=batch, why=why, by=by)
        if self.draws:
            lines = sorted({short_place(source) for source in self.draws} - {""})
            text += "; each microbatch draws its own random numbers"
            text += f" ({', '.join(lines)})" if lines else ""
        return text

    def _told(self, variable: Variable) -> str:
        """What a person calls a value, or the operation and line that compute it."""
        if variable.tag or self.graph is None:
            return variable.tag or variable.name
        visits = self.graph.walk()
        made = next((v.equation for v in visits if variable in v.equation.outputs), None)
        if made is None:
            return variable.name
        where = short_place(made.source)
        return f"the {made.operation}" + (f" of {where}" if where else "")

    def __repr__(self) -> str:
        return f"<BatchLaw {self}>"


def batch_law(loss: Callable[..., Any], *args: Any) -> BatchLaw:
    """Find how the losses of microbatches make up that of the batch.

    The examples stand along the first axis of the arrays behind the first argument. Nothing is
    computed; the loss is traced, also with twice as many examples.

    Args:
        loss: takes parameters and arrays of examples, returns a scalar (or a pytree, whose first
            array is the loss).
        *args: its arguments: arrays, or ``jax.ShapeDtypeStruct`` in their place.

    Raises:
        ArgumentsError: the loss is no scalar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((8, 3), "float32")
        >>> w = jax.ShapeDtypeStruct((3,), "float32")
        >>> print(batch_law(lambda w, x: jnp.mean((x @ w) ** 2), w, x).kind.value)
        mean
        >>> print(batch_law(lambda w, x: jnp.var(x @ w), w, x).kind.value)
        coupled
    """
    found = dimensions(loss, *args)
    graph = found.graph
    if not graph.outputs or graph.outputs[0].shape != ():
        raise ArgumentsError("a law of the batch is that of a scalar loss",
                             got=graph.outputs[0].type if graph.outputs else "nothing",
                             expected="one number", where=graph.name)  # fmt: skip
    batch = [dimension for dimension in found.values() if dimension.is_batch]
    if not batch:
        return BatchLaw(Law.NONE, f"the arrays of {graph.name} share no first axis", loss=loss)
    places = [place for dimension in batch for place in dimension.places]
    learned = [p for p in places if found.leaves[p.leaf].argument == 0]
    if learned:
        return BatchLaw(Law.COUPLED, f"{learned[0].path} has an entry for each example", loss=loss)
    try:
        powers = _powers(graph, trace(loss, *_doubled(args, places)))
    except (TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        why = f"{graph.name} takes batches of {batch[0].size} only ({reason})"
        return BatchLaw(Law.NONE, why, loss=loss)
    return _law(found, batch, powers, loss)


def _law(
    found: Dimensions, batch: Sequence[Dimension], powers: Any, loss: Callable[..., Any]
) -> BatchLaw:
    graph = found.graph
    along = {axis for dimension in batch for axis in found.members(dimension.name)}
    inputs = [
        Dependence(
            Mode.EACH if any((v, i) in along for i in range(len(v.shape))) else Mode.FIXED,
            is_learned=leaf.argument == 0,
        )
        for leaf in found.leaves
        if (v := leaf.variable) is not None
    ]
    made = Dependences(graph, inputs, along.__contains__, powers)
    end = made.of_outputs[0]
    known = BatchLaw(Law.MEAN, draws=tuple(made.draws.values()), size=batch[0].size, loss=loss,
                     graph=graph)  # fmt: skip
    if end.kind is Mode.FIXED:
        return replace(known, kind=Law.NONE, why=f"{graph.name} does not depend on its examples")
    if end.kind is Mode.COUPLED:
        return replace(known, kind=Law.COUPLED, why=end.why, culprit=end.culprit,
                       source=end.source)  # fmt: skip
    if end.kind is Mode.EACH:
        return replace(known, kind=Law.COUPLED, why="the loss is that of a single example")
    if not end.factors and end.power == -1:
        return known
    if not end.factors and end.power == 0 and not end.with_fixed:
        return replace(known, kind=Law.SUM)
    weights = tuple(Factor(v, power, path_to(graph, v)) for v, power in end.factors)
    if weights and end.power == 0 and all(factor.path for factor in weights):
        return replace(known, kind=Law.WEIGHTED, weights=weights)
    why = (
        "a term without examples stands beside a sum over them"
        if end.with_fixed else f"it scales with the number of examples to the power {end.power + 1}"
    )  # fmt: skip
    return replace(known, kind=Law.COUPLED, why=why)


def _shape(x: Any) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) if leaf_is_array(x) else x


def _doubled(args: Sequence[Any], places: Sequence[LeafAxis]) -> Any:
    """The shapes of the arguments with twice as many examples."""
    leaves, tree = jax.tree.flatten(tuple(args))
    for leaf, axis, _ in places:
        x = leaves[leaf]
        shape = tuple(2 * n if i == axis else n for i, n in enumerate(x.shape))
        leaves[leaf] = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.tree.unflatten(tree, leaves)


def _powers(graph: Graph, doubled: Graph) -> dict[tuple[Equation, int], int | None]:
    """The powers of the number of examples that literals scale with, where they do."""
    powers: dict[tuple[Equation, int], int | None] = {}
    for first, second in zip(graph, doubled, strict=True):
        if first.operation != second.operation:
            raise ValueError(f"{first.operation} becomes {second.operation} with more examples")
        for k, (x, y) in enumerate(zip(first.inputs, second.inputs, strict=True)):
            if x.kind == y.kind == "literal" and x.shape == y.shape == ():
                if x.value != y.value and x.value == x.value:  # a variance holds NaN
                    powers[first, k] = _power(x.value, y.value)
        for inner, other in zip(first.nested, second.nested, strict=True):
            powers |= _powers(inner.graph, other.graph)
    return powers


def _power(x: Any, y: Any) -> int | None:
    """p, where y = 2ᵖ x; None where there is none, or x is no finite number."""
    ratio = float(y) / float(x) if x and math.isfinite(x) else 0.0
    power = math.log2(ratio) if ratio > 0 else 0.5
    return round(power) if abs(power - round(power)) < 1e-6 else None


def path_to(graph: Graph, variable: Variable) -> tuple[int, ...]:
    """Find what computes a variable: the numbers of equations, into calls, and of the output.

    It is () where nothing does so that runs once.
    """
    for equation in graph:
        if variable in equation.outputs:
            return equation.index, equation.outputs.index(variable)
        inner = _called(equation)
        if inner is not None and (path := path_to(inner, variable)):
            return equation.index, *path
    return ()


def variable_at(graph: Graph, path: Sequence[int]) -> Variable:
    """Return the variable at such a path."""
    *calls, number, output = path
    for call in calls:
        graph = graph.equations[call].nested[0].graph
    return graph.equations[number].outputs[output]


def _called(equation: Equation) -> Graph | None:
    """The graph that a call runs once, in its place."""
    return equation.nested[0].graph if called(equation.eqn) is not None else None


def evaluate(graph: Graph, inputs: Sequence[Any], known: dict[Variable, Any]) -> list[Any]:
    """Evaluate a graph, and note the value of each of its variables, those in calls included."""
    known.update(zip((*graph.inputs, *graph.constants), (*inputs, *graph.consts)))
    value = lambda v: known[v] if v.kind != "literal" else v.value
    for equation in graph:
        operands = [value(v) for v in equation.inputs]
        inner = _called(equation)
        outs = (
            sweeps.evaluate(equation.eqn, operands)
            if inner is None else evaluate(inner, operands, known)
        )  # fmt: skip
        known.update(zip(equation.outputs, outs))
    return [value(v) for v in graph.outputs]
